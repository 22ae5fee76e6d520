//! UniPC (Zhao et al., *UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models*,
//! algorithms 1 and 2): a multistep predictor, whose latents a corrector moves once the network has seen them.
//!
//! The corrector starts from the latents before the predictor's step, as the predictor does, so the corrected latents
//! are the predicted ones plus a sum of predictions: one row of the table.

use super::Scheduler;
use super::levels::{End, Levels};
use super::multistep::{
    Equation, Solved, Stretch, Track, check_end, mix, order_at, refuse_flow, vandermonde,
};
use super::noise::{Betas, NoiseSchedule, Terminal};
use super::prediction::{Prediction, refuse_thresholding};
use super::reader::ConfigReader;
use super::spacing::{Spacing, Spread};
use super::start::Run;
use crate::diffusion::{SamplingPlan, SamplingStep};

struct UniPc {
    track: Track,
    prediction: Prediction,
    ends: End,
    solved: Solved,
    order: usize,
    /// Which `B(h)`: `h` itself, or `exp(h) - 1`.
    plain: bool,
    lower_order_final: bool,
    /// Steps whose latents are not corrected.
    uncorrected: Vec<usize>,
}

/// Reads what diffusers' `UniPCMultistepScheduler` reads.
pub(super) fn read(config: &mut ConfigReader<'_>, steps: usize) -> Box<dyn Scheduler> {
    let noise = NoiseSchedule::read(config, &Betas::USUAL, Terminal::Tiny);
    refuse_thresholding(config);
    refuse_flow(config);
    config.refuse_value("shift_terminal", "is for models trained by flow matching");
    config.refuse_value("solver_p", "replaces the predictor by another scheduler");
    // Names of related schedulers, which diffusers takes for the default.
    let types = [
        ("bh1", true),
        ("bh2", false),
        ("midpoint", false),
        ("heun", false),
        ("logrho", false),
    ];
    let solved = if config.flag("predict_x0", true) {
        Solved::Sample
    } else {
        Solved::Noise
    };
    let ends = End::read(config);
    check_end(config, solved, ends);
    Box::new(UniPc {
        prediction: Prediction::read(config, &Prediction::NAMES),
        ends,
        solved,
        order: config.count("solver_order", 1, 3, 2),
        plain: config.choice("solver_type", &types, false),
        lower_order_final: config.flag("lower_order_final", true),
        uncorrected: config.counts("disable_corrector"),
        track: Track {
            spacing: Spacing::read(config, Spread::Linspace, steps + 1, noise.len()),
            levels: Levels::read(config, false),
            least_lambda: f64::NEG_INFINITY,
            noise,
        },
    })
}

/// What a run visits.
#[derive(Clone, Copy)]
struct Visits<'v> {
    /// The noise levels of the whole run, that of its end too.
    sigmas: &'v [f64],
    run: Run,
}

impl Scheduler for UniPc {
    fn plan(&self, run: Run) -> SamplingPlan {
        let (timesteps, mut sigmas) = self.track.visits(run.steps, |t| self.track.whole(t));
        sigmas.push(self.ends.sigma(self.track.smallest(&sigmas)));
        let visits = Visits {
            sigmas: &sigmas,
            run,
        };
        let step = |(index, t): (usize, &f64)| self.step(*t, index, visits);
        let rows = timesteps.iter().enumerate().map(step).collect();
        run.plan(1.0, rows, |first| mix(sigmas[first]))
    }
}

impl UniPc {
    /// The order of the predictor that leaves level `index`.
    fn order_at(&self, index: usize, visits: Visits<'_>) -> usize {
        let left = visits.sigmas.len() - 1 - index;
        order_at(
            self.order,
            left,
            visits.run.taken(index),
            self.lower_order_final,
        )
    }

