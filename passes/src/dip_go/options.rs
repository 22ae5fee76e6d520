//! What `dip-go` can be asked for.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::NAME;
use super::loss::LossKind;
use crate::error::PassError;
use crate::skip::{SamplerOptions, check_share, with_sampler};

/// Options of `dip-go`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DipGoOptions {
    /// Share of the multiply-adds to keep.
    pub macs: Option<f64>,
    /// How many times fewer multiply-adds, instead of `macs`.
    pub speedup: Option<f64>,
    /// Rounds in which every gate is weighed, and some are exchanged.
    pub rounds: usize,
    /// Gradient steps on the gates after them.
    pub iterations: usize,
    /// Images for one gradient.
    pub batch: usize,
    /// Learning rate.
    pub rate: f64,
    /// Weight of the multiply-adds in the loss.
    pub alpha: f64,
    /// What is minimised between images; SSIM for pictures that its window fits, else the mean
    /// square.
    pub loss: Option<LossKind>,
    /// What the images are conditioned on beside a class: a safetensors file, as
    /// `dlc sample --embeddings` takes it.
    pub embeddings: Option<PathBuf>,
    /// Seed of noise, classes and probes.
    pub seed: u64,
    /// How the model is sampled.
    #[serde(flatten)]
    pub sampler: SamplerOptions,
}

impl Default for DipGoOptions {
    fn default() -> Self {
        Self {
            macs: None,
            speedup: None,
            rounds: 16,
            iterations: 16,
            batch: 4,
            rate: 1.0,
            alpha: 1.0,
            loss: None,
            embeddings: None,
            seed: 0,
            sampler: SamplerOptions::default(),
        }
    }
}

impl DipGoOptions {
    /// Name and meaning of each option, for `dlc passes`.
    pub const DOCS: &'static [(&'static str, &'static str)] = &with_sampler::<10, 17>([
        ("macs", "share of the multiply-adds to keep (default 0.35)"),
        (
            "speedup",
            "how many times fewer multiply-adds, instead of macs",
        ),
        (
            "rounds",
            "rounds in which every gate is weighed, and some are exchanged (default 16)",
        ),
        (
            "iterations",
            "gradient steps on the gates after them (default 16)",
        ),
        ("batch", "images for one gradient (default 4)"),
        ("rate", "learning rate (default 1)"),
        (
            "alpha",
            "weight of the multiply-adds in the loss (default 1)",
        ),
        (
            "loss",
            "ssim (default for pictures of 11 pixels and more) or mse: the distance to the full sampler's images",
        ),
        (
            "embeddings",
            "safetensors file with the texts to learn on, as `dlc sample --embeddings` takes it; needed by models conditioned on a text",
        ),
        ("seed", "seed of noise, classes and probes (default 0)"),
    ]);

    /// The share of the multiply-adds to keep.
    pub(super) fn share(&self) -> f64 {
        self.macs
            .or(self.speedup.map(|times| 1.0 / times))
            .unwrap_or(0.35)
    }

    /// Refuses options that contradict each other or are out of range.
    pub(super) fn check(&self) -> Result<(), PassError> {
        let fail = |problem: &str| {
            Err(PassError::Options {
                pass: NAME,
                problem: problem.into(),
            })
        };
        self.sampler.check(NAME)?;
        if self.macs.is_some() && self.speedup.is_some() {
            return fail("macs and speedup say the same; give one of them");
        }
        if self
            .speedup
            .is_some_and(|times| !(times >= 1.0 && times.is_finite()))
        {
            return fail("speedup must be 1 or more");
        }
        if self.rounds == 0 || self.batch == 0 {
            return fail("rounds and batch must be 1 or more");
        }
        if !(self.rate > 0.0
            && self.rate.is_finite()
            && self.alpha >= 0.0
            && self.alpha.is_finite())
        {
            return fail("rate must be above 0, and alpha 0 or more");
        }
        check_share(NAME, Some(self.share()))
    }
}
