//! Axes: numbers, symbols, parts of what symbols stand for, and sums of products of these.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// One axis: a number, or a sum of a number and products: `past+seq`, `2*batch`,
/// `ceil(height/2)*ceil(width/2)`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim {
    /// Products, and how often each counts: at least once.
    terms: BTreeMap<Vec<Factor>, usize>,
    constant: usize,
}

/// A symbol, or a part of what it stands for, rounded: `height`, `ceil(height/2)`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Factor {
    symbol: Arc<str>,
    /// 1 for the symbol itself, which is rounded up.
    divisor: usize,
    rounding: Rounding,
}

/// Which whole number a part becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rounding {
    /// The next larger one.
    Up,
    /// The next smaller one.
    Down,
}

impl Rounding {
    /// Both ways.
    pub const ALL: [Self; 2] = [Self::Up, Self::Down];

    /// The name of the function in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "ceil",
            Self::Down => "floor",
        }
    }

    /// `number / divisor`, rounded; none if the divisor is 0.
    pub fn divide(self, number: usize, divisor: usize) -> Option<usize> {
        match self {
            Self::Up if divisor > 0 => Some(number.div_ceil(divisor)),
            Self::Up => None,
            Self::Down => number.checked_div(divisor),
        }
    }
}

impl Factor {
    /// The symbol.
    pub fn symbol(&self) -> &Arc<str> {
        &self.symbol
    }

    /// What the symbol is divided by.
    pub fn divisor(&self) -> usize {
        self.divisor
    }

    /// How the quotient is rounded.
    pub fn rounding(&self) -> Rounding {
        self.rounding
    }

    /// Whether it is a symbol by itself.
    pub fn is_whole(&self) -> bool {
        self.divisor == 1
    }

    /// What it stands for where `other`, of the same symbol, stands for `number`; none if that
    /// doesn't say it.
    pub fn follows(&self, other: &Self, number: usize) -> Option<usize> {
        let fits = self.symbol == other.symbol
            && (other.is_whole() || other.rounding == self.rounding)
            && self.divisor.is_multiple_of(other.divisor);
        fits.then(|| self.rounding.divide(number, self.divisor / other.divisor))?
    }

    fn divided(&self, by: usize, rounding: Rounding) -> Option<Self> {
        let fits = self.is_whole() || self.rounding == rounding;
        Some(Self {
            symbol: Arc::clone(&self.symbol),
            divisor: self.divisor.checked_mul(by).filter(|n| fits && *n > 0)?,
            rounding,
        })
    }
}

impl Dim {
    /// The number, unless the axis has a symbol.
    pub fn known(&self) -> Option<usize> {
        self.terms.is_empty().then_some(self.constant)
    }

    /// The symbol or part of one, unless the axis is anything else.
    pub fn as_factor(&self) -> Option<&Factor> {
        let mut terms = self.all_terms();
        match (terms.next(), terms.next()) {
            (Some(([factor], 1)), None) => Some(factor),
            _ => None,
        }
    }

    /// The number of the sum, 0 if it has none.
    pub fn constant(&self) -> usize {
        self.constant
    }

    /// The products of the sum, sorted, and how often each counts.
    pub fn terms(&self) -> impl Iterator<Item = (&[Factor], usize)> {
        self.terms
            .iter()
            .map(|(factors, times)| (factors.as_slice(), *times))
    }

    /// The symbols, each as often as it is written.
    pub fn symbols(&self) -> impl Iterator<Item = &Arc<str>> {
        self.terms.keys().flatten().map(Factor::symbol)
    }

    /// The sum of two axes.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let mut sum = self.clone();
        sum.constant = sum.constant.saturating_add(other.constant);
        for (factors, times) in &other.terms {
            sum.add_term(factors.clone(), *times);
        }
        sum
    }

    /// The product of two axes.
    #[must_use]
    pub fn times(&self, other: &Self) -> Self {
        let mut product = Self::from(0);
        for (a, times) in self.all_terms() {
            for (b, more) in other.all_terms() {
                let mut factors = [a, b].concat();
                factors.sort();
                product.add_term(factors, times.saturating_mul(more));
            }
        }
        product
    }

    /// The axis divided by a number. None for a sum or product that isn't divided evenly, and for a
    /// part that was rounded the other way.
    pub fn divided(&self, by: usize, rounding: Rounding) -> Option<Self> {
        if let Some(number) = self.known() {
            return rounding.divide(number, by).map(Self::from);
        }
        if self.all_terms().all(|(_, times)| times.is_multiple_of(by)) {
            let terms = self.terms.iter().map(|(f, times)| (f.clone(), times / by));
            return Some(Self {
                terms: terms.collect(),
                constant: self.constant / by,
            });
        }
        self.as_factor()?.divided(by, rounding).map(Self::from)
    }

    /// `dim` in the place of every `symbol` that stands undivided.
    #[must_use]
    pub fn substitute(&self, symbol: &str, dim: &Self) -> Self {
        let terms = self.terms.iter().map(|(factors, times)| {
            factors.iter().fold(Self::from(*times), |product, factor| {
                if *factor.symbol == *symbol && factor.is_whole() {
                    product.times(dim)
                } else {
                    product.times(&Self::from(factor.clone()))
                }
            })
        });
        terms.fold(Self::from(self.constant), |sum, term| sum.plus(&term))
    }

    /// What the axis is a product of, and a number: `batch` and 2 of `2*batch`. A sum is a factor
    /// of its own.
    pub fn factors(&self) -> (Vec<Self>, usize) {
        let number = self
            .all_terms()
            .fold(0, |divisor, (_, times)| common_divisor(divisor, times));
        let mut terms = self.all_terms();
        match (terms.next(), terms.next()) {
            (Some((factors, _)), None) => {
                (factors.iter().cloned().map(Self::from).collect(), number)
            }
            (None, _) => (vec![], 0),
            _ => (
                self.divided(number, Rounding::Up).into_iter().collect(),
                number,
            ),
        }
    }

    /// The number that the axis stands for, if `value` knows that of every factor.
    pub fn evaluate(&self, value: impl Fn(&Factor) -> Option<usize>) -> Option<usize> {
        self.terms
            .iter()
            .try_fold(self.constant, |sum, (factors, times)| {
                let product = factors.iter().try_fold(*times, |product, factor| {
                    product.checked_mul(value(factor)?)
                });
                sum.checked_add(product?)
            })
    }

    /// The terms, the number among them if it isn't 0.
    fn all_terms(&self) -> impl Iterator<Item = (&[Factor], usize)> {
        let constant = Some((&[][..], self.constant)).filter(|(_, n)| *n > 0);
        self.terms().chain(constant)
    }

    fn add_term(&mut self, factors: Vec<Factor>, times: usize) {
        if factors.is_empty() {
            self.constant = self.constant.saturating_add(times);
        } else if times > 0 {
            let counted = self.terms.entry(factors).or_default();
            *counted = counted.saturating_add(times);
        }
    }
}

