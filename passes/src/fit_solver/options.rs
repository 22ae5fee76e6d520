//! What `fit-solver` can be asked for.

use std::path::PathBuf;

use dlc_ir::Granularity;

use super::NAME;
use crate::error::PassError;
use crate::options::Range::{AtLeast, FromTo, Words};
use crate::options::{PassOptions, options};
use crate::sampling::TextOptions;
use crate::skip::{SamplerOptions, SkipGranularity, schedulers};

/// Most steps of the scheduler: what lies between any two of them is weighed.
const MOST_STEPS: u32 = 250;
const MOST_OUTPUTS: u32 = 8;

options! {
    /// Options of `fit-solver`.
    pub struct FitSolverOptions {
        /// Evaluations of the network that the solver makes.
        steps: usize = 8, in FromTo(1, MOST_STEPS);
        /// Steps of the scheduler whose samples it is to make.
        reference: usize = 50, in FromTo(2, MOST_STEPS);
        /// The scheduler; the checkpoint's if absent.
        scheduler: Option<String> = None, in Words(schedulers());
        /// Strength of classifier-free guidance; 1 is none; if absent 7.5 for models of texts, 1.5
        /// for models of classes, none for others.
        guidance: Option<f64> = None, in AtLeast(0);
        /// Outputs of the network that a step looks at.
        order: usize = 3, in FromTo(1, MOST_OUTPUTS);
        /// Images to fit to; if absent 16, and more where they are small.
        samples: Option<usize> = None, in AtLeast(1);
        /// Rounds of Gauss-Newton on the samples, after least squares step by step.
        refine: usize = 1;
        /// Prompts to fit to, one a line, for pipelines with text encoders; built-in ones if
        /// absent.
        prompts: Option<PathBuf> = None;
        /// Safetensors file with the texts to fit to instead, as `dlc sample --embeddings` takes
        /// it; needed by models conditioned on a text that come without a text encoder.
        embeddings: Option<PathBuf> = None;
        /// Seed of noise, classes and probes.
        seed: u64 = 0;
        /// Whether to make one graph of the whole solver, for one guidance.
        unroll: bool = false;
    }
}

impl FitSolverOptions {
    /// Refuses options that contradict each other or are out of range.
    pub(super) fn check(&self) -> Result<(), PassError> {
        self.check_ranges(NAME)?;
        if self.steps >= self.reference {
            let problem = format!(
                "steps={} is to be fewer than the {} steps of the scheduler; ask for fewer, or for more with reference=",
                self.steps, self.reference
            );
            return Err(PassError::Options {
                pass: NAME,
                problem,
            });
        }
        self.texts().check()
    }

    /// The texts to fit to.
    pub(super) fn texts(&self) -> TextOptions<'_> {
        TextOptions {
            pass: NAME,
            prompts: self.prompts.as_deref(),
            embeddings: self.embeddings.as_deref(),
        }
    }

    /// How the scheduler samples, with nothing skipped.
    pub(super) fn sampler(&self) -> SamplerOptions {
        SamplerOptions {
            steps: self.reference,
            scheduler: self.scheduler.clone(),
            guidance: self.guidance,
            granularity: SkipGranularity(Granularity::Branch),
            unroll: self.unroll,
            ..SamplerOptions::default()
        }
    }
}
