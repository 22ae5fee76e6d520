//! The linear multistep method on the probability flow (Katherine Crowson's k-diffusion; Adams and Bashforth's
//! method for steps of any length): the noise is a polynomial in `sigma` through the last four predictions.

use super::Scheduler;
use super::exploding::{Exploding, signal};
use super::levels::{Levels, Rule};
use super::noise::{Betas, NoiseSchedule, Terminal};
use super::prediction::Prediction;
use super::reader::ConfigReader;
use super::spacing::{Spacing, Spread};
use super::start::Run;
use crate::diffusion::{SamplingPlan, SamplingStep};

/// The most predictions that count: diffusers' `order`.
const ORDER: usize = 4;

struct Lms {
    track: Exploding,
}

/// Reads what diffusers' `LMSDiscreteScheduler` reads.
pub(super) fn read(config: &mut ConfigReader<'_>, steps: usize) -> Box<dyn Scheduler> {
    let noise = NoiseSchedule::read(config, &Betas::USUAL, Terminal::Refused);
    let prediction = Prediction::read(config, &Prediction::NAMES);
    let spacing = Spacing::read(config, Spread::Linspace, steps, noise.len());
    let levels = Levels::read(config, false);
    // This scheduler of diffusers asks nobody for the range of Karras' levels.
    let levels = levels.map(|levels| match levels.rule {
        Rule::Karras => levels.of_schedule(),
        _ => levels,
    });
    Box::new(Lms {
        track: Exploding {
            noise,
            prediction,
            spacing,
            levels,
        },
    })
}

impl Scheduler for Lms {
    fn plan(&self, run: Run) -> SamplingPlan {
        let mut visits = self.track.visits(run.steps);
        visits.sigmas.push(0.0);
        let step = |(index, timestep): (usize, &f64)| {
            let from = visits.sigmas[index];
            let nodes: Vec<f64> = visits.sigmas[..=index]
                .iter()
                .rev()
                .take(ORDER.min(run.taken(index) + 1))
                .copied()
                .collect();
            SamplingStep {
                timestep: *timestep,
                input_scale: signal(from),
                estimate: self.track.derivative(from),
                latents: vec![1.0],
                estimates: integrals(&nodes, from, visits.sigmas[index + 1]),
                output: 0.0,
                noise: 0.0,
            }
        };
        let rows = visits.timesteps.iter().enumerate().map(step).collect();
        run.plan(visits.initial_scale, rows, |first| visits.mix(first))
    }
}

/// The integral from one level to another of each polynomial that is 1 at one of the nodes and 0 at
/// the others. Gauss' rule with two points is exact for up to four nodes.
fn integrals(nodes: &[f64], from: f64, to: f64) -> Vec<f64> {
    let (middle, half) = (0.5 * (from + to), 0.5 * (to - from));
    let points = [-1.0, 1.0].map(|side: f64| middle + side * half / 3f64.sqrt());
    let value = |of: usize, x: f64| -> f64 {
        let others = nodes.iter().enumerate().filter(|(at, _)| *at != of);
        others
            .map(|(_, node)| (x - node) / (nodes[of] - node))
            .product()
    };
    (0..nodes.len())
        .map(|of| half * points.iter().map(|x| value(of, *x)).sum::<f64>())
        .collect()
}
