//! The empirical Fisher information of every weight, block by block.
//!
//! For sample s with loss `L_s` (mean cross-entropy of the [`Objective`]'s answers) and weight
//! tensor t, `Tr(F_t) ~ 1/n sum_s || dL_s/dtheta_t ||^2`: squares of per-sample gradients (FIT,
//! Zandonati et al., ICLR 2023; SDFP, arXiv 2602.05499). One forward keeps the residual at every
//! block border; then, from the last block to the first, the block is run again with gradients. One
//! block's weights and gradients are in memory at a time.

use std::collections::BTreeMap;

use dlc_eval::{Array, Trace, Values, Wanted};
use dlc_ir::{BlockId, Def, Experts, Graph, Node, Op, Operand, ValueId, WeightId, WeightTable};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::chain::{Chain, Link};
use super::head::Head;
use super::no_links;
use super::objective::Objective;
use super::steps::Steps;
use crate::context::Progress;
use crate::error::PassError;
use crate::kept::Kept;
use crate::sums::{FisherSums, LOSS, Layout};

/// What the Fisher information says of one weight tensor inside one block.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorFisher {
    /// The tensor.
    pub weight: WeightId,
    /// Tr(F): mean over samples of the squared norm of the gradient.
    pub trace: f64,
    /// Mean of theta^2.
    pub mean_square: f64,
    /// Sum over entries of `F_ii * theta_i^2`.
    pub elementwise: f64,
    /// Whether it is a matrix that writes into the residual stream (`o_proj`, `down_proj`).
    pub writes_residual: bool,
}

/// Fisher information of all blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct FisherScores {
    /// The tensors of each block, in the order in which the block reads them.
    pub blocks: BTreeMap<BlockId, Vec<TensorFisher>>,
    /// The matrix that makes the logits, and its Tr(F); none if something else makes them, or it
    /// wasn't asked for.
    pub head: Option<(WeightId, f64)>,
    /// Mean loss of the samples, in nats per answer.
    pub loss: f64,
}

/// Scores every block of `graph` on `samples`, each a sequence of 2 or more token ids. Runs on the
/// rayon pool that is installed.
///
/// # Errors
/// [`PassError::Unsupported`] if the graph is no chain of blocks; [`PassError::Calibration`] if
/// there is no sample, one holds less than 2 tokens, or a token is outside of the vocabulary.
pub fn fisher_scores(
    graph: &Graph,
    weights: &WeightTable,
    objective: Objective,
    samples: &[Vec<u32>],
    progress: &dyn Progress,
) -> Result<FisherScores, PassError> {
    scores(
        graph,
        weights,
        objective,
        samples,
        None,
        Kept::new(None, ""),
        progress,
    )
}

/// As [`fisher_scores`], with the trace of the head's matrix.
///
/// # Errors
/// As [`fisher_scores`].
pub fn fisher_scores_with_head(
    graph: &Graph,
    weights: &WeightTable,
    objective: Objective,
    samples: &[Vec<u32>],
    progress: &dyn Progress,
) -> Result<FisherScores, PassError> {
    scores(
        graph,
        weights,
        objective,
        samples,
        Head::of(graph).as_ref(),
        Kept::new(None, ""),
        progress,
    )
}

/// As [`sums()`], of all samples: their means.
pub(crate) fn scores(
    graph: &Graph,
    weights: &WeightTable,
    objective: Objective,
    samples: &[Vec<u32>],
    head: Option<&Head>,
    kept: Kept<'_>,
    progress: &dyn Progress,
) -> Result<FisherScores, PassError> {
    let sums = sums(graph, weights, objective, samples, head, kept, progress)?;
    means(&sums, graph, weights, head)
}

