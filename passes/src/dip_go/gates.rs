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

mod descent;
mod exchange;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::NAME;
use super::options::DipGoOptions;
use super::rollout::{Rollout, Sampler, hard};
use super::view::View;
use crate::context::PassContext;
use crate::error::PassError;
use crate::sampling::{Start, fingerprint, mean_logarithm};
use crate::skip::{Fit, SkipNet, close, macs_share, threshold};

/// Images that tables are compared on.
const JUDGES: usize = 12;

/// What is trained, and how.
pub(super) struct Training<'a> {
    pub net: &'a SkipNet<'a>,
    pub sampler: &'a Sampler<'a>,
    /// What images are compared as.
    pub view: &'a View<'a>,
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

/// Noise, and the image that the full sampler makes of it, as images are compared.
struct Judge {
    start: Start,
    full: Vec<f32>,
}

impl Training<'_> {
    /// Learns, from where an earlier run was stopped if the cache has its state.
    pub fn run(&self, cx: &PassContext<'_>) -> Result<Learned, PassError> {
        let options = serde_json::to_string(self.options).unwrap_or_default();
        let key = format!(
            "{NAME} 2 {} {options} {:x}",
            cx.module_key,
            fingerprint(self.sampler.guidance.prompts)
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
        let draws = self.sampler.plan.draws_noise();
        self.sampler.guidance.draw(rng, draws)
    }

    /// The first of the seed's images, and what the full sampler makes of them.
    fn judges(&self) -> Result<Vec<Judge>, PassError> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.options.seed);
        let starts: Vec<Start> = (0..JUDGES).map(|_| self.start(&mut rng)).collect();
        let all = self.all_on();
        let judge = |start: Start| {
            Ok(Judge {
                full: self.shown(&self.sampler.run(&start, &all)?)?,
                start,
            })
        };
        self.pool
            .install(|| starts.into_par_iter().map(judge).collect())
    }

    /// The image of a run as images are compared.
    fn shown(&self, rollout: &Rollout) -> Result<Vec<f32>, PassError> {
        self.view.of(rollout.sample())
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

    /// Mean logarithm of the distance of the judges' images under a table.
    fn judge(&self, table: &[Vec<bool>], judges: &[Judge]) -> Result<f64, PassError> {
        let (gates, _) = self.closed(table);
        let one = |judge: &Judge| {
            let image = self.shown(&self.sampler.run(&judge.start, &gates)?)?;
            Ok(self.view.loss.distance(&image, &judge.full))
        };
        let distances = self.pool.install(|| {
            judges
                .par_iter()
                .map(one)
                .collect::<Result<Vec<f64>, PassError>>()
        })?;
        Ok(mean_logarithm(&distances))
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
