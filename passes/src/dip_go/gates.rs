//! The gates and how they are learned: which cells of the table, a unit at a step, are worth their
//! multiply-adds.
//!
//! Two stages. First the schedule that computes everything at evenly spread steps is improved: with
//! r random signs, the gradient of `r . sample` with respect to a gate is `r . v`, v being what its
//! choice does to the sample, and its square has the mean `|v|^2`; so one way back through the
//! sampler weighs all cells at once. Cells that weigh much for their multiply-adds are exchanged
//! for such that don't, as many as the trust that earlier exchanges earned allows. (Ours: where all
//! gates are on, as the paper starts, its loss has no gradient, and evenly spread steps are a
//! control that must be beaten anyway.) Then come the paper's steps: hard gates forward, the
//! gradient of their sigmoid backward, loss = distance to the full sampler's image + alpha * share
//! of multiply-adds kept, the second only while the budget isn't met. Of all tables the best one on
//! images of its own counts.

use std::hash::{DefaultHasher, Hash, Hasher};

use dlc_methods::diffusion::normal_pair;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::NAME;
use super::loss::Loss;
use super::options::DipGoOptions;
use super::rollout::{Sampler, Start, hard};
use crate::context::PassContext;
use crate::error::PassError;
use crate::skip::{Fit, SkipNet, TOLERANCE, close, macs_share, regular_for, threshold};
use crate::sources::Prompt;

/// Images that tables are compared on.
const JUDGES: usize = 12;
/// How much of a cell's weight comes from the last round.
const FRESH: f64 = 0.5;
/// How much more a cell must weigh than the usual to be exchanged, in standard deviations: at
/// first, and how that changes with success and failure.
const CAUTION: f64 = 1.5;
const BOLDER: f64 = 0.8;
const MORE_CAREFUL: f64 = 1.4;
/// What counts as no distance, so that it has a logarithm.
const SMALLEST: f64 = 1e-300;
/// Gradient steps between two looks at the judges' images.
const JUDGED: usize = 8;

/// What is trained, and how.
pub(super) struct Training<'a> {
    pub net: &'a SkipNet<'a>,
    pub sampler: &'a Sampler<'a>,
    /// The distance to the full sampler's images.
    pub loss: &'a Loss,
    pub options: &'a DipGoOptions,
    pub pool: &'a rayon::ThreadPool,
}

/// The outcome.
#[derive(Debug, Clone)]
pub(super) struct Learned {
    pub table: Vec<Vec<bool>>,
    /// Distance to the full sampler's images, the geometric mean over images.
    pub loss: f64,
}

/// What a run that was stopped goes on from.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    rounds: usize,
    iterations: usize,
    caution: f64,
    /// Logarithms of the cells' weights for each multiply-add, in standard deviations from their
    /// mean.
    weights: Vec<Vec<f64>>,
    /// The paper's gates.
    gates: Vec<Vec<f64>>,
    best: Option<(Vec<Vec<bool>>, f64)>,
}

/// Noise, and the image that the full sampler makes of it.
struct Judge {
    start: Start,
    full: Vec<f32>,
}

