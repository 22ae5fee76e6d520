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
    let mut found = Divergence::default();
    let [a, b] = &chains;
    let answers = [
        answers(a, texts, &mut steps)?,
        answers(b, texts, &mut steps)?,
    ];
    for (at, text) in texts.iter().enumerate() {
        let [a, b] = [answers[0](at)?, answers[1](at)?];
        let rows: Vec<_> = row_slices(&a).zip(row_slices(&b)).enumerate().collect();
        let (first, last) = if continues {
            (prompt.saturating_sub(1), text.len().saturating_sub(1))
        } else {
            (0, rows.len())
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

/// Runs texts through all links but the last; what is returned computes the logits of a text by its
/// number.
fn answers<'a>(
    chain: &'a Chain<'a>,
    texts: &[Vec<u32>],
    steps: &mut Steps<'_>,
) -> Result<impl Fn(usize) -> Result<Array, PassError> + 'a, PassError> {
    let feeds = chain.feeds(texts)?;
    let mut residuals = vec![None; texts.len()];
    for link in chain.body() {
        let segment = chain.load(link)?;
        Chain::advance(&segment, link, &feeds, &mut residuals)?;
        steps.step()?;
    }
    let link = chain.links.last().ok_or_else(super::no_links)?;
    let segment = chain.load(link)?;
    Ok(move |at: usize| Chain::forward(&segment, link, &feeds[at], residuals[at].as_ref()))
}
