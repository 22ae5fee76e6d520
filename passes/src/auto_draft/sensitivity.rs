//! How much each action on each block should matter: FIT, `Tr(F) * E[d^2]` summed over the tensors that the action perturbs by d.
//!
//! FIT: *A Metric for Model Sensitivity*, Zandonati et al. (ICLR 2023), which weighs bits and pruning against each other in this way. A dropped
//! block is perturbed by its own weights, a quantised one by what rounding does to its matrices.

use std::collections::BTreeMap;

use dlc_ir::{BlockId, Graph, Module, WeightId};

use super::NAME;
use super::recipe::{Action, Format};
use crate::context::Progress;
use crate::error::PassError;
use crate::fit_prune::steps::Steps;
use crate::fit_prune::{FisherScores, Objective, fisher_scores_with_head};
use crate::quantize_draft::{Matrix, matrices, perturbation};

/// FIT of each action, in the order of [`Action::ALL`], on each block and, last, on the head, which can't be dropped.
pub(super) type Sensitivity = Vec<[f64; 4]>;

pub(super) fn sensitivity(
    module: &Module,
    target: &Graph,
    format: &Format,
    texts: &[Vec<u32>],
    progress: &dyn Progress,
) -> Result<Sensitivity, PassError> {
    let fisher = fisher_scores_with_head(target, &module.weights, Objective::NextToken, texts, progress)?;
    let traces: BTreeMap<WeightId, f64> = fisher.blocks.values().flatten().map(|t| (t.weight, t.trace)).collect();
    let matrices = matrices(target, &module.weights);
    let mut steps = Steps::start(progress, "weighing fewer bits", matrices.len())?;
    let mut table: BTreeMap<Option<BlockId>, [f64; 4]> = target.blocks().map(|(id, _)| (Some(id), dropped(&fisher, id))).collect();
    table.insert(None, [0.0; 4]);
    for Matrix { weight, block, is_head, .. } in matrices {
        let trace = if is_head { fisher.head.map(|(_, trace)| trace) } else { traces.get(&weight).copied() };
        let row = table.get_mut(&block.filter(|_| !is_head));
        if let (Some(trace), Some(row)) = (trace, row) {
            for (action, fit) in Action::ALL.into_iter().zip(row) {
                if let Some(quantizer) = format.quantizer(action) {
                    *fit += trace * perturbation(&module.weights[weight], &quantizer)?.mean_square;
                }
            }
        }
        steps.step()?;
    }
    let head = table.remove(&None).unwrap_or_default();
    let table: Sensitivity = table.into_values().chain([head]).collect();
    check_finite(&table, target)?;
    Ok(table)
}

fn dropped(fisher: &FisherScores, block: BlockId) -> [f64; 4] {
    let fit = fisher.blocks.get(&block).into_iter().flatten().map(|t| t.trace * t.mean_square).sum();
    Action::ALL.map(|action| if action == Action::Drop { fit } else { 0.0 })
}

fn check_finite(table: &Sensitivity, target: &Graph) -> Result<(), PassError> {
    let names = target.blocks().map(|(_, b)| b.name.as_str()).chain(["the head"]);
    for (row, unit) in table.iter().zip(names) {
        if let Some(&value) = row.iter().find(|fit| !fit.is_finite()) {
            return Err(PassError::NotFinite { pass: NAME, score: "fit", unit: unit.to_owned(), value });
        }
    }
    Ok(())
}
