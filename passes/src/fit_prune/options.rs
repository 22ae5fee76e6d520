//! What `fit-prune` can be asked for.

use std::path::PathBuf;

use dlc_ir::Granularity;
use serde::{Deserialize, Serialize};

use super::options_error;
use crate::error::PassError;
use crate::options::Range::{AtLeast, Share, Words};
use crate::options::options;

/// What makes up for dropped layers or branches of a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compensate {
    /// Nothing.
    None,
    /// The hidden state is scaled to the length that it would have had.
    Scale,
    /// The matrix before writes what they would have, by least squares.
    Lstsq,
}

options! {
    /// Options of `fit-prune`.
    #[serde(deny_unknown_fields)]
    pub struct FitPruneOptions {
        /// What is dropped as one: a layer, or a branch of it, attention or MLP.
        granularity: Granularity = Granularity::Layer;
        /// How many layers or branches to drop; decides over `keep`.
        drop: Option<usize> = None;
        /// Share of the layers or branches to keep.
        keep: f64 = 0.6, in Share;
        /// Share of the target's step that a draft may take: those go that take so much together and
        /// whose scores are lowest, attention and MLP at what they cost; decides over `drop`.
        step: Option<f64> = None, in Share;
        /// Of `step`: YAML file with the costs of another machine, as `dlc bench --calibrate` prints
        /// them; measured here, once, if absent.
        costs: Option<PathBuf> = None;
        /// Layers at the start that are never dropped.
        protect_first: usize = 0;
        /// Layers at the end that are never dropped.
        protect_last: usize = 0;
        /// File to score on: text, or .jsonl with `text` or `tokens`; a built-in text if absent.
        calibration: Option<PathBuf> = None;
        /// How many samples to score on.
        samples: usize = 8, in AtLeast(1);
        /// Longest sample in tokens; the model's context if that is shorter.
        length: usize = 128, in AtLeast(2);
        /// Scores; several joined by `+`, the first decides and the others are reported.
        score: String = "fit".into(), in Words(Score::names());
        /// What makes up for what a decoder loses: scale stretches the hidden state to the length
        /// that it had, lstsq changes the matrix that writes into it before, by least squares.
        compensate: Compensate = Compensate::None;
    }
}

/// A way to score layers or blocks (METHODS.md, section 1). Larger scores mean more important ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Score {
    Fit,
    FitElementwise,
    FitResidual,
    Trace,
    Cosine,
    Similarity,
    Kl,
}

impl Score {
    const ALL: [(&'static str, Self); 7] = [
        ("fit", Self::Fit),
        ("fit-elementwise", Self::FitElementwise),
        ("fit-residual", Self::FitResidual),
        ("trace", Self::Trace),
        ("cosine", Self::Cosine),
        ("similarity", Self::Similarity),
        ("kl", Self::Kl),
    ];

    fn names() -> Vec<&'static str> {
        Self::ALL.iter().map(|(name, _)| *name).collect()
    }

    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, s)| *s == self)
            .map_or("", |(n, _)| n)
    }

    pub fn needs_gradient(self) -> bool {
        !matches!(self, Self::Cosine | Self::Similarity | Self::Kl)
    }

    /// Whether the model without each unit runs to its end.
    pub fn needs_removal(self) -> bool {
        matches!(self, Self::Similarity | Self::Kl)
    }

    pub fn parse_list(list: &str) -> Result<Vec<Self>, PassError> {
        let find = |name: &str| Self::ALL.iter().find(|(n, _)| *n == name).map(|(_, s)| *s);
        list.split('+')
            .map(|name| {
                find(name).ok_or_else(|| {
                    options_error(format!(
                        "there is no score `{name}`; there are {}",
                        Self::names().join(", ")
                    ))
                })
            })
            .collect()
    }
}
