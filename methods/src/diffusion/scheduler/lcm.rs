//! Latent consistency models (Luo et al., *Latent Consistency Models*, algorithm 3): each evaluation predicts the
//! sample, and new noise leads back to the next level.
//!
//! The timesteps are some of those that the model was distilled on.

use super::Scheduler;
use super::noise::{Betas, NoiseSchedule, Terminal};
use super::prediction::{Prediction, clip, refuse_thresholding};
use super::reader::ConfigReader;
use super::spacing::from_each_to_the_next;
use super::start::Run;
use crate::diffusion::{SamplingPlan, SamplingStep};

/// The standard deviation of the data: diffusers'.
const DATA: f64 = 0.5;

struct Lcm {
    noise: NoiseSchedule,
    prediction: Prediction,
    clip: Option<f64>,
    /// How many timesteps the model was distilled on.
    distilled: usize,
    timestep_scaling: f64,
}

/// Reads what diffusers' `LCMScheduler` reads.
pub(super) fn read(config: &mut ConfigReader<'_>, steps: usize) -> Box<dyn Scheduler> {
    let noise = NoiseSchedule::read(config, &Betas::LCM, Terminal::Zero);
    let prediction = Prediction::read(config, &Prediction::NAMES);
    let clip = clip(config, false);
    refuse_thresholding(config);
    let most = noise.len();
    let distilled = config.count("original_inference_steps", 1, most, most.min(50));
    if config.is_clean() && steps > distilled {
        config.bad(
            "steps",
            format!("is {steps}; it must be at most `original_inference_steps` ({distilled})"),
        );
    }
    let scaling = config.number("timestep_scaling", "above 0", |x| x > 0.0);
    Box::new(Lcm {
        noise,
        prediction,
        clip,
        distilled,
        timestep_scaling: scaling.unwrap_or(10.0),
    })
}

impl Scheduler for Lcm {
    fn plan(&self, run: Run) -> SamplingPlan {
        let timesteps = self.timesteps(run.steps);
        let rows = from_each_to_the_next(&timesteps, |from, to| self.step(from, to));
        run.plan(1.0, rows, |first| self.noise.mix(timesteps[first]))
    }
}

impl Lcm {
    /// Evenly chosen out of those of the distillation, from the last one down.
    fn timesteps(&self, steps: usize) -> Vec<usize> {
        let stride = self.noise.len() / self.distilled;
        let spacing = self.distilled as f64 / steps as f64;
        (0..steps)
            .map(|i| (self.distilled - (i as f64 * spacing) as usize) * stride - 1)
            .collect()
    }

    /// The step from one timestep to another, or to the sample.
    fn step(&self, from: usize, to: Option<usize>) -> SamplingStep {
        // Without noise the latents are the sample.
        let scaled = from as f64 * self.timestep_scaling;
        let spread = scaled.hypot(DATA);
        let (kept, predicted) = ((DATA / spread).powi(2), scaled / spread);
        let there = to.map_or(1.0, |t| self.noise.alpha_bar(t));
        SamplingStep {
            timestep: from as f64,
            input_scale: 1.0,
            estimate: self
                .prediction
                .estimate(self.noise.alpha_bar(from), self.clip),
            latents: vec![there.sqrt() * kept],
            estimates: vec![there.sqrt() * predicted],
            output: 0.0,
            noise: (1.0 - there).sqrt(),
        }
    }
}
