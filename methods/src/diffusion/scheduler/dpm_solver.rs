//! DPM-Solver++, multistep, of first and second order (Lu et al., *DPM-Solver++: Fast Solver for
//! Guided Sampling of Diffusion Probabilistic Models*, algorithm 2 and appendix A).
//!
//! Integrates the predicted sample over `lambda`, the logarithm of signal over noise. A noise level
//! `sigma` is noise over signal here, so that `lambda = -ln(sigma)`.

use super::Scheduler;
use super::euler::{End, Range};
use super::noise::{NoiseSchedule, Prediction, Terminal};
use super::reader::{ConfigReader, show};
use super::spacing::{Spacing, Spread, karras, sigmas_at, timestep_of, trailing};
use crate::diffusion::{Estimate, SamplingPlan, SamplingStep};

/// Runs shorter than this end with a first-order step where `lower_order_final` says so.
const SHORT: usize = 15;

struct DpmSolver {
    noise: NoiseSchedule,
    prediction: Prediction,
    spacing: Spacing,
    karras: Option<Range>,
    /// Whether timesteps of Karras' noise levels are rounded; else they are cut off.
    rounds: bool,
    ends: End,
    /// The smallest `lambda` that is visited.
    least_lambda: f64,
    second_order: bool,
    heun: bool,
    lower_order_final: bool,
    euler_at_final: bool,
}

/// Reads what diffusers' `DPMSolverMultistepScheduler` reads.
pub(super) fn read(config: &mut ConfigReader<'_>, steps: usize) -> Box<dyn Scheduler> {
    let noise = NoiseSchedule::read(config, Terminal::Tiny);
    config.refuse("thresholding", "clips each sample at a quantile of its own");
    config.refuse(
        "use_exponential_sigmas",
        "spaces the noise levels exponentially",
    );
    config.refuse(
        "use_beta_sigmas",
        "spaces the noise levels by a beta distribution",
    );
    config.refuse("use_lu_lambdas", "spaces the noise levels evenly in lambda");
    config.refuse("use_flow_sigmas", "is for models trained by flow matching");
    config.refuse(
        "use_dynamic_shifting",
        "is for models trained by flow matching",
    );
    // Names of related schedulers, which diffusers takes for these.
    config.choice("algorithm_type", &[("dpmsolver++", ()), ("deis", ())], ());
    let types = [
        ("midpoint", false),
        ("heun", true),
        ("logrho", false),
        ("bh1", false),
        ("bh2", false),
    ];
    let order = config.count("solver_order", 1, 3, 2);
    if order == 3 {
        config.unsupported("solver_order", "is 3; dlc can do 1 and 2".into());
    }
    let least_lambda = least_lambda(config, &noise);
    Box::new(DpmSolver {
        prediction: Prediction::read(config, &Prediction::NAMES),
        spacing: Spacing::read(config, Spread::Linspace, steps + 1, noise.len()),
        karras: Range::read(config),
        rounds: config
            .get("beta_schedule")
            .is_none_or(|name| name != "squaredcos_cap_v2"),
        ends: End::read(config),
        least_lambda,
        second_order: order == 2,
        heun: config.choice("solver_type", &types, false),
        lower_order_final: config.flag("lower_order_final", true),
        euler_at_final: config.flag("euler_at_final", false),
        noise,
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
    let most = noise.sigmas().first().map_or(0.0, |sigma| -sigma.ln());
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
    fn plan(&self, steps: usize) -> SamplingPlan {
        let all = self.noise.sigmas();
        let mut timesteps = self.timesteps(&all, steps);
        let mut sigmas = sigmas_at(&timesteps, &all);
        if let Some(range) = self.karras {
            sigmas = karras(
                range.min.unwrap_or(all[0]),
                range.max.unwrap_or(all[all.len() - 1]),
                steps,
            );
            let round = |t: f64| {
                if self.rounds {
                    t.round_ties_even()
                } else {
                    t.trunc()
                }
            };
            timesteps = sigmas
                .iter()
                .map(|sigma| round(timestep_of(*sigma, &all)))
                .collect();
        }
        sigmas.push(self.ends.sigma(&all));
        let count = timesteps.len();
        let step = |(index, t): (usize, &f64)| {
            let before = (self.second_order
                && index > 0
                && !(index + 1 == count && self.ends_in_first_order(count)))
            .then(|| sigmas[index - 1]);
            self.step(*t, before, sigmas[index], sigmas[index + 1])
        };
        SamplingPlan {
            initial_scale: 1.0,
            steps: timesteps.iter().enumerate().map(step).collect(),
        }
    }
}

impl DpmSolver {
    /// The timesteps that are visited: one more than asked is spaced, and the last left out.
    fn timesteps(&self, sigmas: &[f64], steps: usize) -> Vec<f64> {
        // Timesteps whose lambda is large enough: those before the first one whose noise is too
        // much.
        let end = sigmas.partition_point(|sigma| -sigma.ln() >= self.least_lambda);
        if self.spacing.spread == Spread::Trailing {
            return trailing(end, sigmas.len() as f64 / steps as f64, steps);
        }
        let mut timesteps = self.spacing.timesteps(steps + 1, end);
        timesteps.truncate(steps);
        timesteps.iter().map(|t| t.round_ties_even()).collect()
    }

    fn ends_in_first_order(&self, count: usize) -> bool {
        self.euler_at_final || (self.lower_order_final && count < SHORT) || self.ends == End::Zero
    }

    /// The step from one noise level to another, of second order if the level before is given.
    fn step(&self, timestep: f64, before: Option<f64>, from: f64, to: f64) -> SamplingStep {
        let (signal, target_signal) = (1.0 / from.hypot(1.0), 1.0 / to.hypot(1.0));
        let denoised = self.prediction.denoised(signal, from * signal);
        // exp(-h), with h the growth of lambda.
        let shrink = to / from;
        let first = target_signal * (1.0 - shrink);
        let estimates = before.map_or_else(
            || vec![first],
            |before| {
                let (h, h_before) = ((from / to).ln(), (before / from).ln());
                let second = if self.heun {
                    target_signal * (1.0 - (1.0 - shrink) / h)
                } else {
                    0.5 * first
                };
                let slope = second * h / h_before;
                vec![first + slope, -slope]
            },
        );
        SamplingStep {
            timestep,
            input_scale: 1.0,
            estimate: Estimate {
                latents: denoised.0,
                output: denoised.1,
                clip: None,
            },
            latents: vec![to * target_signal / (from * signal)],
            estimates,
            output: 0.0,
        }
    }
}
