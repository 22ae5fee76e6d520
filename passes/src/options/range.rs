//! What values an option takes.

use std::fmt;

use serde_yaml::Value;

/// The values that an option takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Range {
    /// Every number that is finite.
    Finite,
    /// This number and larger ones.
    AtLeast(u32),
    /// Numbers larger than this one.
    Above(u32),
    /// Both numbers and those between them.
    FromTo(u32, u32),
    /// A part of a whole, which isn't nothing.
    Share,
    /// These numbers.
    OneOf(&'static [u32]),
    /// The names of an enum; serde refuses others.
    Names(&'static [&'static str]),
    /// What the pass reads by itself, and these are examples of.
    SuchAs(&'static [&'static str]),
    /// Names that the pass reads by itself: it may know others for the same, or take several.
    Words(Vec<&'static str>),
}

impl Range {
    /// Whether the range has `value`. What isn't of the range's type is another check's.
    pub fn contains(&self, value: &Value) -> bool {
        match (self, value.as_f64(), value.as_str()) {
            (Self::Names(names), _, Some(name)) => names.contains(&name),
            (_, Some(number), _) => self.contains_number(number),
            _ => true,
        }
    }

    fn contains_number(&self, number: f64) -> bool {
        number.is_finite()
            && match *self {
                Self::Finite | Self::Names(_) | Self::SuchAs(_) | Self::Words(_) => true,
                Self::AtLeast(least) => number >= f64::from(least),
                Self::Above(border) => number > f64::from(border),
                Self::FromTo(least, most) => (f64::from(least)..=f64::from(most)).contains(&number),
                Self::Share => number > 0.0 && number <= 1.0,
                Self::OneOf(numbers) => numbers
                    .iter()
                    .any(|n| f64::from(*n).to_bits() == number.to_bits()),
            }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finite => f.write_str("a finite number"),
            Self::AtLeast(least) => write!(f, "{least} or more"),
            Self::Above(border) => write!(f, "more than {border}"),
            Self::FromTo(least, most) => write!(f, "{least} to {most}"),
            Self::Share => f.write_str("more than 0 and at most 1"),
            Self::OneOf(numbers) => list(f, numbers),
            Self::Names(names) => list(f, names),
            Self::SuchAs(examples) => {
                f.write_str("such as ")?;
                list(f, examples)
            }
            Self::Words(words) => list(f, words),
        }
    }
}

/// `a, b or c`.
fn list(f: &mut fmt::Formatter<'_>, values: &[impl fmt::Display]) -> fmt::Result {
    for (i, value) in values.iter().enumerate() {
        let joint = match values.len() - i {
            _ if i == 0 => "",
            1 => " or ",
            _ => ", ",
        };
        write!(f, "{joint}{value}")?;
    }
    Ok(())
}
