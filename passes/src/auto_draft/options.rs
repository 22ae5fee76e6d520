//! What `auto-draft` can be asked for.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::options_error;
use crate::error::PassError;

/// Options of `auto-draft`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoDraftOptions {
    /// Text or JSON lines to choose by; text that the target writes if absent.
    pub calibration: Option<PathBuf>,
    /// How many texts; half of them score, the others are held back to measure acceptance.
    pub samples: usize,
    /// Longest text, in tokens; the model's context if that is shorter.
    pub length: usize,
    /// Seed of the text that the target writes.
    pub seed: u64,
    /// Temperature of the text that the target writes.
    pub temperature: f32,
    /// Costs of another machine, as `dlc bench --calibrate` prints them; measured here if absent.
    pub costs: Option<PathBuf>,
    /// How many drafts are measured beside those that the scores are gauged by.
    pub candidates: usize,
    /// Most bytes of target and draft together, in those of the target.
    pub memory: f64,
    /// Entries of a row that share a scale.
    pub group_size: usize,
}

impl Default for AutoDraftOptions {
    fn default() -> Self {
        Self {
            calibration: None,
            samples: 16,
            length: 128,
            seed: 0,
            temperature: 0.7,
            costs: None,
            candidates: 4,
            memory: 1.35,
            group_size: 32,
        }
    }
}

impl AutoDraftOptions {
    /// Name and meaning of each option, for `dlc passes`.
    pub const DOCS: &'static [(&'static str, &'static str)] = &[
        (
            "calibration",
            "file to choose by: text, or .jsonl with `text` or `tokens` (default: text that the target writes itself)",
        ),
        (
            "samples",
            "how many texts; half of them score, the others are held back to measure acceptance (default 16)",
        ),
        ("length", "longest text in tokens (default 128)"),
        (
            "seed",
            "seed of the text that the target writes (default 0)",
        ),
        (
            "temperature",
            "temperature of the text that the target writes (default 0.7; 0 takes the likeliest token)",
        ),
        (
            "costs",
            "YAML file with the costs of another machine, as `dlc bench --calibrate` prints them (default: measured here, once)",
        ),
        (
            "candidates",
            "how many drafts are measured beside the three that gauge the scores (default 4)",
        ),
        (
            "memory",
            "most bytes of target and draft together, in those of the target (default 1.35)",
        ),
        (
            "group_size",
            "entries of a row that share a scale: 32 (default), 64 or 128",
        ),
    ];

    /// Refuses values out of range.
    pub(super) fn check(&self) -> Result<(), PassError> {
        let problem = match self {
            Self { samples: 0 | 1, .. } => {
                "samples must be 2 or more: half of the texts score, the others are held back"
                    .to_owned()
            }
            Self { length: 0 | 1, .. } => "length must be 2 or more".to_owned(),
            Self { candidates: 0, .. } => "candidates must be 1 or more".to_owned(),
            Self { temperature, .. } if !(temperature.is_finite() && *temperature >= 0.0) => {
                format!("temperature={temperature} is no temperature")
            }
            Self { memory, .. } if !(memory.is_finite() && *memory > 1.0) => {
                format!("memory={memory} leaves no room beside the target; ask for more than 1")
            }
            Self { group_size, .. } if !matches!(group_size, 32 | 64 | 128) => {
                format!("group_size={group_size} can't be run; ask for group_size=32, 64 or 128")
            }
            _ => return Ok(()),
        };
        Err(options_error(problem))
    }
}
