//! Euler's method for models trained by flow matching (Lipman et al., *Flow Matching for Generative Modeling*; the
//! noise levels of Esser et al., *Scaling Rectified Flow Transformers for High-Resolution Image Synthesis*).
//!
//! The latents are `(1 - sigma) * x_0 + sigma * epsilon`, and the network says `epsilon - x_0`.

use super::Scheduler;
use super::levels::Levels;
use super::reader::ConfigReader;
use super::start::{Mix, Run};
use crate::diffusion::{Estimate, SamplingPlan, SamplingStep};

/// The longest training that is read, in timesteps.
const MOST_TIMESTEPS: usize = 100_000;

struct FlowMatch {
    train: usize,
    shift: f64,
    /// The last level, which the others are stretched to.
    terminal: Option<f64>,
    levels: Option<Levels>,
    /// The level is the share of the signal instead of the noise.
    inverted: bool,
    /// Goes to the sample and back with new noise.
    stochastic: bool,
}

/// Reads what diffusers' `FlowMatchEulerDiscreteScheduler` reads.
pub(super) fn read(config: &mut ConfigReader<'_>, _: usize) -> Box<dyn Scheduler> {
    config.refuse(
        "use_dynamic_shifting",
        "shifts the noise levels by the size of the image",
    );
    let terminal = config.number("shift_terminal", "from 0 to below 1", |x| {
        (0.0..1.0).contains(&x)
    });
    Box::new(FlowMatch {
        train: config.count("num_train_timesteps", 2, MOST_TIMESTEPS, 1000),
        shift: config
            .number("shift", "above 0", |x| x > 0.0)
            .unwrap_or(1.0),
        terminal: terminal.filter(|level| *level > 0.0),
        levels: Levels::read(config, false),
        inverted: config.flag("invert_sigmas", false),
        stochastic: config.flag("stochastic_sampling", false),
    })
}

impl Scheduler for FlowMatch {
    fn plan(&self, run: Run) -> SamplingPlan {
        let mut sigmas = self.sigmas(run.steps);
        if self.inverted {
            for sigma in &mut sigmas {
                *sigma = 1.0 - *sigma;
            }
        }
        sigmas.push(if self.inverted { 1.0 } else { 0.0 });
        let rows = sigmas.windows(2).map(|ends| self.step(ends[0], ends[1]));
        run.plan(1.0, rows.collect(), |first| Mix {
            image: 1.0 - sigmas[first],
            noise: sigmas[first],
        })
    }
}

impl FlowMatch {
    fn shifted(&self, sigma: f64) -> f64 {
        self.shift * sigma / (1.0 + (self.shift - 1.0) * sigma)
    }

    /// The levels of a run. As diffusers has it, those of the training are shifted, and the ones
    /// that are spaced between them again.
    fn sigmas(&self, steps: usize) -> Vec<f64> {
        let (max, min) = (self.shifted(1.0), self.shifted(1.0 / self.train as f64));
        let stride = if steps > 1 {
            (min - max) / (steps - 1) as f64
        } else {
            0.0
        };
        let mut sigmas: Vec<f64> = (0..steps)
            .map(|i| self.shifted(max + i as f64 * stride))
            .collect();
        let last = sigmas[steps - 1];
        if let Some(terminal) = self.terminal {
            let scale = (1.0 - last) / (1.0 - terminal);
            for sigma in &mut sigmas {
                *sigma = 1.0 - (1.0 - *sigma) / scale;
            }
        }
        match self.levels {
            Some(levels) => levels.spaced(sigmas[steps - 1], sigmas[0], steps),
            None => sigmas,
        }
    }

    /// The step from one noise level to another.
    fn step(&self, from: f64, to: f64) -> SamplingStep {
        let (latents, estimate, noise) = if self.stochastic {
            (1.0 - to, (to - 1.0) * from, to)
        } else {
            (1.0, to - from, 0.0)
        };
        SamplingStep {
            // diffusers keeps timesteps in single precision.
            timestep: f64::from((from * self.train as f64) as f32),
            input_scale: 1.0,
            estimate: Estimate::OUTPUT,
            latents: vec![latents],
            estimates: vec![estimate],
            output: 0.0,
            noise,
        }
    }
}