fn common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// The axis named `name`.
pub fn sym(name: &str) -> Dim {
    Dim::from(Factor {
        symbol: Arc::from(name),
        divisor: 1,
        rounding: Rounding::Up,
    })
}

impl From<usize> for Dim {
    fn from(constant: usize) -> Self {
        Self {
            terms: BTreeMap::new(),
            constant,
        }
    }
}

impl From<Factor> for Dim {
    fn from(factor: Factor) -> Self {
        Self {
            terms: BTreeMap::from([(vec![factor], 1)]),
            constant: 0,
        }
    }
}

impl fmt::Display for Factor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, symbol) = (self.rounding.name(), &self.symbol);
        if self.is_whole() {
            f.write_str(symbol)
        } else {
            write!(f, "{name}({symbol}/{})", self.divisor)
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (factors, times) in self.terms() {
            f.write_str(separator)?;
            if times > 1 {
                write!(f, "{times}*")?;
            }
            for (at, factor) in factors.iter().enumerate() {
                write!(f, "{}{factor}", if at > 0 { "*" } else { "" })?;
            }
            separator = "+";
        }
        if self.terms.is_empty() || self.constant > 0 {
            write!(f, "{separator}{}", self.constant)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half(dim: &Dim) -> Dim {
        dim.divided(2, Rounding::Up).expect("can be halved")
    }

    #[test]
    fn sums_and_products_are_written_in_one_way() {
        let (height, width) = (sym("height"), sym("width"));
        for (dim, text) in [
            (sym("seq").plus(&sym("past")).plus(&2.into()), "past+seq+2"),
            (sym("batch").plus(&sym("batch")), "2*batch"),
            (width.times(&height).times(&4.into()), "4*height*width"),
            (half(&half(&height)), "ceil(height/4)"),
            (
                half(&height).times(&half(&width)),
                "ceil(height/2)*ceil(width/2)",
            ),
            (half(&height.times(&6.into())), "3*height"),
            (height.times(&0.into()), "0"),
        ] {
            assert_eq!(dim.to_string(), text);
        }
    }

    #[test]
    fn parts_are_divided_in_the_way_in_which_they_are_rounded() {
        let height = sym("height");
        let down = height.divided(2, Rounding::Down);
        assert_eq!(
            down.as_ref().map(Dim::to_string).as_deref(),
            Some("floor(height/2)")
        );
        assert_eq!(down.and_then(|d| d.divided(2, Rounding::Up)), None);
        assert_eq!(height.plus(&1.into()).divided(2, Rounding::Up), None);
        assert_eq!(height.divided(0, Rounding::Up), None);
        for n in 0..40 {
            let value = |f: &Factor| f.follows(&whole(f), n);
            let quarter = half(&half(&height)).evaluate(value);
            assert_eq!(quarter, Some(n.div_ceil(2).div_ceil(2)));
        }
    }

    fn whole(factor: &Factor) -> Factor {
        Factor {
            divisor: 1,
            rounding: Rounding::Up,
            ..factor.clone()
        }
    }

    #[test]
    fn a_product_is_taken_apart() {
        let (batch, sum) = (sym("batch"), sym("past").plus(&sym("seq")));
        assert_eq!(batch.times(&6.into()).factors(), (vec![batch.clone()], 6));
        assert_eq!(sum.factors(), (vec![sum.clone()], 1));
        assert_eq!(sum.times(&3.into()).factors(), (vec![sum], 3));
        assert_eq!(Dim::from(5).factors(), (vec![], 5));
        assert_eq!(Dim::from(0).factors(), (vec![], 0));
    }

    #[test]
    fn a_symbol_is_replaced_where_it_stands_by_itself() {
        let twice = sym("batch").times(&2.into());
        let places = sym("batch").times(&half(&sym("batch"))).plus(&1.into());
        assert_eq!(
            places.substitute("batch", &twice).to_string(),
            "2*batch*ceil(batch/2)+1"
        );
    }
}
