//! What a model is scored on: the loss of its head on a sample, and where the right answers come
//! from.

use dlc_eval::{Array, cross_entropy};
use dlc_ir::Task;

use crate::error::PassError;

/// Where the right answers come from (METHODS.md, section 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objective {
    /// Each token is the answer to the tokens before it: decoders.
    NextToken,
    /// The most likely answer is the right one, at every position or for the whole text: encoders.
    OwnAnswer,
}

impl Objective {
    /// The objective of models for `task`; none for models without a head.
    pub fn of(task: Task) -> Option<Self> {
        match task {
            Task::TextGeneration => Some(Self::NextToken),
            Task::FillMask | Task::TextClassification | Task::TokenClassification => {
                Some(Self::OwnAnswer)
            }
            Task::QuestionAnswering | Task::FeatureExtraction | Task::ImageGeneration => None,
        }
    }

    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::NextToken => "next-token",
            Self::OwnAnswer => "own-answer",
        }
    }

    /// The right answers to the first rows of scores, a row for each position or one for the whole
    /// text.
    pub(crate) fn targets(self, rows: &[Vec<f64>], tokens: &[u32]) -> Vec<u32> {
        match self {
            Self::NextToken => tokens.get(1..).unwrap_or_default().to_vec(),
            Self::OwnAnswer => rows.iter().map(|row| largest(row)).collect(),
        }
    }

    /// Mean cross-entropy of the right answers in nats, and its gradient with respect to all
    /// logits; rows without an answer get 0.
    pub(crate) fn loss(self, logits: &Array, tokens: &[u32]) -> Result<(f32, Array), PassError> {
        let answers = if self == Self::OwnAnswer {
            rows(logits)
        } else {
            vec![]
        };
        let targets = self.targets(&answers, tokens);
        let width = logits.shape().last().copied().unwrap_or(1);
        let judged = logits
            .as_f32()
            .and_then(|l| l.get(..targets.len() * width))
            .unwrap_or_default();
        let (loss, gradient) = cross_entropy(
            &Array::f32([1, targets.len(), width], judged.to_vec())?,
            &targets,
        )?;
        let mut padded = gradient.as_f32().unwrap_or_default().to_vec();
        padded.resize(logits.as_f32().unwrap_or_default().len(), 0.0);
        Ok((loss, Array::f32(logits.shape(), padded)?))
    }
}

/// The numbers along the last axis, for each position.
pub(crate) fn row_slices(array: &Array) -> impl Iterator<Item = &[f32]> {
    let width = array.shape().last().copied().unwrap_or(1).max(1);
    array.as_f32().unwrap_or_default().chunks(width)
}

/// The same in double precision.
pub(crate) fn rows(array: &Array) -> Vec<Vec<f64>> {
    row_slices(array)
        .map(|row| row.iter().map(|&x| f64::from(x)).collect())
        .collect()
}

/// Index of the largest number, the first among equals.
pub(crate) fn largest(row: &[f64]) -> u32 {
    let best = row
        .iter()
        .enumerate()
        .fold((0, f64::NEG_INFINITY), |best, (i, &x)| {
            if x > best.1 { (i, x) } else { best }
        });
    best.0 as u32
}