/// Sums over the samples, with the entries of [`layout`]. Goes on where an earlier run was stopped:
/// what links make is kept on the way to the head, gradients and sums on the way back. What is kept
/// at the end is everything; [`forget`] removes it.
pub(crate) fn sums(
    graph: &Graph,
    weights: &WeightTable,
    objective: Objective,
    samples: &[Vec<u32>],
    matrix: Option<&Head>,
    kept: Kept<'_>,
    progress: &dyn Progress,
) -> Result<FisherSums, PassError> {
    let chain = Chain::new(graph, weights)?;
    let feeds = chain.feeds(samples)?;
    let (last, body) = chain.links.split_last().ok_or_else(no_links)?;
    let backward = body.iter().filter(|link| link.reads.is_some()).count();
    let mut steps = Steps::start(
        progress,
        "scoring by Fisher information",
        (body.len() + 1 + backward) * samples.len(),
    )?;

    let layout = layout(graph, weights, matrix);
    let earlier = WayBack::kept(kept, backward, &layout, samples.len());
    let ahead = body
        .len()
        .saturating_sub(earlier.as_ref().map_or(0, |(way, _)| way.links + 1));
    let mut borders: Vec<Vec<Array>> = Vec::new();
    for (at, link) in body.iter().enumerate() {
        if at >= ahead {
            steps.skip(samples.len());
        } else {
            borders.push(border(
                &chain,
                link,
                at,
                &feeds,
                borders.last(),
                kept,
                &mut steps,
            )?);
        }
    }

    let (mut way, mut gradients) = if let Some((way, gradients)) = earlier {
        steps.skip((1 + way.links) * samples.len());
        (way, gradients)
    } else {
        let (mut way, mut gradients) = (WayBack::start(&layout, samples.len()), Vec::new());
        let head = chain.load(last)?;
        let inputs = borders.pop();
        for (s, tokens) in samples.iter().enumerate() {
            let known = Chain::known(last, &feeds[s], inputs.as_ref().map(|b| &b[s]));
            let trace = head.trace(&known)?;
            let (loss, seed) = objective.loss(&trace.value(chain.logits)?, tokens)?;
            way.sums.add(LOSS, &[f64::from(loss)]);
            if let Some(matrix) = matrix {
                let square = matrix.squared_gradient(&trace, chain.logits, &seed)?;
                way.sums.add(&head_entry(matrix, weights), &[square]);
            }
            gradients.push(residual_gradient(&trace, last, seed, vec![])?.0);
            steps.step()?;
        }
        way.keep(kept, &gradients);
        kept.remove(&border_part(borders.len()));
        (way, gradients)
    };

    for link in body
        .iter()
        .rev()
        .filter(|link| link.reads.is_some())
        .skip(way.links)
    {
        let inputs = borders.pop();
        let segment = chain.load(link)?;
        let tensors = tensors(graph, weights, link)?;
        let wanted: Vec<WeightId> = tensors.iter().map(|(weight, ..)| *weight).collect();
        for (s, gradient) in gradients.iter_mut().enumerate() {
            let known = Chain::known(link, &feeds[s], inputs.as_ref().map(|b| &b[s]));
            let (incoming, weight_gradients) = residual_gradient(
                &segment.trace(&known)?,
                link,
                gradient.clone(),
                wanted.clone(),
            )?;
            for (weight, entry, theta) in &tensors {
                if let Some(g) = weight_gradients.get(weight).and_then(Array::as_f32) {
                    way.sums.add(entry, &squares(g, theta));
                }
            }
            *gradient = incoming;
            steps.step()?;
        }
        way.links += 1;
        way.keep(kept, &gradients);
        kept.remove(&border_part(borders.len()));
    }
    Ok(way.sums)
}

/// The entry of the squared gradients of the head's matrix.
fn head_entry(head: &Head, weights: &WeightTable) -> String {
    format!("head/{}", weights[head.weight].name)
}

/// The entry of a tensor inside a block: squared gradients, and these by squared elements.
fn tensor_entry(graph: &Graph, weights: &WeightTable, block: BlockId, weight: WeightId) -> String {
    format!(
        "blocks/{}/{}",
        graph.block(block).name,
        weights[weight].name
    )
}

/// The entries of sums over samples of `graph`.
pub(crate) fn layout(graph: &Graph, weights: &WeightTable, head: Option<&Head>) -> Layout {
    let mut layout = Layout::from([(LOSS.to_owned(), 1)]);
    layout.extend(head.map(|head| (head_entry(head, weights), 1)));
    for (block, _) in graph.blocks() {
        let tensors = block_weights(graph, block).into_iter();
        layout.extend(tensors.map(|weight| (tensor_entry(graph, weights, block, weight), 2)));
    }
    layout
}

