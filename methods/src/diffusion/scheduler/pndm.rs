//! PLMS, the linear multistep half of PNDM (Liu et al., *Pseudo Numerical Methods for Diffusion
//! Models on Manifolds*, algorithm 2).
//!
//! A step is DDIM's, with the noise a combination of the last four predictions. The history is
//! filled either by repeating the first step (`skip_prk_steps`, as in Stable Diffusion), or by
//! three Runge-Kutta steps of four evaluations each.

use super::Scheduler;
use super::noise::{Betas, NoiseSchedule, Terminal};
use super::prediction::Prediction;
use super::reader::ConfigReader;
use super::spacing::{Spacing, Spread};
use super::start::Run;
use crate::diffusion::{Estimate, SamplingPlan, SamplingStep};

/// Runge-Kutta steps, and evaluations in each.
const WARM_UP: usize = 3;
const EVALUATIONS: usize = 4;
/// Adams-Bashforth coefficients for one to four predictions, the last prediction first (equation 9
/// of the paper and below).
const MULTISTEP: [&[f64]; 4] = [
    &[1.0],
    &[1.5, -0.5],
    &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
    &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
];

struct Pndm {
    noise: NoiseSchedule,
    prediction: Prediction,
    spacing: Spacing,
    final_alpha_bar: f64,
    runge_kutta: bool,
}

/// Reads what diffusers' `PNDMScheduler` reads.
pub(super) fn read(config: &mut ConfigReader<'_>, steps: usize) -> Box<dyn Scheduler> {
    let noise = NoiseSchedule::read(config, &Betas::USUAL, Terminal::Refused);
    let prediction = Prediction::read(config, &Prediction::NAMES[..2]);
    let spacing = Spacing::read(config, Spread::Leading, steps, noise.len());
    let final_alpha_bar = if config.flag("set_alpha_to_one", false) {
        1.0
    } else {
        noise.alpha_bar(0)
    };
    let runge_kutta = !config.flag("skip_prk_steps", false);
    if runge_kutta && steps <= WARM_UP {
        config.bad(
            "steps",
            format!(
                "is {steps}; without `skip_prk_steps` there must be at least {}",
                WARM_UP + 1
            ),
        );
    }
    Box::new(Pndm {
        noise,
        prediction,
        spacing,
        final_alpha_bar,
        runge_kutta,
    })
}

/// A step between two timesteps, as a combination of predictions.
struct Move {
    /// The timestep that the network takes.
    timestep: i64,
    from: i64,
    to: i64,
    /// How many evaluations ago the latents were those that the step starts from.
    anchor: usize,
    /// Weights of predictions, by how many evaluations ago they were made.
    weights: Vec<(usize, f64)>,
}

impl Scheduler for Pndm {
    fn plan(&self, run: Run) -> SamplingPlan {
        let mut visited = self.spacing.whole(run.steps, self.noise.len());
        let stride = (self.noise.len() / run.steps) as i64;
        if self.runge_kutta {
            let timesteps: Vec<i64> = visited.iter().map(|t| *t as i64).collect();
            let moves = with_runge_kutta(&timesteps, stride);
            let rows = moves.iter().map(|step| self.step(step)).collect();
            return run.plan(1.0, rows, |first| self.noise.mix(visited[first]));
        }
        // The second timestep is visited twice. A run of an image begins within this list, and
        // takes the second timestep of its own for the repeated one, as in diffusers.
        if let Some(second) = visited.get(1).copied() {
            visited.insert(1, second);
        }
        let moves = with_repetition(&visited[run.first(visited.len())..], stride);
        let rows = moves.iter().map(|step| self.step(step)).collect();
        run.plan_of_rest(1.0, rows, |first| self.noise.mix(visited[first]))
    }

    fn whole_only(&self) -> Option<(&'static str, &'static str)> {
        let problem = "is false, and the three steps of Runge and Kutta that it asks for begin a whole run: take another scheduler";
        self.runge_kutta.then_some(("skip_prk_steps", problem))
    }
}

