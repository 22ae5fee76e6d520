//! DEIS (Zhang and Chen, *Fast Sampling of Diffusion Models with Exponential Integrator*, section 3.3): the
//! predicted noise is a polynomial in the logarithm of the noise level through the last predictions.

use super::Scheduler;
use super::exploding::signal;
use super::levels::Levels;
use super::multistep::{SHORT, Solved, Track, mix, order_at, refuse_flow, vandermonde};
use super::noise::{Betas, NoiseSchedule, Terminal};
use super::prediction::{Prediction, refuse_thresholding};
use super::reader::ConfigReader;
use super::spacing::{Spacing, Spread};
use super::start::Run;
use crate::diffusion::{SamplingPlan, SamplingStep};

struct Deis {
    track: Track,
    prediction: Prediction,
    order: usize,
    lower_order_final: bool,
}

/// Reads what diffusers' `DEISMultistepScheduler` reads.
pub(super) fn read(config: &mut ConfigReader<'_>, steps: usize) -> Box<dyn Scheduler> {
    let noise = NoiseSchedule::read(config, &Betas::USUAL, Terminal::Refused);
    refuse_thresholding(config);
    refuse_flow(config);
    // Beside its own names diffusers takes those of related schedulers for these.
    let algorithms = ["deis", "dpmsolver", "dpmsolver++"].map(|name| (name, ()));
    config.choice("algorithm_type", &algorithms, ());
    let types = ["logrho", "midpoint", "heun", "bh1", "bh2"].map(|name| (name, ()));
    config.choice("solver_type", &types, ());
    Box::new(Deis {
        prediction: Prediction::read(config, &Prediction::NAMES),
        order: config.count("solver_order", 1, 3, 2),
        lower_order_final: config.flag("lower_order_final", true),
        track: Track {
            spacing: Spacing::read(config, Spread::Linspace, steps + 1, noise.len()),
            levels: Levels::read(config, false),
            least_lambda: f64::NEG_INFINITY,
            noise,
        },
    })
}

impl Scheduler for Deis {
    fn plan(&self, run: Run) -> SamplingPlan {
        let (timesteps, mut sigmas) = self.track.visits(run.steps, |t| self.track.whole(t));
        sigmas.push(self.track.smallest(&sigmas));
        let count = timesteps.len();
        let step = |(index, t): (usize, &f64)| {
            let lower = self.lower_order_final && count < SHORT;
            let order = order_at(self.order, count - index, run.taken(index), lower);
            self.step(*t, &sigmas[index + 1 - order..index + 2])
        };
        let rows = timesteps.iter().enumerate().map(step).collect();
        run.plan(1.0, rows, |first| mix(sigmas[first]))
    }
}

impl Deis {
    /// The step between the last two of these noise levels; those before are of the predictions
    /// that count.
    fn step(&self, timestep: f64, sigmas: &[f64]) -> SamplingStep {
        let (from, to) = (sigmas[sigmas.len() - 2], sigmas[sigmas.len() - 1]);
        let nodes = sigmas[..sigmas.len() - 1].iter().rev();
        let nodes: Vec<f64> = nodes.map(|sigma| (sigma / from).ln()).collect();
        let moments: Vec<f64> = moments((to / from).ln())
            .into_iter()
            .take(nodes.len())
            .collect();
        let scale = signal(to) * from;
        SamplingStep {
            timestep,
            input_scale: 1.0,
            estimate: Solved::Noise.estimate(self.prediction, from),
            latents: vec![signal(to) / signal(from)],
            estimates: vandermonde(&nodes, &moments)
                .into_iter()
                .map(|weight| scale * weight)
                .collect(),
            output: 0.0,
            noise: 0.0,
        }
    }
}

/// The integrals of `u^k exp(u)` from 0 to `end`, for `k` of 0, 1 and 2.
fn moments(end: f64) -> [f64; 3] {
    let zeroth = end.exp_m1();
    let first = end * end.exp() - zeroth;
    [zeroth, first, end * end * end.exp() - 2.0 * first]
}
