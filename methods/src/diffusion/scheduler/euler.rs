//! Euler's method on the probability flow (Karras et al., *Elucidating the Design Space of
//! Diffusion-Based Generative Models*, algorithm 2 without churn).
//!
//! The latents are `x_0 + sigma * epsilon`: the noise grows, the signal stays. The network sees
//! them scaled back to unit variance.

use super::Scheduler;
use super::noise::{NoiseSchedule, Prediction, Terminal};
use super::reader::ConfigReader;
use super::spacing::{Spacing, Spread, karras, sigmas_at, timestep_of};
use crate::diffusion::{Estimate, SamplingPlan, SamplingStep};

struct Euler {
    noise: NoiseSchedule,
    prediction: Prediction,
    spacing: Spacing,
    karras: Option<Range>,
    /// The network takes a quarter of the logarithm of the noise level instead of a timestep.
    continuous: bool,
    ends: End,
}

/// `sigma_min` and `sigma_max`, which overrule those of the schedule.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) min: Option<f64>,
    pub(super) max: Option<f64>,
}

impl Range {
    /// Reads the range of Karras' noise levels, if they are asked for.
    pub(super) fn read(config: &mut ConfigReader<'_>) -> Option<Self> {
        let mut positive = |key| config.number(key, "above 0", |x| x > 0.0);
        let range = Self {
            min: positive("sigma_min"),
            max: positive("sigma_max"),
        };
        config.flag("use_karras_sigmas", false).then_some(range)
    }
}

/// The noise level at which a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// None.
    Zero,
    /// That of the training's first timestep.
    SigmaMin,
}

impl End {
    /// Reads `final_sigmas_type`.
    pub(super) fn read(config: &mut ConfigReader<'_>) -> Self {
        config.choice(
            "final_sigmas_type",
            &[("zero", Self::Zero), ("sigma_min", Self::SigmaMin)],
            Self::Zero,
        )
    }

    /// The level itself.
    pub(super) fn sigma(self, sigmas: &[f64]) -> f64 {
        if self == Self::Zero { 0.0 } else { sigmas[0] }
    }
}

/// Reads what diffusers' `EulerDiscreteScheduler` reads.
pub(super) fn read(config: &mut ConfigReader<'_>, steps: usize) -> Box<dyn Scheduler> {
    let noise = NoiseSchedule::read(config, Terminal::Tiny);
    let prediction = Prediction::read(config, &Prediction::NAMES);
    let spacing = Spacing::read(config, Spread::Linspace, steps, noise.len());
    config.choice("interpolation_type", &[("linear", ())], ());
    config.refuse(
        "use_exponential_sigmas",
        "spaces the noise levels exponentially",
    );
    config.refuse(
        "use_beta_sigmas",
        "spaces the noise levels by a beta distribution",
    );
    let karras = Range::read(config);
    // diffusers heeds it for this prediction only.
    let continuous = config.choice(
        "timestep_type",
        &[("discrete", false), ("continuous", true)],
        false,
    ) && prediction == Prediction::Velocity;
    let ends = End::read(config);
    Box::new(Euler {
        noise,
        prediction,
        spacing,
        karras,
        continuous,
        ends,
    })
}

impl Scheduler for Euler {
    fn plan(&self, steps: usize) -> SamplingPlan {
        let all = self.noise.sigmas();
        let mut timesteps = self.spacing.timesteps(steps, all.len());
        let mut sigmas = sigmas_at(&timesteps, &all);
        if let Some(range) = self.karras {
            sigmas = karras(
                range.min.unwrap_or(sigmas[steps - 1]),
                range.max.unwrap_or(sigmas[0]),
                steps,
            );
            timesteps = sigmas
                .iter()
                .map(|sigma| timestep_of(*sigma, &all))
                .collect();
        }
        if self.continuous {
            timesteps = sigmas.iter().map(|sigma| 0.25 * sigma.ln()).collect();
        }
        let largest = sigmas[0];
        sigmas.push(self.ends.sigma(&all));
        let initial_scale = if self.spacing.spread == Spread::Leading {
            largest.hypot(1.0)
        } else {
            largest
        };
        let steps = timesteps
            .iter()
            .zip(sigmas.windows(2))
            .map(|(t, ends)| self.step(*t, ends[0], ends[1]))
            .collect();
        SamplingPlan {
            initial_scale,
            steps,
        }
    }
}

impl Euler {
    /// The step from one noise level to another, along the noise in the latents.
    fn step(&self, timestep: f64, from: f64, to: f64) -> SamplingStep {
        let signal = 1.0 / from.hypot(1.0);
        let epsilon = self.prediction.epsilon(signal, from * signal);
        SamplingStep {
            // diffusers keeps timesteps in single precision.
            timestep: f64::from(timestep as f32),
            input_scale: signal,
            estimate: Estimate {
                latents: epsilon.0 * signal,
                output: epsilon.1,
                clip: None,
            },
            latents: vec![1.0],
            estimates: vec![to - from],
            output: 0.0,
        }
    }
}
