//! The score table: a column for each score, a row for each unit.

use dlc_ir::{Graph, Module};

use super::options::Score;
use super::units::Unit;
use super::{NAME, ablate, objective, unsupported};
use crate::context::Progress;
use crate::error::PassError;
use crate::kept::Kept;
use crate::quantize::in_floats;
use crate::report::{ScoreColumn, ScoreTable};
use crate::scoring::{self, TensorFisher, chain};

/// What stopped runs have found so far is kept: of the way back, and of scoring by removal.
pub(super) fn compute(
    scores: &[Score],
    module: &Module,
    target: &Graph,
    units: &[Unit],
    samples: &[Vec<u32>],
    [gradients, removal]: [Kept<'_>; 2],
    progress: &dyn Progress,
) -> Result<ScoreTable, PassError> {
    let objective = objective(module)?;
    let chain = chain::Chain::new(target, &module.weights)?;
    let (mut fisher, mut ablation) = (None, None);
    if scores.iter().any(|s| s.needs_gradient()) {
        let (floats, weights) = in_floats(target, &module.weights)?;
        fisher = Some(scoring::fisher::scores(
            &floats, &weights, objective, samples, None, gradients, progress,
        )?);
    }
    if scores.iter().any(|s| !s.needs_gradient()) {
        ablation = Some(ablate::ablate(
            &chain, units, objective, samples, scores, removal, progress,
        )?);
    }
    if let (Some(f), true) = (&fisher, scores.contains(&Score::FitResidual)) {
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
            .map(|(i, unit)| match (score, &fisher, &ablation) {
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