/// The scores by sums over samples of `graph`; the scores' head is the sums'.
pub(crate) fn means(
    sums: &FisherSums,
    graph: &Graph,
    weights: &WeightTable,
    head: Option<&Head>,
) -> Result<FisherScores, PassError> {
    let tensor = |block: BlockId, weight: WeightId, writers: &[WeightId]| {
        let entry = tensor_entry(graph, weights, block, weight);
        Ok(TensorFisher {
            weight,
            trace: sums.mean(&entry, 0),
            mean_square: mean_square(&weights[weight].to_f32()?),
            elementwise: sums.mean(&entry, 1),
            writes_residual: writers.contains(&weight),
        })
    };
    let mut blocks = BTreeMap::new();
    for (block, _) in graph.blocks() {
        let writers = residual_writers(graph, block);
        let tensors = block_weights(graph, block).into_par_iter();
        let tensors: Result<_, PassError> = tensors.map(|w| tensor(block, w, &writers)).collect();
        blocks.insert(block, tensors?);
    }
    let head = head.map(|head| (head.weight, sums.mean(&head_entry(head, weights), 0)));
    Ok(FisherScores {
        blocks,
        head,
        loss: sums.loss(),
    })
}

/// The tensors of a link, their entries and elements: what stands between blocks only passes the
/// gradient on.
fn tensors(
    graph: &Graph,
    weights: &WeightTable,
    link: &Link,
) -> Result<Vec<(WeightId, String, Vec<f32>)>, PassError> {
    let Some(block) = link.block else {
        return Ok(vec![]);
    };
    let tensor = |weight: WeightId| {
        let entry = tensor_entry(graph, weights, block, weight);
        Ok((weight, entry, weights[weight].to_f32()?))
    };
    block_weights(graph, block)
        .into_iter()
        .map(tensor)
        .collect()
}

fn mean_square(theta: &[f32]) -> f64 {
    theta.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / theta.len().max(1) as f64
}

/// The weights of a block, each once, in the order in which the block reads them.
fn block_weights(graph: &Graph, block: BlockId) -> Vec<WeightId> {
    let mut weights = Vec::new();
    let operands = graph.block_nodes(block).flat_map(|(_, node)| &node.inputs);
    for operand in operands {
        if let Operand::Weight(weight) = operand
            && !weights.contains(weight)
        {
            weights.push(*weight);
        }
    }
    weights
}

/// Forgets what runs over so many links have kept.
pub(crate) fn forget(kept: Kept<'_>, links: usize) {
    kept.remove(WAY_BACK);
    for at in 0..=links {
        kept.remove(&border_part(at));
        kept.remove(&gradient_part(at));
    }
}

const WAY_BACK: &str = "way back";

fn border_part(at: usize) -> String {
    format!("border {at}")
}

fn gradient_part(links: usize) -> String {
    format!("gradient {links}")
}

/// What a link makes of each sample: kept by an earlier run, or computed.
fn border(
    chain: &Chain<'_>,
    link: &Link,
    at: usize,
    feeds: &[Values],
    before: Option<&Vec<Array>>,
    kept: Kept<'_>,
    steps: &mut Steps<'_>,
) -> Result<Vec<Array>, PassError> {
    if let Some(known) = kept.arrays(&border_part(at), feeds.len()) {
        steps.skip(feeds.len());
        return Ok(known);
    }
    let segment = chain.load(link)?;
    let mut made = Vec::new();
    for (s, feed) in feeds.iter().enumerate() {
        made.push(Chain::forward(&segment, link, feed, before.map(|b| &b[s]))?);
        steps.step()?;
    }
    kept.put_arrays(&border_part(at), &made);
    Ok(made)
}

/// What is known so far on the way back from the head, but for the gradients.
#[derive(Debug, Serialize, Deserialize)]
struct WayBack {
    /// Links after, the head aside.
    links: usize,
    sums: FisherSums,
}