    /// The correction of the latents that the last predictor made, and the next predictor.
    fn step(&self, timestep: f64, index: usize, visits: Visits<'_>) -> SamplingStep {
        let last = index.checked_sub(1).filter(|_| visits.run.taken(index) > 0);
        let last = last.filter(|last| !self.uncorrected.contains(last));
        let mut estimates =
            last.map_or_else(Vec::new, |last| Move::new(self, last, visits).correction());
        let next = Move::new(self, index, visits);
        for weight in &mut estimates {
            *weight *= next.stretch.latents;
        }
        for (ago, weight) in next.prediction().into_iter().enumerate() {
            match estimates.get_mut(ago) {
                Some(sum) => *sum += weight,
                None => estimates.push(weight),
            }
        }
        SamplingStep {
            timestep,
            input_scale: 1.0,
            estimate: self.solved.estimate(self.prediction, visits.sigmas[index]),
            latents: vec![next.stretch.latents],
            estimates,
            output: 0.0,
            noise: 0.0,
        }
    }
}

/// The way between two noise levels, as the predictor goes it and the corrector again.
struct Move {
    stretch: Stretch,
    /// `B(h)` times the stretch's scale.
    scale: f64,
    /// Where the predictions before the last were made, in lengths of this stretch; then its end, 1.
    nodes: Vec<f64>,
    /// `b` of equation 6 of the paper.
    goals: Vec<f64>,
}

impl Move {
    /// The way that leaves level `index`.
    fn new(solver: &UniPc, index: usize, visits: Visits<'_>) -> Self {
        let (sigmas, order) = (visits.sigmas, solver.order_at(index, visits));
        let equation = Equation {
            solved: solver.solved,
            stochastic: false,
        };
        let stretch = Stretch::new(equation, sigmas[index], sigmas[index + 1]);
        let length = (sigmas[index] / sigmas[index + 1]).ln();
        let node = |ago: usize| (sigmas[index] / sigmas[index - ago]).ln() / length;
        let nodes = (1..order).map(node).chain([1.0]).collect();
        let (hh, whole) = (stretch.growth, stretch.whole());
        let b = if solver.plain { hh } else { whole };
        let mut phi = whole / hh - 1.0;
        let mut factorial = 1.0;
        let mut goals = Vec::new();
        for i in 1..=order {
            goals.push(phi * factorial / b);
            factorial *= (i + 1) as f64;
            phi = phi / hh - 1.0 / factorial;
        }
        Self {
            scale: stretch.scale * b,
            stretch,
            nodes,
            goals,
        }
    }

    /// The predictor's weights of differences from the last prediction, at the nodes but the last.
    fn predictor(&self) -> Vec<f64> {
        let inner = self.nodes.len() - 1;
        if inner == 1 {
            return vec![0.5];
        }
        vandermonde(&self.nodes[..inner], &self.goals[..inner])
    }

    /// The corrector's, at all nodes.
    fn corrector(&self) -> Vec<f64> {
        if self.nodes.len() == 1 {
            return vec![0.5];
        }
        vandermonde(&self.nodes, &self.goals)
    }

    /// The predictor's weights of the predictions, the last one first.
    fn prediction(&self) -> Vec<f64> {
        let mut weights = vec![-self.stretch.scale * self.stretch.whole()];
        for (rho, node) in self.predictor().iter().zip(&self.nodes) {
            let weight = -self.scale * rho / node;
            weights[0] -= weight;
            weights.push(weight);
        }
        weights
    }

    /// What the corrector adds to the predicted latents: weights of the prediction at the end, and
    /// of those before.
    fn correction(&self) -> Vec<f64> {
        let (before, after) = (self.predictor(), self.corrector());
        let end = -self.scale * after[after.len() - 1];
        let mut weights = vec![end, -end];
        for ((rho, old), node) in after.iter().zip(&before).zip(&self.nodes) {
            let weight = -self.scale * (rho - old) / node;
            weights[1] -= weight;
            weights.push(weight);
        }
        weights
    }
}
