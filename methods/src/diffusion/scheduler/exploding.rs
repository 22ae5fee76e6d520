//! What samplers share whose latents are `x_0 + sigma * epsilon`: the noise grows, the signal stays (Karras et al.,
//! *Elucidating the Design Space of Diffusion-Based Generative Models*, table 1). The network sees them scaled back
//! to unit variance.

use super::levels::Levels;
use super::noise::NoiseSchedule;
use super::prediction::Prediction;
use super::spacing::{Spacing, Spread, sigmas_at, timestep_of};
use super::start::Mix;
use crate::diffusion::Estimate;

/// Noise levels, how they are spaced, and what the network says at them.
pub(super) struct Exploding {
    pub(super) noise: NoiseSchedule,
    pub(super) prediction: Prediction,
    pub(super) spacing: Spacing,
    pub(super) levels: Option<Levels>,
}

/// The levels of a run, without the one at which it ends.
pub(super) struct Visits {
    /// One for each level.
    pub(super) timesteps: Vec<f64>,
    /// Descending.
    pub(super) sigmas: Vec<f64>,
    /// What noise of unit variance is multiplied by.
    pub(super) initial_scale: f64,
}

impl Visits {
    /// What latents are at a level.
    pub(super) fn mix(&self, level: usize) -> Mix {
        Mix {
            image: 1.0,
            noise: self.sigmas[level],
        }
    }
}

impl Exploding {
    /// The levels of a run of so many steps.
    pub(super) fn visits(&self, steps: usize) -> Visits {
        let all = self.noise.sigmas();
        let mut timesteps = self.spacing.timesteps(steps, all.len());
        let mut sigmas = sigmas_at(&timesteps, &all);
        if let Some(levels) = self.levels {
            sigmas = levels.spaced(sigmas[sigmas.len() - 1], sigmas[0], steps);
            timesteps = sigmas
                .iter()
                .map(|sigma| timestep_of(*sigma, &all))
                .collect();
        }
        // diffusers keeps timesteps in single precision.
        for timestep in &mut timesteps {
            *timestep = f64::from(*timestep as f32);
        }
        let largest = sigmas.iter().copied().fold(0.0, f64::max);
        let initial_scale = if self.spacing.spread == Spread::Leading {
            largest.hypot(1.0)
        } else {
            largest
        };
        Visits {
            timesteps,
            sigmas,
            initial_scale,
        }
    }

    /// The noise, which is the latents' derivative by `sigma`.
    pub(super) fn derivative(&self, sigma: f64) -> Estimate {
        let signal = signal(sigma);
        let epsilon = self.prediction.epsilon(signal, sigma * signal);
        Estimate {
            latents: epsilon.0 * signal,
            output: epsilon.1,
            clip: None,
        }
    }

    /// The denoised latents.
    pub(super) fn denoised(&self, sigma: f64, clip: Option<f64>) -> Estimate {
        let signal = signal(sigma);
        let denoised = self.prediction.denoised(signal, sigma * signal);
        Estimate {
            latents: denoised.0 * signal,
            output: denoised.1,
            clip,
        }
    }
}

/// What scales latents with this noise to unit variance.
pub(super) fn signal(sigma: f64) -> f64 {
    1.0 / sigma.hypot(1.0)
}
