//! DPM-Solver++ and DPM-Solver, multistep, of first to third order (Lu et al., *DPM-Solver++: Fast Solver for
//! Guided Sampling of Diffusion Probabilistic Models*, algorithm 2 and appendix A).
//!
//! Integrates the predicted sample, or noise, over `lambda`, the logarithm of signal over noise.

use super::Scheduler;
use super::levels::{End, Levels};
use super::multistep::{
    Equation, SHORT, Solved, Stretch, Track, check_end, mix, order_at, refuse_flow,
};
use super::noise::{Betas, NoiseSchedule, Terminal};
use super::prediction::{Prediction, refuse_thresholding};
use super::reader::{ConfigReader, show};
use super::spacing::{Spacing, Spread};
use super::start::Run;
use crate::diffusion::{SamplingPlan, SamplingStep};

struct DpmSolver {
    track: Track,
    prediction: Prediction,
    /// Whether timesteps of Karras' noise levels are rounded; else they are cut off.
    rounds: bool,
    ends: End,
    equation: Equation,
    order: usize,
    heun: bool,
    lower_order_final: bool,
    euler_at_final: bool,
}

/// Reads what diffusers' `DPMSolverMultistepScheduler` reads.
pub(super) fn read(config: &mut ConfigReader<'_>, steps: usize) -> Box<dyn Scheduler> {
    let noise = NoiseSchedule::read(config, &Betas::USUAL, Terminal::Tiny);
    refuse_thresholding(config);
    refuse_flow(config);
    // Names of related schedulers, which diffusers takes for these.
    let equation = |solved, stochastic| Equation { solved, stochastic };
    let usual = equation(Solved::Sample, false);
    let algorithms = [
        ("dpmsolver++", usual),
        ("sde-dpmsolver++", equation(Solved::Sample, true)),
        ("dpmsolver", equation(Solved::Noise, false)),
        ("sde-dpmsolver", equation(Solved::Noise, true)),
        ("deis", usual),
    ];
    let equation = config.choice("algorithm_type", &algorithms, usual);
    let types = [
        ("midpoint", false),
        ("heun", true),
        ("logrho", false),
        ("bh1", false),
        ("bh2", false),
    ];
    let order = config.count("solver_order", 1, 3, 2);
    let least_lambda = least_lambda(config, &noise);
    let ends = End::read(config);
    check_end(config, equation.solved, ends);
    if order == 3
        && equation
            == (Equation {
                solved: Solved::Noise,
                stochastic: true,
            })
    {
        config.bad("solver_order", "is 3; `sde-dpmsolver` has 1 and 2".into());
    }
    Box::new(DpmSolver {
        prediction: Prediction::read(config, &Prediction::NAMES),
        rounds: config
            .get("beta_schedule")
            .is_none_or(|name| name != "squaredcos_cap_v2"),
        ends,
        equation,
        order,
        heun: config.choice("solver_type", &types, false),
        lower_order_final: config.flag("lower_order_final", true),
        euler_at_final: config.flag("euler_at_final", false),
        track: Track {
            spacing: Spacing::read(config, Spread::Linspace, steps + 1, noise.len()),
            levels: Levels::read(config, true),
            least_lambda,
            noise,
        },
    })
}

/// `lambda_min_clipped`, which Python writes as `-Infinity` where nothing is clipped.
fn least_lambda(config: &mut ConfigReader<'_>, noise: &NoiseSchedule) -> f64 {
    const KEY: &str = "lambda_min_clipped";
    let Some(value) = config.get(KEY) else {
        return f64::NEG_INFINITY;
    };
    if value == "-Infinity" {
        return f64::NEG_INFINITY;
    }
    let most = -noise.sigma(0).ln();
    let number = value.as_f64().filter(|x| *x <= most);
    if number.is_none() {
        config.bad(
            KEY,
            format!(
                "is {}; it must be -Infinity, or a number that leaves timesteps: at most {most:.3}",
                show(value)
            ),
        );
    }
    number.unwrap_or(f64::NEG_INFINITY)
}

impl Scheduler for DpmSolver {
    fn plan(&self, run: Run) -> SamplingPlan {
        let whole = |t: f64| {
            if self.rounds {
                self.track.whole(t)
            } else {
                t.trunc()
            }
        };
        let (timesteps, mut sigmas) = self.track.visits(run.steps, whole);
        sigmas.push(self.ends.sigma(self.track.noise.sigma(0)));
        let count = timesteps.len();
        let step = |(index, t): (usize, &f64)| {
            let order = self.order_at(index, count, run.taken(index));
            self.step(*t, &sigmas[index + 1 - order..index + 2])
        };
        let rows = timesteps.iter().enumerate().map(step).collect();
        run.plan(1.0, rows, |first| mix(sigmas[first]))
    }
}

impl DpmSolver {
    fn order_at(&self, index: usize, count: usize, taken: usize) -> usize {
        if index + 1 == count && (self.euler_at_final || self.ends == End::Zero) {
            return 1;
        }
        order_at(
            self.order,
            count - index,
            taken,
            self.lower_order_final && count < SHORT,
        )
    }

    /// The step between the last two of these noise levels; those before are of the predictions
    /// that count, so that there is one more than the step's order.
    fn step(&self, timestep: f64, sigmas: &[f64]) -> SamplingStep {
        let (from, to) = (sigmas[sigmas.len() - 2], sigmas[sigmas.len() - 1]);
        let stretch = Stretch::new(self.equation, from, to);
        SamplingStep {
            timestep,
            input_scale: 1.0,
            estimate: self.equation.solved.estimate(self.prediction, from),
            latents: vec![stretch.latents],
            estimates: self.estimates(&stretch, sigmas),
            output: 0.0,
            noise: stretch.noise,
        }
    }

    /// The weights of the predictions, the last one first.
    fn estimates(&self, stretch: &Stretch, sigmas: &[f64]) -> Vec<f64> {
        let (hh, whole) = (stretch.growth, stretch.whole());
        let first = -stretch.scale * whole;
        // How far back the predictions before the last were made, in lengths of this step.
        let mut lengths = sigmas.windows(2).rev().map(|ends| (ends[0] / ends[1]).ln());
        let length = lengths.next().unwrap_or(f64::NAN);
        let lengths: Vec<f64> = lengths.map(|before| before / length).collect();
        let exact = -stretch.scale * (whole / hh - 1.0);
        match lengths[..] {
            [] => vec![first],
            [before] => {
                let second = if self.heun { exact } else { 0.5 * first };
                let slope = second / before;
                vec![first + slope, -slope]
            }
            [before, earlier, ..] => {
                // diffusers adds where it subtracts without noise.
                let half = if self.equation.stochastic { -0.5 } else { 0.5 };
                let third = -stretch.scale * ((whole - hh) / (hh * hh) - half);
                // The first and second derivative are sums of these two differences.
                let bend = (exact * before + third) / (before + earlier);
                let (late, early) = ((exact + bend) / before, bend / earlier);
                vec![first + late, -late - early, early]
            }
        }
    }
}
