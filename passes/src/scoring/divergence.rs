//! How much one graph's answers differ from another's on texts.

use dlc_eval::Array;
use dlc_ir::{Graph, WeightTable};
use dlc_methods::divergence::{Divergence, Position};
use rayon::prelude::*;

use super::chain::Chain;
use super::objective::row_slices;
use super::steps::Steps;
use crate::context::Progress;
use crate::error::PassError;

/// Compares two graphs at every position of `texts` from the token after the first `prompt` on, a
/// link at a time in memory. The token that comes next is judged if the model `continues` texts.
pub(crate) fn divergence(
    [reference, other]: [&Graph; 2],
    weights: &WeightTable,
    texts: &[Vec<u32>],
    prompt: usize,
    continues: bool,
    progress: &dyn Progress,
) -> Result<Divergence, PassError> {
    let chains = [Chain::new(reference, weights)?, Chain::new(other, weights)?];
    let links: usize = chains.iter().map(|chain| chain.links.len()).sum();
    let mut steps = Steps::start(progress, "comparing on held-back text", links)?;
    let [a, b] = &chains;
    let residuals = [
        before_head(a, texts, &mut steps)?,
        before_head(b, texts, &mut steps)?,
    ];
    let mut found = Divergence::default();
    let heads = [
        head(a, &residuals[0], texts)?,
        head(b, &residuals[1], texts)?,
    ];
    for (at, text) in texts.iter().enumerate() {
        let [a, b] = [heads[0](at)?, heads[1](at)?];
        let rows: Vec<_> = row_slices(&a).zip(row_slices(&b)).enumerate().collect();
        let first = if continues {
            prompt.saturating_sub(1)
        } else {
            0
        };
        let last = if continues {
            text.len().saturating_sub(1)
        } else {
            rows.len()
        };
        let judged = rows.get(first..last.min(rows.len())).unwrap_or_default();
        let positions: Result<Vec<Position>, _> = judged
            .par_iter()
            .map(|&(position, (a, b))| {
                let next = continues.then(|| text.get(position + 1).copied()).flatten();
                Position::of(a, b, next, position)
            })
            .collect();
        found.extend(positions?);
        if progress.interrupted() {
            return Err(PassError::Interrupted);
        }
    }
    steps.step()?;
    steps.step()?;
    Ok(found)
}

/// The residual that the last link reads, for each text.
fn before_head(
    chain: &Chain<'_>,
    texts: &[Vec<u32>],
    steps: &mut Steps<'_>,
) -> Result<Vec<Option<Array>>, PassError> {
    let feeds = chain.feeds(texts)?;
    let mut residuals = vec![None; texts.len()];
    for link in chain.links.split_last().map_or(&[][..], |(_, body)| body) {
        let segment = chain.load(link)?;
        for (residual, feed) in residuals.iter_mut().zip(&feeds) {
            *residual = Some(Chain::forward(&segment, link, feed, residual.as_ref())?);
        }
        steps.step()?;
    }
    Ok(residuals)
}

/// Computes the logits of a text by its number.
fn head<'a>(
    chain: &'a Chain<'a>,
    residuals: &'a [Option<Array>],
    texts: &[Vec<u32>],
) -> Result<impl Fn(usize) -> Result<Array, PassError> + 'a, PassError> {
    let link = chain.links.last().ok_or_else(super::no_links)?;
    let (segment, feeds) = (chain.load(link)?, chain.feeds(texts)?);
    Ok(move |at: usize| Chain::forward(&segment, link, &feeds[at], residuals[at].as_ref()))
}
