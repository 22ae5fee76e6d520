//! Which timesteps a run of a sampler visits: the three spacings of Lin et al., *Common Diffusion
//! Noise Schedules and Sample Steps are Flawed* (table 2), and which noise levels belong to them.
//!
//! Rounds as numpy does, half to even, so that timesteps equal diffusers'.

use super::reader::ConfigReader;
use crate::diffusion::SamplingStep;

/// How timesteps are spread over the training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spread {
    /// Multiples of a whole step, from `steps_offset` on.
    Leading,
    /// Down from the last timestep.
    Trailing,
    /// Evenly from the first to the last.
    Linspace,
}

/// `timestep_spacing` and `steps_offset`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spacing {
    /// `timestep_spacing`.
    pub(super) spread: Spread,
    /// `steps_offset`, which only [`Spread::Leading`] heeds.
    offset: usize,
}

impl Spacing {
    /// Reads the spacing of `points` timesteps over a training of `train`; `default` is the
    /// scheduler's own.
    pub(super) fn read(
        config: &mut ConfigReader<'_>,
        default: Spread,
        points: usize,
        train: usize,
    ) -> Self {
        let spreads = [
            ("leading", Spread::Leading),
            ("trailing", Spread::Trailing),
            ("linspace", Spread::Linspace),
        ];
        let spread = config.choice("timestep_spacing", &spreads, default);
        let offset = config.count("steps_offset", 0, train - 1, 0);
        let first = (points - 1) * (train / points) + offset;
        if config.is_clean() && spread == Spread::Leading && first >= train {
            let beyond = format!(
                "is {offset}, with which the first timestep would be {first}; the training has none after {}",
                train - 1
            );
            config.bad("steps_offset", beyond);
        }
        Self { spread, offset }
    }

    /// `points` timesteps out of `0..train`, descending. Evenly spread ones may be fractions.
    pub(super) fn timesteps(self, points: usize, train: usize) -> Vec<f64> {
        match self.spread {
            Spread::Leading => (0..points)
                .rev()
                .map(|i| (i * (train / points) + self.offset) as f64)
                .collect(),
            Spread::Trailing => trailing(train, train as f64 / points as f64, points),
            Spread::Linspace => {
                let last = (train - 1) as f64;
                let step = if points > 1 {
                    last / (points - 1) as f64
                } else {
                    0.0
                };
                (0..points)
                    .rev()
                    .map(|i| {
                        if i > 0 && i == points - 1 {
                            last
                        } else {
                            i as f64 * step
                        }
                    })
                    .collect()
            }
        }
    }

    /// The same, as whole numbers.
    pub(super) fn whole(self, points: usize, train: usize) -> Vec<usize> {
        let timesteps = self.timesteps(points, train).into_iter();
        timesteps.map(|t| t.round_ties_even() as usize).collect()
    }
}

/// Up to `most` timesteps from `from - 1` down, `stride` apart, none below 0.
pub(super) fn trailing(from: usize, stride: f64, most: usize) -> Vec<f64> {
    let from = from as f64;
    // `numpy.arange`'s own stride, the difference of its first two entries.
    let stride = (from - stride) - from;
    let points = (0..most)
        .map(|i| from + i as f64 * stride)
        .take_while(|t| *t > 0.0);
    points.map(|t| t.round_ties_even() - 1.0).collect()
}

/// The noise levels at these timesteps, interpolated between those of the training.
pub(super) fn sigmas_at(timesteps: &[f64], sigmas: &[f64]) -> Vec<f64> {
    let last = sigmas.len() - 1;
    let at = |t: f64| {
        let low = (t as usize).min(last);
        let high = (low + 1).min(last);
        sigmas[low] + (sigmas[high] - sigmas[low]) * (t - low as f64)
    };
    timesteps.iter().map(|t| at(*t)).collect()
}

/// The timestep with this noise level, interpolated between the logarithms of the training's
/// levels; within the training in any case.
pub(super) fn timestep_of(sigma: f64, sigmas: &[f64]) -> f64 {
    let log = sigma.max(1e-10).ln();
    // In single precision, as diffusers has them: where timesteps are cut off, the last bit
    // decides.
    let level = |sigma: f64| f64::from((sigma as f32).ln());
    let low = sigmas
        .partition_point(|sigma| level(*sigma) <= log)
        .saturating_sub(1)
        .min(sigmas.len() - 2);
    let (below, above) = (level(sigmas[low]), level(sigmas[low + 1]));
    let weight = ((below - log) / (below - above)).clamp(0.0, 1.0);
    (1.0 - weight) * low as f64 + weight * (low + 1) as f64
}

/// The rows that go by `step` from each timestep to the next, and from the last one to the sample.
pub(super) fn from_each_to_the_next(
    timesteps: &[usize],
    step: impl Fn(usize, Option<usize>) -> SamplingStep,
) -> Vec<SamplingStep> {
    let next = timesteps.iter().copied().skip(1).map(Some);
    let ends = timesteps.iter().zip(next.chain([None]));
    ends.map(|(from, to)| step(*from, to)).collect()
}