impl Training<'_> {
    /// Learns, from where an earlier run was stopped if the cache has its state.
    pub fn run(&self, cx: &PassContext<'_>) -> Result<Learned, PassError> {
        let options = serde_json::to_string(self.options).unwrap_or_default();
        let key = format!(
            "{NAME} 1 {} {options} {:x}",
            cx.module_key,
            fingerprint(self.sampler.prompts)
        );
        let steps = self.sampler.plan.steps.len();
        let mut state = cx
            .stored(&key, |state: &State| state.weights.len() == steps)
            .unwrap_or_default();
        let keep = |state: &State| cx.store(&key, state);
        cx.progress.update("sampling with everything", 0, 1);
        let judges = self.judges()?;
        self.rounds(cx, &mut state, &judges, &keep)?;
        self.descend(cx, &mut state, &judges, &keep)?;
        let (table, loss) = state.best.ok_or_else(|| stopped(cx))?;
        Ok(Learned {
            table,
            loss: loss.exp(),
        })
    }

    fn fit(&self, scores: &[Vec<f64>], share: f64) -> Result<Fit, PassError> {
        threshold(
            NAME,
            self.net,
            self.sampler.reuse,
            scores,
            share,
            self.options.sampler.max_graphs,
        )
    }

    /// What is really computed under a table, as gates, and its share of the multiply-adds.
    fn closed(&self, table: &[Vec<bool>]) -> (Vec<Vec<f32>>, f64) {
        let steps = close(self.net, self.sampler.reuse, table);
        let share = macs_share(self.net, &steps);
        (
            hard(
                &steps
                    .into_iter()
                    .map(|step| step.computed)
                    .collect::<Vec<_>>(),
            ),
            share,
        )
    }

    fn all_on(&self) -> Vec<Vec<f32>> {
        vec![vec![1.0; self.net.units.len()]; self.sampler.plan.steps.len()]
    }

    fn start(&self, rng: &mut ChaCha8Rng) -> Start {
        let diffusion = self.sampler.diffusion;
        let n = diffusion.channels * diffusion.height * diffusion.width;
        let class = diffusion
            .classes
            .map(|c| rng.random_range(0..c.count.max(1)) as i64);
        let prompts = self.sampler.prompts.len();
        let prompt = (prompts > 0).then(|| rng.random_range(0..prompts));
        Start {
            noise: (0..n).map(|_| normal_pair(rng)[0]).collect(),
            class,
            prompt,
        }
    }

    /// The first of the seed's images, and what the full sampler makes of them.
    fn judges(&self) -> Result<Vec<Judge>, PassError> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.options.seed);
        let starts: Vec<Start> = (0..JUDGES).map(|_| self.start(&mut rng)).collect();
        let all = self.all_on();
        let judge = |start: Start| {
            Ok(Judge {
                full: self.sampler.run(&start, &all)?.sample().to_vec(),
                start,
            })
        };
        self.pool
            .install(|| starts.into_par_iter().map(judge).collect())
    }

    /// Images of one gradient: other ones for each stage and turn.
    fn batch(&self, stage: u64, turn: usize) -> Vec<Start> {
        let mut rng =
            ChaCha8Rng::seed_from_u64(self.options.seed.wrapping_mul(3).wrapping_add(stage));
        rng.set_stream(turn as u64 + 1);
        (0..self.options.batch)
            .map(|_| self.start(&mut rng))
            .collect()
    }

    /// Mean logarithm of the distance of the judges' images under a table: a few images that come
    /// out as something else altogether don't decide.
    fn judge(&self, table: &[Vec<bool>], judges: &[Judge]) -> Result<f64, PassError> {
        let (gates, _) = self.closed(table);
        let one = |judge: &Judge| {
            let distance = self.loss.distance(
                self.sampler.run(&judge.start, &gates)?.sample(),
                &judge.full,
            );
            Ok(distance.max(SMALLEST).ln())
        };
        let distances = self.pool.install(|| {
            judges
                .par_iter()
                .map(one)
                .collect::<Result<Vec<f64>, PassError>>()
        })?;
        Ok(distances.iter().sum::<f64>() / distances.len().max(1) as f64)
    }

    /// Keeps a table if it is the best so far; says whether it is, and its loss.
    fn compare(
        &self,
        state: &mut State,
        table: Vec<Vec<bool>>,
        judges: &[Judge],
    ) -> Result<(bool, f64), PassError> {
        let loss = self.judge(&table, judges)?;
        let better = state.best.as_ref().is_none_or(|(_, best)| loss < *best);
        if better {
            state.best = Some((table, loss));
        }
        Ok((better, loss))
    }

    /// Exchanges cells round by round.
    fn rounds(
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
            let signs = (0..start.noise.len())
                .map(|_| if rng.random::<bool>() { 1.0 } else { -1.0 })
                .collect();
            self.sampler.back(start, gates, &rollout, signs)
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

    /// The paper's steps.
    fn descend(
        &self,
        cx: &PassContext<'_>,
        state: &mut State,
        judges: &[Judge],
        keep: &dyn Fn(&State),
    ) -> Result<(), PassError> {
        let (total, share) = (self.options.iterations, self.options.share());
        if state.iterations == 0 && total > 0 {
            let Some((table, _)) = &state.best else {
                return Err(stopped(cx));
            };
            state.gates = biased(&state.weights, table, state.caution.max(1.0));
        }
        let freed = self.net.freed();
        let all: f64 = freed.iter().sum::<f64>().max(f64::MIN_POSITIVE) * state.gates.len() as f64;
        while state.iterations < total {
            let table: Vec<Vec<bool>> = state
                .gates
                .iter()
                .enumerate()
                .map(|(i, row)| row.iter().map(|z| i == 0 || *z > 0.0).collect())
                .collect();
            let (gates, kept) = self.closed(&table);
            let (loss, gradient) = self.consistency(&gates, state.iterations)?;
            let pressure = if kept > share {
                self.options.alpha
            } else {
                0.0
            };
            let cosine =
                0.5 * (1.0 + (std::f64::consts::PI * state.iterations as f64 / total as f64).cos());
            let slope = |z: f64| {
                let keep = 1.0 / (1.0 + (-z).exp());
                keep * (1.0 - keep)
            };
            let descent: Vec<Vec<f64>> = state
                .gates
                .iter()
                .zip(&gradient)
                .map(|(row, g)| {
                    row.iter()
                        .zip(g)
                        .zip(&freed)
                        .map(|((z, g), w)| slope(*z) * (g + pressure * w / all))
                        .collect()
                })
                .collect();
            let norm = descent.iter().flatten().map(|d| d * d).sum::<f64>().sqrt();
            // Clipped to length 1.
            let factor = self.options.rate * cosine / norm.max(1.0);
            state
                .gates
                .iter_mut()
                .zip(&descent)
                .for_each(|(row, d)| row.iter_mut().zip(d).for_each(|(z, d)| *z -= factor * d));
            state.iterations += 1;
            if state.iterations.is_multiple_of(JUDGED) || state.iterations == total {
                let table = self.fit(&state.gates, share)?.table;
                let _ = self.compare(state, table, judges)?;
            }
            keep(state);
            report_step(
                cx,
                &format!("loss {loss:.2e}, {:.1}% kept", 100.0 * kept),
                self.options.rounds + state.iterations,
                self.options.rounds + total,
            )?;
        }
        Ok(())
    }

    /// Mean distance to the full sampler's images, and its gradient with respect to the gates.
    fn consistency(
        &self,
        gates: &[Vec<f32>],
        turn: usize,
    ) -> Result<(f64, Vec<Vec<f64>>), PassError> {
        let all = self.all_on();
        let one = |start: &Start| {
            let full = self.sampler.run(start, &all)?.sample().to_vec();
            let rollout = self.sampler.run(start, gates)?;
            let (distance, adjoint) = self.loss.gradient(rollout.sample(), &full);
            Ok((
                distance,
                self.sampler.back(start, gates, &rollout, adjoint)?,
            ))
        };
        let starts = self.batch(2, turn);
        let parts = self.pool.install(|| {
            starts
                .par_iter()
                .map(one)
                .collect::<Result<Vec<_>, PassError>>()
        })?;
        let share = 1.0 / parts.len() as f64;
        let mean = |step: usize, unit: usize| {
            parts
                .iter()
                .map(|(_, g)| share * g[step][unit])
                .sum::<f64>()
        };
        let gradient = (0..gates.len())
            .map(|step| {
                (0..self.net.units.len())
                    .map(|unit| mean(step, unit))
                    .collect()
            })
            .collect();
        Ok((parts.iter().map(|(loss, _)| share * loss).sum(), gradient))
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

/// Weights with an advantage for what a table computes.
fn biased(weights: &[Vec<f64>], table: &[Vec<bool>], advantage: f64) -> Vec<Vec<f64>> {
    let cell = |(x, on): (&f64, &bool)| x + if *on { advantage } else { -advantage };
    weights
        .iter()
        .zip(table)
        .map(|(row, on)| row.iter().zip(on).map(cell).collect())
        .collect()
}

/// Tells prompts apart.
fn fingerprint(prompts: &[Prompt]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (name, array) in prompts.iter().flatten() {
        (name, array.shape(), array.as_i64()).hash(&mut hasher);
        array
            .as_f32()
            .unwrap_or_default()
            .iter()
            .for_each(|x| x.to_bits().hash(&mut hasher));
    }
    hasher.finish()
}

fn stopped(cx: &PassContext<'_>) -> PassError {
    if cx.progress.interrupted() {
        PassError::Interrupted
    } else {
        PassError::Options {
            pass: NAME,
            problem: "nothing was learned".into(),
        }
    }
}

fn report_step(
    cx: &PassContext<'_>,
    what: &str,
    done: usize,
    total: usize,
) -> Result<(), PassError> {
    cx.progress.update(what, done, total);
    if cx.progress.interrupted() {
        Err(PassError::Interrupted)
    } else {
        Ok(())
    }
}
