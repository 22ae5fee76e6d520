//! Heun's method on the probability flow (Karras et al., *Elucidating the Design Space of
//! Diffusion-Based Generative Models*, algorithm 1).
//!
//! Each step but the last evaluates the network twice: after a step of Euler's the latents go back,
//! and move along the mean of the derivatives at both ends.

use super::Scheduler;
use super::exploding::{Exploding, signal};
use super::levels::Levels;
use super::noise::{Betas, NoiseSchedule, Terminal};
use super::prediction::{Prediction, clip};
use super::reader::ConfigReader;
use super::spacing::{Spacing, Spread};
use super::start::Run;
use crate::diffusion::{SamplingPlan, SamplingStep};

struct Heun {
    track: Exploding,
    clip: Option<f64>,
}

/// Reads what diffusers' `HeunDiscreteScheduler` reads.
pub(super) fn read(config: &mut ConfigReader<'_>, steps: usize) -> Box<dyn Scheduler> {
    let noise = NoiseSchedule::read(config, &Betas::HEUN, Terminal::Refused);
    let prediction = Prediction::read(config, &Prediction::NAMES);
    let spacing = Spacing::read(config, Spread::Linspace, steps, noise.len());
    let levels = Levels::read(config, false);
    let clip = clip(config, false);
    let track = Exploding {
        noise,
        prediction,
        spacing,
        levels,
    };
    Box::new(Heun { track, clip })
}

impl Scheduler for Heun {
    fn plan(&self, run: Run) -> SamplingPlan {
        let visits = self.track.visits(run.steps);
        let mut evaluations = Vec::new();
        let mut levels = visits.timesteps.iter().zip(&visits.sigmas).peekable();
        while let Some((t, sigma)) = levels.next() {
            let Some((next_t, next)) = levels.peek() else {
                evaluations.push(self.euler(*t, *sigma, 0.0));
                break;
            };
            evaluations.push(self.euler(*t, *sigma, **next));
            evaluations.push(self.correction(**next_t, *sigma, **next));
        }
        let run = run.of_evaluations(2);
        run.plan(visits.initial_scale, evaluations, |first| {
            visits.mix(first / 2)
        })
    }
}

impl Heun {
    /// Euler's step from one noise level to another; the derivative is `(x - denoised) / sigma`.
    fn euler(&self, timestep: f64, from: f64, to: f64) -> SamplingStep {
        let shrink = to / from;
        SamplingStep {
            timestep,
            input_scale: signal(from),
            estimate: self.track.denoised(from, self.clip),
            latents: vec![shrink],
            estimates: vec![1.0 - shrink],
            output: 0.0,
            noise: 0.0,
        }
    }

    /// The same step again, from the latents before it, with the derivative at its end too.
    fn correction(&self, timestep: f64, from: f64, to: f64) -> SamplingStep {
        let half = 0.5 * (to - from);
        SamplingStep {
            timestep,
            input_scale: signal(to),
            estimate: self.track.denoised(to, self.clip),
            latents: vec![half / to, 1.0 + half / from],
            estimates: vec![-half / to, -half / from],
            output: 0.0,
            noise: 0.0,
        }
    }
}
