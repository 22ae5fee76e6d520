//! What DPM-Solver, DEIS and UniPC share: the noise levels that they visit, and the exact solution between two of them
//! where the predicted sample, or noise, stays the same (Lu et al., *DPM-Solver*, proposition 3.1, and
//! *DPM-Solver++*, proposition 4.1).
//!
//! A noise level `sigma` is noise over signal, so that `lambda`, the logarithm of signal over noise, is `-ln(sigma)`.

use super::exploding::signal;
use super::levels::{End, Levels, Rule};
use super::noise::NoiseSchedule;
use super::prediction::Prediction;
use super::reader::ConfigReader;
use super::spacing::{Spacing, Spread, sigmas_at, timestep_of, trailing};
use super::start::Mix;
use crate::diffusion::Estimate;

/// Runs shorter than this end with steps of lower order where `lower_order_final` says so.
pub(super) const SHORT: usize = 15;

/// Noise levels and how they are spaced.
pub(super) struct Track {
    pub(super) noise: NoiseSchedule,
    pub(super) spacing: Spacing,
    pub(super) levels: Option<Levels>,
    /// The smallest `lambda` that is visited.
    pub(super) least_lambda: f64,
}

impl Track {
    /// The timesteps and the noise levels of a run, without the level at which it ends. Where the
    /// levels have a rule of their own, `whole` makes whole timesteps of theirs.
    pub(super) fn visits(&self, steps: usize, whole: impl Fn(f64) -> f64) -> (Vec<f64>, Vec<f64>) {
        let all = self.noise.sigmas();
        if let Some(levels) = self.levels {
            let sigmas = levels.spaced(all[0], all[all.len() - 1], steps);
            let timesteps = sigmas.iter().map(|sigma| whole(timestep_of(*sigma, &all)));
            return (timesteps.collect(), sigmas);
        }
        let timesteps = self.timesteps(&all, steps);
        let sigmas = sigmas_at(&timesteps, &all);
        (timesteps, sigmas)
    }

    /// The whole timestep of a noise level that lies between two of them: those of Karras' levels
    /// are rounded, others cut off.
    pub(super) fn whole(&self, timestep: f64) -> f64 {
        let rule = self.levels.map(|levels| levels.rule);
        if matches!(rule, Some(Rule::Karras | Rule::Lu)) {
            timestep.round_ties_even()
        } else {
            timestep.trunc()
        }
    }

    /// The level at which a run ends that doesn't end without noise, where these are visited: the
    /// schedule's smallest, or the last of those that have a rule of their own.
    pub(super) fn smallest(&self, visited: &[f64]) -> f64 {
        match (self.levels, visited.last()) {
            (Some(_), Some(last)) => *last,
            _ => self.noise.sigma(0),
        }
    }

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
}

/// The order of a step of which `left` are left and after which `taken` were: there must be predictions for it, and
/// runs may end with steps of lower order.
pub(super) fn order_at(order: usize, left: usize, taken: usize, ends_lower: bool) -> usize {
    let most = if ends_lower { left } else { order };
    order.min(most).min(taken + 1)
}

/// What latents are at a noise level.
pub(super) fn mix(sigma: f64) -> Mix {
    let image = signal(sigma);
    Mix {
        image,
        noise: sigma * image,
    }
}

/// Refuses what models trained by flow matching ask for.
pub(super) fn refuse_flow(config: &mut ConfigReader<'_>) {
    for key in ["use_flow_sigmas", "use_dynamic_shifting"] {
        config.refuse(key, "is for models trained by flow matching");
    }
}

/// Refuses runs along the predicted noise that end where there is none.
pub(super) fn check_end(config: &mut ConfigReader<'_>, solved: Solved, ends: End) {
    if solved == Solved::Noise && ends == End::Zero {
        let problem =
            "is zero, up to where predicted noise says nothing of the sample; it must be sigma_min";
        config.bad("final_sigmas_type", problem.into());
    }
}

