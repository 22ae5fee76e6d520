//! DDPM (Ho, Jain and Abbeel, *Denoising Diffusion Probabilistic Models*, algorithm 2 and equation
//! 7): draws each step from the distribution of the latents before, given the predicted sample.

use super::Scheduler;
use super::noise::{Betas, NoiseSchedule, Terminal};
use super::prediction::{Prediction, clip, refuse_thresholding};
use super::reader::{ConfigReader, show};
use super::spacing::{Spacing, Spread, from_each_to_the_next};
use super::start::Run;
use crate::diffusion::{SamplingPlan, SamplingStep};

/// Variances below count as this: diffusers'.
const LEAST_VARIANCE: f64 = 1e-20;

struct Ddpm {
    noise: NoiseSchedule,
    prediction: Prediction,
    spacing: Spacing,
    clip: Option<f64>,
    /// The variance is the whole beta instead of that of the posterior.
    large: bool,
}

/// Reads what diffusers' `DDPMScheduler` reads.
pub(super) fn read(config: &mut ConfigReader<'_>, steps: usize) -> Box<dyn Scheduler> {
    let noise = NoiseSchedule::read(config, &Betas::DDPM, Terminal::Zero);
    let prediction = Prediction::read(config, &Prediction::NAMES);
    let spacing = Spacing::read(config, Spread::Leading, steps, noise.len());
    let clip = clip(config, true);
    refuse_thresholding(config);
    Box::new(Ddpm {
        noise,
        prediction,
        spacing,
        clip,
        large: is_large(config),
    })
}

/// `variance_type`.
fn is_large(config: &mut ConfigReader<'_>) -> bool {
    const KEY: &str = "variance_type";
    // diffusers gives NaN for `fixed_large_log`.
    let types = [
        ("fixed_small", false),
        ("fixed_small_log", false),
        ("fixed_large", true),
    ];
    match config.get(KEY) {
        Some(value) if value == "learned" || value == "learned_range" => {
            let what = "draws as much noise as the model says; dlc drops what the model says of it: take another scheduler, such as ddim";
            config.unsupported(KEY, format!("is {}, which {what}", show(value)));
            false
        }
        _ => config.choice(KEY, &types, false),
    }
}

impl Scheduler for Ddpm {
    fn plan(&self, run: Run) -> SamplingPlan {
        let timesteps = self.spacing.whole(run.steps, self.noise.len());
        let rows = from_each_to_the_next(&timesteps, |from, to| self.step(from, to));
        run.plan(1.0, rows, |first| self.noise.mix(timesteps[first]))
    }
}

impl Ddpm {
    /// The step from one timestep to another, or to the sample.
    fn step(&self, from: usize, to: Option<usize>) -> SamplingStep {
        let here = self.noise.alpha_bar(from);
        let there = to.map_or(1.0, |t| self.noise.alpha_bar(t));
        let alpha = here / there;
        let beta = 1.0 - alpha;
        let kept = (1.0 - there) / (1.0 - here);
        let variance = if self.large {
            beta
        } else {
            (kept * beta).max(LEAST_VARIANCE)
        };
        SamplingStep {
            timestep: from as f64,
            input_scale: 1.0,
            estimate: self.prediction.estimate(here, self.clip),
            latents: vec![alpha.sqrt() * kept],
            estimates: vec![there.sqrt() * beta / (1.0 - here)],
            output: 0.0,
            noise: if from > 0 { variance.sqrt() } else { 0.0 },
        }
    }
}
