//! How much each action on each block should matter: FIT, `Tr(F) * E[d^2]` summed over the tensors
//! that the action perturbs by d.
//!
//! FIT: *A Metric for Model Sensitivity*, Zandonati et al. (ICLR 2023), which weighs bits and
//! pruning against each other in this way. A dropped block is perturbed by its own weights, a
//! quantised one by what rounding does to its matrices.

use std::collections::BTreeMap;

use dlc_ir::{BlockId, Graph, Weight, WeightId, WeightTable};

use super::NAME;
use super::recipe::{Action, Format};
use crate::context::Progress;
use crate::error::PassError;
use crate::kept::Kept;
use crate::quantize::{Matrix, matrices, perturbation};
use crate::scoring::FisherScores;
use crate::scoring::steps::Steps;

/// FIT of each action, in the order of [`Action::ALL`], on each block and, last, on the head, which
/// can't be dropped.
pub(super) type Sensitivity = Vec<[f64; 4]>;

/// Of a target in floats with these scores. Goes on where an earlier run was stopped, until what it
/// kept is [forgotten](forget).
pub(super) fn sensitivity(
    target: &Graph,
    weights: &WeightTable,
    format: &Format,
    fisher: &FisherScores,
    kept: Kept<'_>,
    progress: &dyn Progress,
) -> Result<Sensitivity, PassError> {
    let traces: BTreeMap<WeightId, f64> = fisher
        .blocks
        .values()
        .flatten()
        .map(|t| (t.weight, t.trace))
        .collect();
    let matrices = matrices(target, weights);
    let mut steps = Steps::start(progress, "weighing fewer bits", matrices.len())?;
    let mut table: BTreeMap<Option<BlockId>, [f64; 4]> = target
        .blocks()
        .map(|(id, _)| (Some(id), dropped(fisher, id)))
        .collect();
    table.insert(None, [0.0; 4]);
    // What rounding does to each matrix, by action.
    let mut rounding: Vec<[f64; 4]> = kept
        .get(ROUNDING)
        .filter(|known: &Vec<_>| known.len() <= matrices.len())
        .unwrap_or_default();
    steps.skip(rounding.len());
    for (
        at,
        Matrix {
            weight,
            block,
            is_head,
            ..
        },
    ) in matrices.into_iter().enumerate()
    {
        let known = rounding.get(at).copied();
        let squares = known.map_or_else(|| mean_squares(&weights[weight], format), Ok)?;
        let trace = if is_head {
            fisher.head.map(|(_, trace)| trace)
        } else {
            traces.get(&weight).copied()
        };
        let row = table.get_mut(&block.filter(|_| !is_head));
        if let (Some(trace), Some(row)) = (trace, row) {
            row.iter_mut()
                .zip(squares)
                .for_each(|(fit, square)| *fit += trace * square);
        }
        if known.is_none() {
            rounding.push(squares);
            kept.put(ROUNDING, &rounding);
            steps.step()?;
        }
    }
    let head = table.remove(&None).unwrap_or_default();
    let table: Sensitivity = table.into_values().chain([head]).collect();
    check_finite(&table, target)?;
    Ok(table)
}

const ROUNDING: &str = "rounding";

/// Forgets what stopped runs have kept.
pub(super) fn forget(kept: Kept<'_>) {
    kept.remove(ROUNDING);
}

/// Mean square of what each action does to a number of the matrix.
fn mean_squares(weight: &Weight, format: &Format) -> Result<[f64; 4], PassError> {
    let mut squares = [0.0; 4];
    for (action, square) in Action::ALL.into_iter().zip(&mut squares) {
        if let Some(quantizer) = format.quantizer(action) {
            *square = perturbation(weight, &quantizer)?.mean_square;
        }
    }
    Ok(squares)
}

fn dropped(fisher: &FisherScores, block: BlockId) -> [f64; 4] {
    let fit = fisher
        .blocks
        .get(&block)
        .into_iter()
        .flatten()
        .map(|t| t.trace * t.mean_square)
        .sum();
    Action::ALL.map(|action| if action == Action::Drop { fit } else { 0.0 })
}

fn check_finite(table: &Sensitivity, target: &Graph) -> Result<(), PassError> {
    let names = target
        .blocks()
        .map(|(_, b)| b.name.as_str())
        .chain(["the head"]);
    for (row, unit) in table.iter().zip(names) {
        if let Some(&value) = row.iter().find(|fit| !fit.is_finite()) {
            return Err(PassError::NotFinite {
                pass: NAME,
                score: "fit",
                unit: unit.to_owned(),
                value,
            });
        }
    }
    Ok(())
}
