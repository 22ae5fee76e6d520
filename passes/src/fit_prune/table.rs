//! The score table: a column for each score, a row for each unit.

use dlc_ir::{Graph, Module};

use super::ablate::Ablation;
use super::options::Score;
use super::units::Unit;
use super::{FitPrune, NAME, ablate, fisher_work, objective, unsupported};
use crate::context::{Pass, PassContext};
use crate::error::PassError;
use crate::kept::Kept;
use crate::report::{ScoreColumn, ScoreTable};
use crate::scoring::{FisherScores, TensorFisher, chain, most_links};

impl FitPrune<'_> {
    /// The score table, and where it is from: given Fisher information, or the cache if that has a
    /// table for the same module, data and options.
    pub(super) fn score(
        &self,
        module: &Module,
        target: &Graph,
        units: &[Unit],
        samples: &[Vec<u32>],
        cx: &PassContext<'_>,
    ) -> Result<(ScoreTable, &'static str), PassError> {
        let key = format!(
            "{NAME} 2 {} {:?} {} {samples:?}",
            cx.module_key, self.options.granularity, self.options.score
        );
        let fits = |table: &ScoreTable| {
            table.fits(
                units.iter().map(|u| u.name.as_str()),
                self.scores.iter().map(|s| s.name()),
            )
        };
        let given = self.takes_scores() && self.sources.scores.is_some();
        if !given && let Some(table) = cx.stored(&key, fits) {
            return Ok((table, "scores: reused from the cache"));
        }
        let removal = format!(
            "{NAME} removal 1 {} {:?} {} {} {samples:?}",
            cx.module_key,
            self.options.granularity,
            self.scores.iter().any(|s| s.needs_removal()),
            self.scores.contains(&Score::Kl)
        );
        let removal = Kept::new(cx.cache, &removal);
        let table = self.table(module, target, units, samples, removal, cx);
        if !matches!(table, Err(PassError::Interrupted)) {
            fisher_work(module, target)?.forget(samples, cx);
            ablate::forget(removal, most_links(target));
        }
        let table = table?;
        if given {
            return Ok((table, "scores: computed in shards"));
        }
        cx.store(&key, &table);
        Ok((table, "scores: computed"))
    }

    /// What stopped runs have found so far is kept: of the way back, and of scoring by removal.
    fn table(
        &self,
        module: &Module,
        target: &Graph,
        units: &[Unit],
        samples: &[Vec<u32>],
        removal: Kept<'_>,
        cx: &PassContext<'_>,
    ) -> Result<ScoreTable, PassError> {
        let (scores, objective) = (self.scores.as_slice(), objective(module)?);
        let chain = chain::Chain::new(target, &module.weights)?;
        let (mut fisher, mut ablation) = (None, None);
        if self.takes_scores() {
            let work = fisher_work(module, target)?;
            fisher = Some(work.scores(samples, self.sources.scores, cx)?);
        }
        if scores.iter().any(|s| !s.needs_gradient()) {
            let progress = cx.progress;
            ablation = Some(cx.pool.install(|| {
                ablate::ablate(&chain, units, objective, samples, scores, removal, progress)
            })?);
        }
        tabulate(scores, units, fisher.as_ref(), ablation.as_ref())
    }
}

/// A column for each score.
fn tabulate(
    scores: &[Score],
    units: &[Unit],
    fisher: Option<&FisherScores>,
    ablation: Option<&Ablation>,
) -> Result<ScoreTable, PassError> {
    if let (Some(f), true) = (fisher, scores.contains(&Score::FitResidual)) {
        let silent = |unit: &&Unit| {
            !unit
                .blocks
                .iter()
                .filter_map(|b| f.blocks.get(b))
                .flatten()
                .any(|t| t.writes_residual)
        };
        if let Some(unit) = units.iter().find(silent) {
            let problem = format!(
                "no matrix of {} writes into the residual, so fit-residual can't score it",
                unit.name
            );
            return Err(unsupported(&problem));
        }
    }
    let mut columns = Vec::new();
    for &score in scores {
        let values = units
            .iter()
            .enumerate()
            .map(|(i, unit)| match (score, fisher, ablation) {
                (Score::Cosine, _, Some(a)) => a.cosine[i],
                (Score::Similarity, _, Some(a)) => a.similarity[i],
                (Score::Kl, _, Some(a)) => a.kl[i],
                (_, Some(f), _) => unit
                    .blocks
                    .iter()
                    .filter_map(|b| f.blocks.get(b))
                    .flatten()
                    .map(|t| tensor_score(score, t))
                    .sum(),
                _ => f64::NAN,
            });
        columns.push(ScoreColumn {
            name: score.name().into(),
            values: values.collect(),
        });
    }
    let loss = fisher
        .map(|f| f.loss)
        .or(ablation.map(|a| a.loss))
        .unwrap_or(f64::NAN);
    let table = ScoreTable {
        units: units.iter().map(|u| u.name.clone()).collect(),
        columns,
        dropped: vec![false; units.len()],
        loss,
    };
    check_finite(scores, &table)?;
    Ok(table)
}

fn check_finite(scores: &[Score], table: &ScoreTable) -> Result<(), PassError> {
    for (score, column) in scores.iter().zip(&table.columns) {
        if let Some(i) = column.values.iter().position(|v| !v.is_finite()) {
            let (unit, value) = (table.units[i].clone(), column.values[i]);
            return Err(PassError::NotFinite {
                pass: NAME,
                score: score.name(),
                unit,
                value,
            });
        }
    }
    if !table.loss.is_finite() {
        let problem = format!(
            "the model's loss on the samples is {}; some weight is NaN or infinite, or so large that the model overflows",
            table.loss
        );
        return Err(PassError::Calibration { problem });
    }
    Ok(())
}

fn tensor_score(score: Score, tensor: &TensorFisher) -> f64 {
    match score {
        Score::Fit => tensor.trace * tensor.mean_square,
        Score::FitElementwise => tensor.elementwise,
        Score::FitResidual => {
            f64::from(u8::from(tensor.writes_residual)) * tensor.trace * tensor.mean_square
        }
        Score::Trace => tensor.trace,
        Score::Cosine | Score::Similarity | Score::Kl => 0.0,
    }
}
