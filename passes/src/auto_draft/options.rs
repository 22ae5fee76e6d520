//! What `auto-draft` can be asked for.

use std::path::PathBuf;

use crate::options::Range::{Above, AtLeast};
use crate::options::options;
use crate::quantize::GROUP_SIZES;

options! {
    /// Options of `auto-draft`.
    #[serde(deny_unknown_fields)]
    pub struct AutoDraftOptions {
        /// File to choose by: text, or .jsonl with `text` or `tokens`; text that the target writes
        /// itself if absent.
        calibration: Option<PathBuf> = None;
        /// How many texts; half of them score, the others are held back to measure acceptance.
        samples: usize = 16, in AtLeast(2);
        /// Longest text in tokens; the model's context if that is shorter.
        length: usize = 128, in AtLeast(2);
        /// Seed of the text that the target writes.
        seed: u64 = 0;
        /// Temperature of the text that the target writes; 0 takes the likeliest token.
        temperature: f64 = 0.7, in AtLeast(0);
        /// YAML file with the costs of another machine, as `dlc bench --calibrate` prints them;
        /// measured here, once, if absent.
        costs: Option<PathBuf> = None;
        /// How many drafts are measured beside the three that gauge the scores.
        candidates: usize = 4, in AtLeast(1);
        /// Most bytes of target and draft together, in those of the target.
        memory: f64 = 1.35, in Above(1);
        /// Entries of a row that share a scale.
        group_size: usize = 32, in GROUP_SIZES;
    }
}
