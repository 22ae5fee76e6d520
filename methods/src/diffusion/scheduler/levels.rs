//! Noise levels that follow a rule of their own instead of the timesteps': Karras et al., *Elucidating the Design
//! Space of Diffusion-Based Generative Models* (equation 5), evenly spaced logarithms, and the quantiles of a beta
//! distribution (Lee et al., *Beta Sampling is All You Need*). And the level at which a run ends.

use super::reader::ConfigReader;

/// Both parameters of the beta distribution: diffusers'.
const BETA: f64 = 0.6;

/// A rule, and the range that it spans.
#[derive(Debug, Clone, Copy)]
pub(super) struct Levels {
    pub(super) rule: Rule,
    /// `sigma_min` and `sigma_max`, which overrule those of the schedule.
    min: Option<f64>,
    max: Option<f64>,
}

/// How levels are spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// Evenly in the seventh root.
    Karras,
    /// Evenly in the logarithm.
    Exponential,
    /// Evenly in the logarithm, over the whole schedule.
    Lu,
    /// As the quantiles of a beta distribution.
    Beta,
}

impl Levels {
    /// Reads the rule, if there is one; that of Lu only where the scheduler of diffusers `has_lu`.
    pub(super) fn read(config: &mut ConfigReader<'_>, has_lu: bool) -> Option<Self> {
        const EXCLUSIVE: [(&str, Rule); 3] = [
            ("use_karras_sigmas", Rule::Karras),
            ("use_exponential_sigmas", Rule::Exponential),
            ("use_beta_sigmas", Rule::Beta),
        ];
        let mut positive = |key| config.number(key, "above 0", |x| x > 0.0);
        let (min, max) = (positive("sigma_min"), positive("sigma_max"));
        let lu = (has_lu && config.flag("use_lu_lambdas", false)).then_some(Rule::Lu);
        let asked: Vec<(&'static str, Rule)> = EXCLUSIVE
            .into_iter()
            .filter(|(key, _)| config.flag(key, false))
            .collect();
        if let [(key, _), (other, _), ..] = asked[..] {
            config.bad(
                key,
                format!("is true, and `{other}` too; one of them at most"),
            );
        }
        let first = asked.first().map(|(_, rule)| *rule);
        // diffusers looks at Lu's before all but Karras'.
        let rule = first
            .filter(|rule| *rule == Rule::Karras)
            .or(lu)
            .or(first)?;
        Some(Self { rule, min, max })
    }

    /// The rule without a range of its own.
    pub(super) fn of_schedule(self) -> Self {
        Self {
            min: None,
            max: None,
            ..self
        }
    }

    /// `points` levels, descending, where the schedule's own reach from `smallest` to `largest`.
    pub(super) fn spaced(self, smallest: f64, largest: f64, points: usize) -> Vec<f64> {
        let (min, max) = match self.rule {
            Rule::Lu => (smallest, largest),
            _ => (self.min.unwrap_or(smallest), self.max.unwrap_or(largest)),
        };
        let step = if points > 1 {
            1.0 / (points - 1) as f64
        } else {
            0.0
        };
        let level = |i: usize| {
            let along = i as f64 * step;
            match self.rule {
                Rule::Karras => karras(min, max, along),
                Rule::Exponential | Rule::Lu => (max.ln() + along * (min.ln() - max.ln())).exp(),
                Rule::Beta => min + beta_quantile(1.0 - along) * (max - min),
            }
        };
        (0..points).map(level).collect()
    }
}

fn karras(min: f64, max: f64, along: f64) -> f64 {
    const RHO: f64 = 7.0;
    let (min, max) = (min.powf(1.0 / RHO), max.powf(1.0 / RHO));
    (max + along * (min - max)).powf(RHO)
}

/// Where the distribution, which is symmetric, reaches the probability `p`: found by bisection.
fn beta_quantile(p: f64) -> f64 {
    const HALVINGS: usize = 100;
    if p > 0.5 {
        return 1.0 - beta_quantile(1.0 - p);
    }
    let aim = 2.0 * p * beta_mass(0.5);
    let (mut low, mut high) = (0.0, 0.5);
    for _ in 0..HALVINGS {
        let middle = 0.5 * (low + high);
        if beta_mass(middle) < aim {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// The integral of `t^(a - 1) (1 - t)^(a - 1)` from 0 to `x`, which is at most a half, as a power
/// series (Abramowitz and Stegun, 6.6.8 and 15.1.1).
fn beta_mass(x: f64) -> f64 {
    const TERMS: usize = 60;
    let mut coefficient = 1.0;
    let mut sum = 0.0;
    for n in 0..TERMS {
        sum += coefficient / (BETA + n as f64);
        coefficient *= x * (n as f64 + 1.0 - BETA) / (n as f64 + 1.0);
    }
    x.powf(BETA) * sum
}

/// The noise level at which a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// None.
    Zero,
    /// The smallest: which one that is differs between schedulers.
    SigmaMin,
}

impl End {
    /// Reads `final_sigmas_type`.
    pub(super) fn read(config: &mut ConfigReader<'_>) -> Self {
        config.choice(
            "final_sigmas_type",
            &[("zero", Self::Zero), ("sigma_min", Self::SigmaMin)],
            Self::Zero,
        )
    }

    /// The level itself, where `smallest` is the smallest.
    pub(super) fn sigma(self, smallest: f64) -> f64 {
        if self == Self::Zero { 0.0 } else { smallest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_beta_distribution() {
        // scipy.stats.beta.ppf(p, 0.6, 0.6)
        let quantiles = [
            (0.0, 0.0),
            (0.001, 1.855_873_851_745_199e-5),
            (0.1, 0.039_584_405_588_780_85),
            (0.3, 0.234_017_003_875_235_72),
            (0.5, 0.5),
            (0.77, 0.846_162_414_232_350_2),
            (0.999, 0.999_981_441_261_482_6),
            (1.0, 1.0),
        ];
        for (p, expected) in quantiles {
            let found = beta_quantile(p);
            assert!(
                (found - expected).abs() < 1e-12,
                "{p}: {found} for {expected}"
            );
        }
    }
}
