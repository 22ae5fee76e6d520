//! How often a pruned encoder gives the answer of the whole one.

use dlc_eval::Array;
use dlc_ir::{Graph, WeightTable};

use super::chain::Chain;
use super::objective::{largest, rows};
use super::steps::Steps;
use crate::context::Progress;
use crate::error::PassError;

/// How many answers there were, and how many were the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Agreement {
    pub same: usize,
    pub answers: usize,
}

/// Compares the most likely answers of two graphs, a link at a time in memory.
pub(crate) fn agreement(
    full: &Graph,
    pruned: &Graph,
    weights: &WeightTable,
    samples: &[Vec<u32>],
    progress: &dyn Progress,
) -> Result<Agreement, PassError> {
    let [a, b] = [
        answers(full, weights, samples, progress)?,
        answers(pruned, weights, samples, progress)?,
    ];
    Ok(Agreement {
        same: a.iter().zip(&b).filter(|(x, y)| x == y).count(),
        answers: a.len(),
    })
}

fn answers(
    graph: &Graph,
    weights: &WeightTable,
    samples: &[Vec<u32>],
    progress: &dyn Progress,
) -> Result<Vec<u32>, PassError> {
    let chain = Chain::new(graph, weights)?;
    let feeds = chain.feeds(samples)?;
    let mut steps = Steps::start(
        progress,
        "comparing answers",
        chain.links.len() * samples.len(),
    )?;
    let mut residuals: Vec<Option<Array>> = vec![None; samples.len()];
    for link in &chain.links {
        let segment = chain.load(link)?;
        for (residual, feed) in residuals.iter_mut().zip(&feeds) {
            *residual = Some(Chain::forward(&segment, link, feed, residual.as_ref())?);
            steps.step()?;
        }
    }
    Ok(residuals
        .iter()
        .flatten()
        .flat_map(|logits| rows(logits).into_iter().map(|row| largest(&row)))
        .collect())
}
