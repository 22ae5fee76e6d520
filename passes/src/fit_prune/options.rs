//! What `fit-prune` can be asked for.

use std::path::PathBuf;

use dlc_ir::Granularity;
use serde::{Deserialize, Serialize};

use super::options_error;
use crate::error::PassError;

/// Options of `fit-prune`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FitPruneOptions {
    /// What is dropped as one.
    pub granularity: Granularity,
    /// How many layers or blocks to drop; decides over `keep`.
    pub drop: Option<usize>,
    /// Share of the layers or blocks to keep.
    pub keep: f64,
    /// How many layers at the start are never dropped.
    pub protect_first: usize,
    /// How many layers at the end are never dropped.
    pub protect_last: usize,
    /// Text or JSON lines to score on; the built-in text if absent.
    pub calibration: Option<PathBuf>,
    /// How many samples to score on.
    pub samples: usize,
    /// Longest sample, in tokens; the model's context if that is shorter.
    pub length: usize,
    /// Scores joined by `+`; the first decides, the others are reported.
    pub score: String,
}

impl Default for FitPruneOptions {
    fn default() -> Self {
        Self {
            granularity: Granularity::Layer,
            drop: None,
            keep: 0.6,
            protect_first: 0,
            protect_last: 0,
            calibration: None,
            samples: 8,
            length: 128,
            score: "fit".into(),
        }
    }
}

impl FitPruneOptions {
    /// Name and meaning of each option, for `dlc passes`.
    pub const DOCS: &'static [(&'static str, &'static str)] = &[
        (
            "granularity",
            "layer (default); or branch: attention and MLP apart",
        ),
        (
            "drop",
            "how many layers or blocks to drop; decides over keep",
        ),
        (
            "keep",
            "share of the layers or blocks to keep (default 0.6)",
        ),
        (
            "protect_first",
            "layers at the start that are never dropped (default 0)",
        ),
        (
            "protect_last",
            "layers at the end that are never dropped (default 0)",
        ),
        (
            "calibration",
            "file to score on: text, or .jsonl with `text` or `tokens` (default: a built-in text)",
        ),
        ("samples", "how many samples to score on (default 8)"),
        ("length", "longest sample in tokens (default 128)"),
        (
            "score",
            "fit (default), fit-elementwise, fit-residual, trace, cosine, kl; several joined by +, the first decides",
        ),
    ];
}

/// A way to score layers or blocks (METHODS.md, section 1). Larger scores mean more important ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Score {
    Fit,
    FitElementwise,
    FitResidual,
    Trace,
    Cosine,
    Kl,
}

impl Score {
    const ALL: [(&'static str, Self); 6] = [
        ("fit", Self::Fit),
        ("fit-elementwise", Self::FitElementwise),
        ("fit-residual", Self::FitResidual),
        ("trace", Self::Trace),
        ("cosine", Self::Cosine),
        ("kl", Self::Kl),
    ];

    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, s)| *s == self)
            .map_or("", |(n, _)| n)
    }

    pub fn needs_gradient(self) -> bool {
        !matches!(self, Self::Cosine | Self::Kl)
    }

    pub fn parse_list(list: &str) -> Result<Vec<Self>, PassError> {
        let find = |name: &str| Self::ALL.iter().find(|(n, _)| *n == name).map(|(_, s)| *s);
        list.split('+')
            .map(|name| {
                let known: Vec<&str> = Self::ALL.iter().map(|(n, _)| *n).collect();
                find(name).ok_or_else(|| {
                    options_error(format!(
                        "there is no score `{name}`; there are {}",
                        known.join(", ")
                    ))
                })
            })
            .collect()
    }
}