/// What a solver takes to be nearly the same over a stretch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Solved {
    /// The denoised latents: DPM-Solver++.
    Sample,
    /// The noise: DPM-Solver.
    Noise,
}

/// What is solved, and whether new noise takes the place of the old.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Equation {
    pub(super) solved: Solved,
    /// The stochastic differential equation instead of the probability flow.
    pub(super) stochastic: bool,
}

impl Solved {
    /// It, out of what the network says at a noise level.
    pub(super) fn estimate(self, prediction: Prediction, sigma: f64) -> Estimate {
        let signal = signal(sigma);
        let (latents, output) = match self {
            Self::Sample => prediction.denoised(signal, sigma * signal),
            Self::Noise => prediction.epsilon(signal, sigma * signal),
        };
        Estimate {
            latents,
            output,
            clip: None,
        }
    }
}

/// The way from one noise level to another: `x' = latents * x - scale * (exp(growth) - 1) * m` for
/// an `m` that stays the same.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretch {
    pub(super) latents: f64,
    pub(super) scale: f64,
    /// How much `lambda` grows, with the sign of what is solved.
    pub(super) growth: f64,
    /// The coefficient of new noise.
    pub(super) noise: f64,
}

impl Stretch {
    pub(super) fn new(equation: Equation, from: f64, to: f64) -> Self {
        let (signal, target_signal) = (signal(from), signal(to));
        let growth = (from / to).ln();
        let (noise, target_noise) = (from * signal, to * target_signal);
        match (equation.solved, equation.stochastic) {
            (Solved::Sample, false) => Self {
                latents: target_noise / noise,
                scale: target_signal,
                growth: -growth,
                noise: 0.0,
            },
            (Solved::Sample, true) => Self {
                latents: target_noise / noise * (to / from),
                scale: target_signal,
                growth: -2.0 * growth,
                noise: target_noise * (-(-2.0 * growth).exp_m1()).sqrt(),
            },
            (Solved::Noise, false) => Self {
                latents: target_signal / signal,
                scale: target_noise,
                growth,
                noise: 0.0,
            },
            (Solved::Noise, true) => Self {
                latents: target_signal / signal,
                scale: 2.0 * target_noise,
                growth,
                noise: target_noise * (2.0 * growth).exp_m1().sqrt(),
            },
        }
    }

    /// `exp(growth) - 1`.
    pub(super) fn whole(&self) -> f64 {
        self.growth.exp_m1()
    }
}

/// The `w` for which the sum of `w_j nodes_j^i` is `goals_i` (Björck and Pereyra; Golub and Van Loan, *Matrix
/// Computations*, algorithm 4.6.2).
pub(super) fn vandermonde(nodes: &[f64], goals: &[f64]) -> Vec<f64> {
    let (n, mut w) = (nodes.len(), goals.to_vec());
    for (k, node) in nodes.iter().enumerate() {
        for i in (k + 1..n).rev() {
            w[i] -= node * w[i - 1];
        }
    }
    for k in (0..n.saturating_sub(1)).rev() {
        for i in k + 1..n {
            w[i] /= nodes[i] - nodes[i - k - 1];
        }
        for i in k..n - 1 {
            w[i] -= w[i + 1];
        }
    }
    w
}

#[cfg(test)]
mod tests {
    use super::vandermonde;

    #[test]
    fn weights_have_the_moments_that_are_asked_for() {
        let nodes = [-2.5, -0.75, 1.0];
        let goals = [0.3, -1.1, 4.2];
        let weights = vandermonde(&nodes, &goals);
        for (power, goal) in goals.iter().enumerate() {
            let moment: f64 = weights
                .iter()
                .zip(nodes)
                .map(|(w, node)| w * node.powi(power as i32))
                .sum();
            assert!((moment - goal).abs() < 1e-12, "{power}: {moment}");
        }
    }
}
