//! Euler's method with ancestral sampling (k-diffusion): a step goes below the noise level that is
//! due, and new noise leads back up to it.

use super::Scheduler;
use super::exploding::{Exploding, signal};
use super::noise::{Betas, NoiseSchedule, Terminal};
use super::prediction::Prediction;
use super::reader::ConfigReader;
use super::spacing::{Spacing, Spread};
use super::start::Run;
use crate::diffusion::{SamplingPlan, SamplingStep};

struct EulerAncestral {
    track: Exploding,
}

/// Reads what diffusers' `EulerAncestralDiscreteScheduler` reads.
pub(super) fn read(config: &mut ConfigReader<'_>, steps: usize) -> Box<dyn Scheduler> {
    let noise = NoiseSchedule::read(config, &Betas::USUAL, Terminal::Tiny);
    Box::new(EulerAncestral {
        track: Exploding {
            prediction: Prediction::read(config, &Prediction::NAMES[..2]),
            spacing: Spacing::read(config, Spread::Linspace, steps, noise.len()),
            levels: None,
            noise,
        },
    })
}

impl Scheduler for EulerAncestral {
    fn plan(&self, run: Run) -> SamplingPlan {
        let mut visits = self.track.visits(run.steps);
        visits.sigmas.push(0.0);
        let levels = visits.timesteps.iter().zip(visits.sigmas.windows(2));
        let rows = levels.map(|(t, ends)| self.step(*t, ends[0], ends[1]));
        run.plan(visits.initial_scale, rows.collect(), |first| {
            visits.mix(first)
        })
    }
}

impl EulerAncestral {
    /// The step from one noise level to another: the squares of what is left of the noise and of
    /// the new noise add up to the square of the level.
    fn step(&self, timestep: f64, from: f64, to: f64) -> SamplingStep {
        let left = to * to / from;
        SamplingStep {
            timestep,
            input_scale: signal(from),
            estimate: self.track.derivative(from),
            latents: vec![1.0],
            estimates: vec![left - from],
            output: 0.0,
            noise: to * (1.0 - (to / from).powi(2)).sqrt(),
        }
    }
}
