//! What the symbols of a graph's shapes stand for in one evaluation.

use std::collections::BTreeMap;
use std::sync::Arc;

use dlc_ir::{Dim, Factor, Shape, ValueType};

use crate::array::Array;

/// The numbers after `batch`, `seq`, `past`, and after sums whose parts aren't known.
#[derive(Debug, Default)]
pub(crate) struct Symbols {
    single: BTreeMap<Arc<str>, usize>,
    sums: BTreeMap<Dim, usize>,
    /// Parts of symbols that aren't known.
    parts: BTreeMap<Factor, usize>,
}

/// An axis that doesn't fit: which array it belongs to, and what is wrong.
pub(crate) type Misfit = (usize, String);

impl Symbols {
    /// Finds the one number for each symbol that makes every array fit its type.
    pub(crate) fn solve(arrays: &[(&ValueType, &Array)]) -> Result<Self, Misfit> {
        let mut axes = Vec::new();
        for (at, (ty, array)) in arrays.iter().enumerate() {
            if !array.is(ty.dtype) || array.shape().len() != ty.shape.rank() {
                return Err((
                    at,
                    format!("is {}{:?}, not {ty}", array.kind(), array.shape()),
                ));
            }
            axes.extend(ty.shape.0.iter().zip(array.shape()).enumerate().map(
                |(number, (dim, &size))| Axis {
                    at,
                    number,
                    dim,
                    size,
                },
            ));
        }
        let mut symbols = Self::default();
        loop {
            let before = axes.len();
            let mut open = Vec::new();
            for axis in axes {
                if !symbols.place(&axis)? {
                    open.push(axis);
                }
            }
            if open.len() == before {
                return symbols.place_sums(&open).map(|()| symbols);
            }
            axes = open;
        }
    }

    /// Checks or learns one axis; false if it takes more than is known to learn from it.
    fn place(&mut self, axis: &Axis<'_>) -> Result<bool, Misfit> {
        let is_unknown = |factor: &&Factor| !self.single.contains_key(factor.symbol());
        let Some(unknown) = axis.dim.terms().flat_map(|(f, _)| f).find(is_unknown) else {
            return self
                .value(axis.dim)
                .filter(|n| *n == axis.size)
                .map(|_| true)
                .ok_or_else(|| axis.misfit(self.value(axis.dim)));
        };
        let (mut known, mut often) = (Some(axis.dim.constant()), 0);
        for (factors, times) in axis.dim.terms() {
            if factors == [unknown.clone()] && unknown.is_whole() {
                often = times;
            } else if factors.iter().any(|f| is_unknown(&f)) {
                return Ok(false);
            } else {
                let term = factors.iter().try_fold(times, |product, factor| {
                    product.checked_mul(self.factor(factor)?)
                });
                known = known.zip(term).and_then(|(sum, n)| sum.checked_add(n));
            }
        }
        let rest = known
            .and_then(|known| axis.size.checked_sub(known))
            .filter(|rest| rest.is_multiple_of(often));
        let rest = rest.ok_or_else(|| axis.misfit(None))?;
        self.single
            .insert(Arc::clone(unknown.symbol()), rest / often);
        Ok(true)
    }

    fn place_sums(&mut self, open: &[Axis<'_>]) -> Result<(), Misfit> {
        for axis in open {
            let known = *self.sums.entry(axis.dim.clone()).or_insert(axis.size);
            if let Some(part) = axis.dim.as_factor() {
                self.parts.insert(part.clone(), known);
            }
            if known != axis.size {
                return Err(axis.misfit(Some(known)));
            }
        }
        Ok(())
    }

    /// The number that `dim` stands for, if its symbols are known.
    pub(crate) fn value(&self, dim: &Dim) -> Option<usize> {
        dim.evaluate(|factor| self.factor(factor))
            .or_else(|| self.sums.get(dim).copied())
    }

    /// The number that a symbol or a part of one stands for: by the symbol, else by a part.
    fn factor(&self, factor: &Factor) -> Option<usize> {
        if let Some(symbol) = self.single.get(factor.symbol()) {
            return factor.rounding().divide(*symbol, factor.divisor());
        }
        self.parts
            .iter()
            .find_map(|(part, number)| factor.follows(part, *number))
    }

    /// The numbers that `shape` stands for.
    pub(crate) fn shape(&self, shape: &Shape) -> Result<Vec<usize>, String> {
        shape
            .0
            .iter()
            .map(|d| {
                self.value(d)
                    .ok_or_else(|| format!("no input says how long `{d}` of {shape} is"))
            })
            .collect()
    }
}

struct Axis<'a> {
    at: usize,
    number: usize,
    dim: &'a Dim,
    size: usize,
}

impl Axis<'_> {
    fn misfit(&self, known: Option<usize>) -> Misfit {
        let Self {
            at,
            number,
            dim,
            size,
        } = self;
        let problem = match known {
            Some(known) if dim.known().is_some() => {
                format!("axis {number} is {size} long, not {known}")
            }
            Some(known) => {
                format!("axis {number} is {size} long, but `{dim}` is {known} by the other inputs")
            }
            None => format!("axis {number} is {size} long, which can't be `{dim}`"),
        };
        (*at, problem)
    }
}
