//! DDIM (Song, Meng and Ermon, *Denoising Diffusion Implicit Models*, equation 12 with sigma 0).

use super::Scheduler;
use super::noise::{Betas, NoiseSchedule, Terminal};
use super::prediction::{Prediction, clip, refuse_thresholding};
use super::reader::ConfigReader;
use super::spacing::{Spacing, Spread};
use super::start::Run;
use crate::diffusion::{SamplingPlan, SamplingStep};

struct Ddim {
    noise: NoiseSchedule,
    prediction: Prediction,
    spacing: Spacing,
    clip: Option<f64>,
    final_alpha_bar: f64,
}

/// Reads what diffusers' `DDIMScheduler` reads.
pub(super) fn read(config: &mut ConfigReader<'_>, steps: usize) -> Box<dyn Scheduler> {
    let noise = NoiseSchedule::read(config, &Betas::USUAL, Terminal::Zero);
    let prediction = Prediction::read(config, &Prediction::NAMES);
    let spacing = Spacing::read(config, Spread::Leading, steps, noise.len());
    let clip = clip(config, true);
    refuse_thresholding(config);
    let final_alpha_bar = if config.flag("set_alpha_to_one", true) {
        1.0
    } else {
        noise.alpha_bar(0)
    };
    Box::new(Ddim {
        noise,
        prediction,
        spacing,
        clip,
        final_alpha_bar,
    })
}

impl Scheduler for Ddim {
    fn plan(&self, run: Run) -> SamplingPlan {
        // diffusers steps back by a whole stride whatever the spacing, even where the next timestep
        // is another.
        let stride = self.noise.len() / run.steps;
        let timesteps = self.spacing.whole(run.steps, self.noise.len());
        let rows = timesteps.iter();
        let rows = rows.map(|t| self.step(*t, t.checked_sub(stride))).collect();
        run.plan(1.0, rows, |first| self.noise.mix(timesteps[first]))
    }
}

impl Ddim {
    /// The step from one timestep to another, or to the sample.
    fn step(&self, from: usize, to: Option<usize>) -> SamplingStep {
        let here = self.noise.alpha_bar(from);
        let there = to.map_or(self.final_alpha_bar, |t| self.noise.alpha_bar(t));
        let (signal, noise) = (here.sqrt(), (1.0 - here).sqrt());
        // The noise that is put back is the network's own, not what is left beside the clipped
        // sample.
        let epsilon = self.prediction.epsilon(signal, noise);
        let back = (1.0 - there).sqrt();
        SamplingStep {
            timestep: from as f64,
            input_scale: 1.0,
            estimate: self.prediction.estimate(here, self.clip),
            latents: vec![back * epsilon.0],
            estimates: vec![there.sqrt()],
            output: back * epsilon.1,
            noise: 0.0,
        }
    }
}
