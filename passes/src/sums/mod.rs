//! Fisher information as sums over samples, by name. They add up: what several runs find of a shard
//! of the samples each is together what one run finds of all.
//!
//! Knows neither graphs nor files.

mod shard;

use std::collections::BTreeMap;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

pub use shard::{ScoreRequest, Shard, ShardScores};

/// A sum with what rounding left of it (Knuth, *The Art of Computer Programming*, volume 2, section
/// 4.2.2, theorem B): its value doesn't depend on the order of so few terms as there are samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Sum {
    /// The sum, rounded.
    pub rounded: f64,
    /// What is to be added to it.
    pub rest: f64,
}

impl Sum {
    /// The sum as one number.
    pub fn value(self) -> f64 {
        self.rounded + self.rest
    }
}

impl AddAssign<f64> for Sum {
    fn add_assign(&mut self, term: f64) {
        let sum = self.rounded + term;
        let added = sum - self.rounded;
        let lost = (self.rounded - (sum - added)) + (term - added);
        if !sum.is_finite() {
            *self = Self {
                rounded: sum,
                rest: 0.0,
            };
            return;
        }
        let rest = self.rest + lost;
        self.rounded = sum + rest;
        self.rest = rest - (self.rounded - sum);
    }
}

impl AddAssign for Sum {
    fn add_assign(&mut self, other: Self) {
        *self += other.rounded;
        *self += other.rest;
    }
}

/// The name of the sum of the samples' losses.
pub(crate) const LOSS: &str = "loss";

/// How many numbers sums have under each name.
pub type Layout = BTreeMap<String, usize>;

/// Sums over samples.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FisherSums {
    /// Over how many samples.
    pub samples: usize,
    /// The sums by name.
    pub entries: BTreeMap<String, Vec<Sum>>,
}

impl FisherSums {
    /// Over no sample.
    pub fn zero(layout: &Layout) -> Self {
        let entries = layout.iter();
        Self {
            samples: 0,
            entries: entries
                .map(|(name, count)| (name.clone(), vec![Sum::default(); *count]))
                .collect(),
        }
    }

    /// How many numbers there are under each name.
    pub fn layout(&self) -> Layout {
        let entries = self.entries.iter();
        entries
            .map(|(name, sums)| (name.clone(), sums.len()))
            .collect()
    }

    /// Adds what one sample brings under a name; names that there aren't are left out.
    pub(crate) fn add(&mut self, name: &str, terms: &[f64]) {
        if let Some(sums) = self.entries.get_mut(name) {
            sums.iter_mut()
                .zip(terms)
                .for_each(|(sum, term)| *sum += *term);
        }
    }

    /// Adds sums of the same layout over other samples.
    pub fn merge(&mut self, other: &Self) {
        self.samples += other.samples;
        for (name, sums) in &mut self.entries {
            let others = other.entries.get(name).into_iter().flatten();
            sums.iter_mut()
                .zip(others)
                .for_each(|(sum, other)| *sum += *other);
        }
    }

    /// The mean of a number under a name; 0 for one that there isn't.
    pub(crate) fn mean(&self, name: &str, at: usize) -> f64 {
        let sum = self.entries.get(name).and_then(|sums| sums.get(at));
        sum.map_or(0.0, |sum| sum.value() / self.samples.max(1) as f64)
    }

    /// Mean loss of the samples, in nats per answer.
    pub fn loss(&self) -> f64 {
        self.mean(LOSS, 0)
    }

    /// The first sum that is no finite number of 0 or more, as every sum of squares and of losses
    /// is: its name and value.
    pub fn unsound(&self) -> Option<(&str, f64)> {
        self.entries.iter().find_map(|(name, sums)| {
            let value = sums.iter().map(|sum| sum.value());
            let mut unsound = value.filter(|value| !value.is_finite() || *value < 0.0);
            unsound.next().map(|value| (name.as_str(), value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum<'a>(terms: impl Iterator<Item = &'a f64>) -> Sum {
        let mut sum = Sum::default();
        terms.for_each(|term| sum += *term);
        sum
    }

    #[test]
    fn a_sum_does_not_depend_on_the_order_of_its_terms() {
        let terms: Vec<f64> = (1..400)
            .map(|n| f64::from(n).sin().powi(2) * 10f64.powi(n % 9))
            .collect();
        let whole = sum(terms.iter()).value().to_bits();
        assert_eq!(sum(terms.iter().rev()).value().to_bits(), whole);
        for shards in 2..8 {
            let mut merged = Sum::default();
            for shard in 0..shards {
                merged += sum(terms.iter().skip(shard).step_by(shards));
            }
            assert_eq!(merged.value().to_bits(), whole, "{shards}");
        }
    }

    #[test]
    fn what_is_infinite_stays_so() {
        let infinite = sum([f64::INFINITY, 1.0].iter());
        assert!(infinite.value().is_infinite());
        let neither = sum([f64::INFINITY, f64::NAN, 1.0].iter());
        assert!(neither.value().is_nan());
    }
}
