//! What `dip-go` can be asked for.

use std::path::PathBuf;

use super::NAME;
use super::loss::Distance;
use super::view::Space;
use crate::error::PassError;
use crate::options::Range::{Above, AtLeast, Share};
use crate::options::{PassOptions, options};
use crate::sampling::TextOptions;
use crate::skip::SamplerOptions;

/// Share of the multiply-adds to keep, unless something else is asked for.
const SHARE: f64 = 0.35;

options! {
    /// Options of `dip-go`.
    pub struct DipGoOptions {
        /// Share of the multiply-adds to keep.
        macs: Option<f64> = None, else SHARE, in Share;
        /// How many times fewer multiply-adds, instead of `macs`.
        speedup: Option<f64> = None, in AtLeast(1);
        /// Rounds in which every gate is weighed, and some are exchanged.
        rounds: usize = 16, in AtLeast(1);
        /// Gradient steps on the gates after them.
        iterations: usize = 16;
        /// Images for one gradient.
        batch: usize = 4, in AtLeast(1);
        /// Learning rate.
        rate: f64 = 1.0, in Above(0);
        /// Weight of the multiply-adds in the loss.
        alpha: f64 = 1.0, in AtLeast(0);
        /// Where images are compared with the full sampler's: image, as pictures, after the
        /// decoder, or latent, as the sampler leaves them; image where there is a decoder if
        /// absent.
        loss: Option<Space> = None;
        /// Distance to the full sampler's images; if absent, ssim for pictures that its window
        /// fits, else mse.
        distance: Option<Distance> = None;
        /// Prompts to learn on, one a line, for pipelines with text encoders; built-in ones if
        /// absent.
        prompts: Option<PathBuf> = None;
        /// Safetensors file with the texts to learn on instead, as `dlc sample --embeddings` takes
        /// it; needed by models conditioned on a text that come without a text encoder.
        embeddings: Option<PathBuf> = None;
        /// Seed of noise, classes and probes.
        seed: u64 = 0;
        ..sampler: SamplerOptions
    }
}

impl DipGoOptions {
    /// The share of the multiply-adds to keep.
    pub(super) fn share(&self) -> f64 {
        self.macs
            .or(self.speedup.map(|times| 1.0 / times))
            .unwrap_or(SHARE)
    }

    /// Refuses options that contradict each other or are out of range.
    pub(super) fn check(&self) -> Result<(), PassError> {
        self.check_ranges(NAME)?;
        self.sampler.check(NAME)?;
        if self.macs.is_some() && self.speedup.is_some() {
            let problem = "macs and speedup say the same; give one of them".to_owned();
            return Err(PassError::Options {
                pass: NAME,
                problem,
            });
        }
        self.texts().check()
    }

    /// The texts to learn on.
    pub(super) fn texts(&self) -> TextOptions<'_> {
        TextOptions {
            pass: NAME,
            prompts: self.prompts.as_deref(),
            embeddings: self.embeddings.as_deref(),
        }
    }
}
