//! Euler's method on the probability flow (Karras et al., *Elucidating the Design Space of
//! Diffusion-Based Generative Models*, algorithm 2 without churn).

use super::Scheduler;
use super::exploding::{Exploding, signal};
use super::levels::{End, Levels};
use super::noise::{Betas, NoiseSchedule, Terminal};
use super::prediction::Prediction;
use super::reader::ConfigReader;
use super::spacing::{Spacing, Spread};
use super::start::Run;
use crate::diffusion::{SamplingPlan, SamplingStep};

struct Euler {
    track: Exploding,
    /// The network takes a quarter of the logarithm of the noise level instead of a timestep.
    continuous: bool,
    ends: End,
}

/// Reads what diffusers' `EulerDiscreteScheduler` reads.
pub(super) fn read(config: &mut ConfigReader<'_>, steps: usize) -> Box<dyn Scheduler> {
    let noise = NoiseSchedule::read(config, &Betas::USUAL, Terminal::Tiny);
    let prediction = Prediction::read(config, &Prediction::NAMES);
    let spacing = Spacing::read(config, Spread::Linspace, steps, noise.len());
    config.choice("interpolation_type", &[("linear", ())], ());
    let levels = Levels::read(config, false);
    // diffusers heeds it for this prediction only.
    let continuous = config.choice(
        "timestep_type",
        &[("discrete", false), ("continuous", true)],
        false,
    ) && prediction == Prediction::Velocity;
    let ends = End::read(config);
    let track = Exploding {
        noise,
        prediction,
        spacing,
        levels,
    };
    Box::new(Euler {
        track,
        continuous,
        ends,
    })
}

impl Scheduler for Euler {
    fn plan(&self, run: Run) -> SamplingPlan {
        let mut visits = self.track.visits(run.steps);
        if self.continuous {
            let timestep = |sigma: &f64| f64::from((0.25 * sigma.ln()) as f32);
            visits.timesteps = visits.sigmas.iter().map(timestep).collect();
        }
        visits
            .sigmas
            .push(self.ends.sigma(self.track.noise.sigma(0)));
        let levels = visits.timesteps.iter().zip(visits.sigmas.windows(2));
        let rows = levels.map(|(t, ends)| self.step(*t, ends[0], ends[1]));
        run.plan(visits.initial_scale, rows.collect(), |first| {
            visits.mix(first)
        })
    }
}

impl Euler {
    /// The step from one noise level to another, along the noise in the latents.
    fn step(&self, timestep: f64, from: f64, to: f64) -> SamplingStep {
        SamplingStep {
            timestep,
            input_scale: signal(from),
            estimate: self.track.derivative(from),
            latents: vec![1.0],
            estimates: vec![to - from],
            output: 0.0,
            noise: 0.0,
        }
    }
}