impl WayBack {
    fn start(layout: &Layout, samples: usize) -> Self {
        let sums = FisherSums {
            samples,
            ..FisherSums::zero(layout)
        };
        Self { links: 0, sums }
    }

    /// What an earlier run kept, with the gradients of so many samples.
    fn kept(
        kept: Kept<'_>,
        links: usize,
        layout: &Layout,
        samples: usize,
    ) -> Option<(Self, Vec<Array>)> {
        let fits = |way: &Self| {
            way.links <= links && way.sums.samples == samples && way.sums.layout() == *layout
        };
        let way: Self = kept.get(WAY_BACK).filter(fits)?;
        let gradients = kept.arrays(&gradient_part(way.links), samples)?;
        Some((way, gradients))
    }

    fn keep(&self, kept: Kept<'_>, gradients: &[Array]) {
        kept.put_arrays(&gradient_part(self.links), gradients);
        kept.put(WAY_BACK, self);
        if let Some(last) = self.links.checked_sub(1) {
            kept.remove(&gradient_part(last));
        }
    }
}

type WeightGradients = BTreeMap<WeightId, Array>;

/// The gradient of the residual that a link reads, and those of `weights`. A first link that reads
/// none returns the seed.
fn residual_gradient(
    trace: &Trace<'_>,
    link: &Link,
    seed: Array,
    weights: Vec<WeightId>,
) -> Result<(Array, WeightGradients), PassError> {
    let wanted = Wanted {
        values: link.reads.into_iter().collect(),
        weights,
    };
    let mut gradients = trace.vjp(&[(link.makes, seed.clone())], &wanted)?;
    let residual = link
        .reads
        .and_then(|v| gradients.values.remove(&v))
        .unwrap_or(seed);
    Ok((residual, gradients.weights))
}

/// The matrices whose products are added to the block's residual, norms and constant factors between
/// them aside: that of a `linear`, or the last one of each expert.
fn residual_writers(graph: &Graph, block: BlockId) -> Vec<WeightId> {
    let sum = before_norms(graph, graph.block(block).output).filter(|n| n.op == Op::Add);
    let values = sum.into_iter().flat_map(|sum| &sum.inputs).filter_map(|o| {
        if let Operand::Value(v) = o {
            Some(*v)
        } else {
            None
        }
    });
    let writes = |node: &&Node| matches!(node.op, Op::Linear | Op::Experts(_));
    let writer = values
        .filter_map(|v| before_norms(graph, v))
        .filter(|n| n.block == Some(block))
        .find(writes);
    let matrices = writer.into_iter().flat_map(|node| match node.op {
        Op::Experts(_) => {
            let first = Experts::LEADING + Experts::MATRICES - 1;
            let downs = node.inputs.iter().skip(first).step_by(Experts::MATRICES);
            downs.collect()
        }
        _ => node.inputs.get(1).into_iter().collect::<Vec<_>>(),
    });
    let weight = |operand: &Operand| match operand {
        Operand::Weight(w) => Some(*w),
        Operand::Value(_) => None,
    };
    matrices.filter_map(weight).collect()
}

/// The node that makes `value`, before norms and constant factors.
fn before_norms(graph: &Graph, value: ValueId) -> Option<&Node> {
    let Def::Node(node, _) = graph.value(value).def else {
        return None;
    };
    let node = graph.node(node);
    match (&node.op, node.inputs.first()) {
        (Op::LayerNorm { .. } | Op::RmsNorm { .. } | Op::Scale { .. }, Some(Operand::Value(v))) => {
            before_norms(graph, *v)
        }
        _ => Some(node),
    }
}

/// The sum of squared gradients, and that of squared gradients by squared elements.
fn squares(gradient: &[f32], theta: &[f32]) -> [f64; 2] {
    let (mut squares, mut weighted) = (0.0, 0.0);
    for (&g, &x) in gradient.iter().zip(theta) {
        let square = f64::from(g) * f64::from(g);
        squares += square;
        weighted += square * f64::from(x) * f64::from(x);
    }
    [squares, weighted]
}
