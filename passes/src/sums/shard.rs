//! Samples scored apart: which of them a shard has, and what its scores are of.

use std::fmt;
use std::str::FromStr;

use super::{FisherSums, Layout};
use crate::error::PassError;

/// One of the parts of the samples that are scored apart, `2/4` in text: of four, the second, which
/// has the samples 2, 6, 10 and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shard {
    number: usize,
    count: usize,
}

impl Shard {
    /// All samples.
    pub const WHOLE: Self = Self {
        number: 1,
        count: 1,
    };

    /// The shard of this number, from 1 on, among so many; none for numbers that there aren't.
    pub fn new(number: usize, count: usize) -> Option<Self> {
        let is_one = (1..=count).contains(&number);
        is_one.then_some(Self { number, count })
    }

    /// Its number, from 1 on.
    pub fn number(self) -> usize {
        self.number
    }

    /// Among how many.
    pub fn count(self) -> usize {
        self.count
    }

    /// How many of `samples` samples it has.
    pub fn size(self, samples: usize) -> usize {
        samples.saturating_add(self.count - self.number) / self.count
    }

    /// The samples that it has.
    ///
    /// # Errors
    /// [`PassError::Calibration`] if there are fewer samples than shards.
    pub fn of(self, samples: &[Vec<u32>]) -> Result<Vec<Vec<u32>>, PassError> {
        let (found, count) = (samples.len(), self.count);
        if found < count {
            let problem = format!(
                "there are {found} samples, too few for {count} shards; ask for {found} shards or fewer, or score on more samples"
            );
            return Err(PassError::Calibration { problem });
        }
        let own = samples.iter().skip(self.number - 1).step_by(count);
        Ok(own.cloned().collect())
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shard = text
            .split_once('/')
            .and_then(|(number, count)| Self::new(number.parse().ok()?, count.parse().ok()?));
        shard.ok_or_else(|| "write I/N, such as 2/4: shard I of N, I from 1 to N".into())
    }
}

/// What Fisher sums are of: scores of one request are no scores of another.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreRequest {
    /// Identifies the module that is scored.
    pub module_key: String,
    /// The name of the loss whose gradients are squared.
    pub objective: &'static str,
    /// The samples of all shards, in order.
    pub samples: Vec<Vec<u32>>,
    /// The entries that the sums have.
    pub layout: Layout,
}

/// The sums over the samples of one shard.
#[derive(Debug, Clone, PartialEq)]
pub struct ShardScores {
    /// What they are of.
    pub request: ScoreRequest,
    /// The sums.
    pub sums: FisherSums,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_is_in_one_shard() {
        let samples: Vec<Vec<u32>> = (0..11).map(|n| vec![n, n]).collect();
        for count in 1..=11 {
            let mut all = Vec::new();
            for number in 1..=count {
                let shard = Shard::new(number, count).unwrap();
                let own = shard.of(&samples).unwrap();
                assert_eq!(own.len(), shard.size(samples.len()), "{shard}");
                assert_eq!(shard.to_string().parse(), Ok(shard));
                all.extend(own);
            }
            all.sort();
            assert_eq!(all, samples, "{count}");
        }
        let error = Shard::new(1, 12).unwrap().of(&samples).unwrap_err();
        assert!(error.to_string().contains("too few for 12 shards"));
    }

    #[test]
    fn what_is_no_shard_is_refused() {
        for text in [
            "", "1", "0/3", "4/3", "1/0", "-1/2", "a/b", "1/2/3", "1 / 2",
        ] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }
}
