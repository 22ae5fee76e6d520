//! The first stage: cells that weigh much for their multiply-adds take the place of such that
//! don't.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::{Judge, State, Training, biased, report_step, stopped};
use crate::context::PassContext;
use crate::error::PassError;
use crate::sampling::Start;
use crate::skip::{TOLERANCE, regular_for};

/// How much of a cell's weight comes from the last round.
const FRESH: f64 = 0.5;
/// How much more a cell must weigh than the usual to be exchanged, in standard deviations: at
/// first, and how that changes with success and failure.
const CAUTION: f64 = 1.5;
const BOLDER: f64 = 0.8;
const MORE_CAREFUL: f64 = 1.4;

impl Training<'_> {
    /// Exchanges cells round by round.
    pub(super) fn rounds(
        &self,
        cx: &PassContext<'_>,
        state: &mut State,
        judges: &[Judge],
        keep: &dyn Fn(&State),
    ) -> Result<(), PassError> {
        let total = self.options.rounds + self.options.iterations;
        if state.best.is_none() {
            let _ = self.compare(state, self.even()?, judges)?;
            state.caution = CAUTION;
        }
        let freed = self.net.freed();
        while state.rounds < self.options.rounds {
            let Some((table, _)) = state.best.clone() else {
                return Err(stopped(cx));
            };
            let weighed = self.weigh(&self.closed(&table).0, state.rounds)?;
            state.weights = blend(&state.weights, &standardised(&weighed, &freed));
            let next = self
                .fit(
                    &biased(&state.weights, &table, state.caution),
                    self.options.share(),
                )?
                .table;
            let (better, loss) = if next == table {
                (false, f64::NAN)
            } else {
                self.compare(state, next.clone(), judges)?
            };
            // Nothing exchanged is too careful, a worse table too bold.
            state.caution *= if better || next == table {
                BOLDER
            } else {
                MORE_CAREFUL
            };
            state.rounds += 1;
            keep(state);
            let best = state.best.as_ref().map_or(f64::NAN, |(_, best)| best.exp());
            let now = Some(loss.exp())
                .filter(|loss| loss.is_finite())
                .map_or_else(String::new, |loss| format!(" loss {loss:.1e},"));
            report_step(
                cx,
                &format!("weighing,{now} best {best:.1e}"),
                state.rounds,
                total,
            )?;
        }
        Ok(())
    }

    /// Evenly spread full steps. Where these come near no budget, cells are left out from the last
    /// step on and added from the first step on: within a step the first units go first, and come
    /// last, as leaving out a late one frees all that only it reads.
    fn even(&self) -> Result<Vec<Vec<bool>>, PassError> {
        let share = self.options.share();
        let even = regular_for(self.net, self.sampler.plan.steps.len(), share)?;
        if (self.closed(&even).1 - share).abs() <= TOLERANCE {
            return Ok(even);
        }
        let (steps, units) = (even.len() as f64, self.net.units.len() as f64);
        let rank =
            |step: usize, unit: usize| (step as f64 + 1.0 - (unit as f64 + 1.0) / units) / steps;
        let score = |step: usize, row: &[bool]| {
            row.iter()
                .enumerate()
                .map(|(unit, on)| f64::from(u8::from(*on)) - rank(step, unit))
                .collect()
        };
        let scores: Vec<Vec<f64>> = even
            .iter()
            .enumerate()
            .map(|(step, row)| score(step, row))
            .collect();
        Ok(self.fit(&scores, share)?.table)
    }

    /// Mean squared effect of every cell on the sample.
    fn weigh(&self, gates: &[Vec<f32>], turn: usize) -> Result<Vec<Vec<f64>>, PassError> {
        let weigh = |(number, start): (usize, &Start)| {
            let rollout = self.sampler.run(start, gates)?;
            let mut rng = ChaCha8Rng::seed_from_u64(self.options.seed ^ 0x9e37_79b9);
            rng.set_stream((turn * self.options.batch + number) as u64);
            let mut sign = |_: &f32| if rng.random::<bool>() { 1.0 } else { -1.0 };
            let signs = |image: &[f32]| image.iter().map(&mut sign).collect();
            let adjoint = self.view.back(rollout.sample(), signs)?;
            self.sampler.back(start, gates, &rollout, adjoint)
        };
        let starts = self.batch(1, turn);
        let gradients = self.pool.install(|| {
            starts
                .par_iter()
                .enumerate()
                .map(weigh)
                .collect::<Result<Vec<_>, PassError>>()
        })?;
        // Each image counts alike, however much it is moved.
        let sizes: Vec<f64> = gradients
            .iter()
            .map(|g| {
                g.iter()
                    .flatten()
                    .map(|x| x * x)
                    .sum::<f64>()
                    .max(f64::MIN_POSITIVE)
            })
            .collect();
        let mean = |step: usize, unit: usize| {
            gradients
                .iter()
                .zip(&sizes)
                .map(|(g, size)| g[step][unit].powi(2) / size)
                .sum::<f64>()
        };
        Ok((0..gates.len())
            .map(|step| {
                (0..self.net.units.len())
                    .map(|unit| mean(step, unit))
                    .collect()
            })
            .collect())
    }
}

/// Logarithms of weights for each multiply-add, in standard deviations from their mean.
fn standardised(weighed: &[Vec<f64>], freed: &[f64]) -> Vec<Vec<f64>> {
    let logarithm =
        |(weight, share): (&f64, &f64)| (weight / share.max(1e-9)).max(f64::MIN_POSITIVE).ln();
    let rows: Vec<Vec<f64>> = weighed
        .iter()
        .map(|row| row.iter().zip(freed).map(logarithm).collect())
        .collect();
    // The first step is computed in any case.
    let cells = || rows.iter().skip(1).flatten();
    let n = cells().count().max(1) as f64;
    let mean = cells().sum::<f64>() / n;
    let deviation = (cells().map(|x| (x - mean).powi(2)).sum::<f64>() / n)
        .sqrt()
        .max(1e-9);
    rows.iter()
        .map(|row| row.iter().map(|x| (x - mean) / deviation).collect())
        .collect()
}

fn blend(old: &[Vec<f64>], new: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let cell = |step: usize, unit: usize, x: f64| {
        old.get(step)
            .map_or(x, |row| FRESH * x + (1.0 - FRESH) * row[unit])
    };
    new.iter()
        .enumerate()
        .map(|(step, row)| {
            row.iter()
                .enumerate()
                .map(|(unit, x)| cell(step, unit, *x))
                .collect()
        })
        .collect()
}