impl Pndm {
    /// DDIM's step in the latents and the combined prediction: equation 9 of the paper says the
    /// same in other words.
    fn step(&self, step: &Move) -> SamplingStep {
        let alpha_bar =
            |t: i64| usize::try_from(t).map_or(self.final_alpha_bar, |t| self.noise.alpha_bar(t));
        let (here, there) = (alpha_bar(step.from), alpha_bar(step.to));
        let (signal, noise) = (here.sqrt(), (1.0 - here).sqrt());
        let epsilon = self.prediction.epsilon(signal, noise);
        let scale = there.sqrt() / signal;
        let shift = (1.0 - there).sqrt() - scale * noise;
        let mut latents = vec![0.0; step.anchor + 1];
        latents[step.anchor] = scale + shift * epsilon.0;
        let oldest = step
            .weights
            .iter()
            .map(|weight| weight.0)
            .max()
            .unwrap_or(0);
        let mut estimates = vec![0.0; oldest + 1];
        for (ago, weight) in &step.weights {
            estimates[*ago] += shift * epsilon.1 * weight;
        }
        SamplingStep {
            timestep: step.timestep as f64,
            input_scale: 1.0,
            estimate: Estimate::OUTPUT,
            latents,
            estimates,
            output: 0.0,
            noise: 0.0,
        }
    }
}

/// The first step is taken twice, the second time with the mean of the predictions at both of its
/// ends.
fn with_repetition(timesteps: &[usize], stride: i64) -> Vec<Move> {
    let mut history = Vec::new();
    let step = |(index, t): (usize, &usize)| {
        let timestep = *t as i64;
        if index != 1 {
            return multistep(&mut history, index, timestep, stride);
        }
        Move {
            timestep,
            from: timestep + stride,
            to: timestep,
            anchor: 1,
            weights: vec![(0, 0.5), (1, 0.5)],
        }
    };
    timesteps.iter().enumerate().map(step).collect()
}

/// Three steps of Runge-Kutta's fourth order, whose first predictions then are the history.
fn with_runge_kutta(timesteps: &[i64], stride: i64) -> Vec<Move> {
    let half = stride / 2;
    let mut moves = Vec::new();
    let mut history = Vec::new();
    for ends in timesteps.windows(2).take(WARM_UP) {
        let (from, to) = (ends[0], ends[1]);
        history.push(moves.len());
        let sixths = vec![
            (3, 1.0 / 6.0),
            (2, 1.0 / 3.0),
            (1, 1.0 / 3.0),
            (0, 1.0 / 6.0),
        ];
        moves.push(Move {
            timestep: from,
            from,
            to: from - half,
            anchor: 0,
            weights: vec![(0, 1.0)],
        });
        moves.push(Move {
            timestep: to + half,
            from,
            to: to + half,
            anchor: 1,
            weights: vec![(0, 1.0)],
        });
        moves.push(Move {
            timestep: to + half,
            from,
            to,
            anchor: 2,
            weights: vec![(0, 1.0)],
        });
        moves.push(Move {
            timestep: to,
            from,
            to,
            anchor: EVALUATIONS - 1,
            weights: sixths,
        });
    }
    for t in timesteps.iter().skip(WARM_UP) {
        moves.push(multistep(&mut history, moves.len(), *t, stride));
    }
    moves
}

/// A step of PLMS as evaluation number `index`; `history` holds the numbers of the evaluations that
/// count.
fn multistep(history: &mut Vec<usize>, index: usize, timestep: i64, stride: i64) -> Move {
    history.push(index);
    let coefficients = MULTISTEP[history.len().min(MULTISTEP.len()) - 1];
    let weights = history
        .iter()
        .rev()
        .zip(coefficients)
        .map(|(made, weight)| (index - made, *weight))
        .collect();
    Move {
        timestep,
        from: timestep,
        to: timestep - stride,
        anchor: 0,
        weights,
    }
}
