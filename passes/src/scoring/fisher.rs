//! The empirical Fisher information of every weight, block by block.
//!
//! For sample s with loss `L_s` (mean cross-entropy of the [`Objective`]'s answers) and weight
//! tensor t, `Tr(F_t) ~ 1/n sum_s || dL_s/dtheta_t ||^2`: squares of per-sample gradients (FIT,
//! Zandonati et al., ICLR 2023; SDFP, arXiv 2602.05499). One forward keeps the residual at every
//! block border; then, from the last block to the first, the block is run again with gradients. One
//! block's weights and gradients are in memory at a time.

use std::collections::BTreeMap;

use dlc_eval::{Array, Segment, Trace, Values, Wanted};
use dlc_ir::{
    BlockId, Def, EntityId, Experts, Graph, Node, Op, Operand, ValueId, WeightId, WeightTable,
};
use serde::{Deserialize, Serialize};

use super::chain::{Chain, Link};
use super::no_links;
use super::objective::{Objective, row_slices};
use super::steps::Steps;
use crate::context::Progress;
use crate::draft::head;
use crate::error::PassError;
use crate::kept::Kept;

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
        Head::of(graph),
        Kept::new(None, ""),
        progress,
    )
}

/// Goes on where an earlier run was stopped: what links make is kept on the way to the head,
/// gradients and scores on the way back. What is kept at the end is everything; [`forget`] removes
/// it.
pub(crate) fn scores(
    graph: &Graph,
    weights: &WeightTable,
    objective: Objective,
    samples: &[Vec<u32>],
    matrix: Option<Head>,
    kept: Kept<'_>,
    progress: &dyn Progress,
) -> Result<FisherScores, PassError> {
    let chain = Chain::new(graph, weights)?;
    let feeds = chain.feeds(samples)?;
    let (last, body) = chain.links.split_last().ok_or_else(no_links)?;
    let backward = body.iter().filter(|link| link.reads.is_some()).count();
    let mut steps = Steps::start(
        progress,
        "scoring by Fisher information",
        (body.len() + 1 + backward) * samples.len(),
    )?;

    let earlier = WayBack::kept(kept, backward, samples.len());
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
        let (mut way, mut gradients) = (WayBack::default(), Vec::new());
        let head = chain.load(last)?;
        let inputs = borders.pop();
        for (s, tokens) in samples.iter().enumerate() {
            let known = Chain::known(last, &feeds[s], inputs.as_ref().map(|b| &b[s]));
            let trace = head.trace(&known)?;
            let (loss, seed) = objective.loss(&trace.value(chain.logits)?, tokens)?;
            way.loss += f64::from(loss) / samples.len() as f64;
            if let Some(matrix) = &matrix {
                way.head +=
                    matrix.squared_gradient(&trace, chain.logits, &seed)? / samples.len() as f64;
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
        // What stands between blocks only passes the gradient on.
        let mut tensors = link
            .block
            .map_or_else(|| Ok(vec![]), |block| tensors(&chain, block, &segment))?;
        let wanted: Vec<WeightId> = tensors.iter().map(|(t, _)| t.weight).collect();
        for (s, gradient) in gradients.iter_mut().enumerate() {
            let known = Chain::known(link, &feeds[s], inputs.as_ref().map(|b| &b[s]));
            let (incoming, weight_gradients) = residual_gradient(
                &segment.trace(&known)?,
                link,
                gradient.clone(),
                wanted.clone(),
            )?;
            for (tensor, theta) in &mut tensors {
                if let Some(g) = weight_gradients.get(&tensor.weight).and_then(Array::as_f32) {
                    accumulate(tensor, theta, g, samples.len());
                }
            }
            *gradient = incoming;
            steps.step()?;
        }
        way.add(link.block, tensors.into_iter().map(|(t, _)| t), weights);
        way.keep(kept, &gradients);
        kept.remove(&border_part(borders.len()));
    }
    let (head, loss) = (matrix.map(|m| (m.weight, way.head)), way.loss);
    Ok(FisherScores {
        blocks: way.scores(graph, weights),
        head,
        loss,
    })
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
#[derive(Debug, Default, Serialize, Deserialize)]
struct WayBack {
    /// Links after, the head aside.
    links: usize,
    loss: f64,
    /// Tr(F) of the head's matrix, if it was asked for.
    head: f64,
    tensors: Vec<TensorRecord>,
}

/// A [`TensorFisher`] under its tensor's name.
#[derive(Debug, Serialize, Deserialize)]
struct TensorRecord {
    block: u32,
    weight: String,
    trace: f64,
    mean_square: f64,
    elementwise: f64,
    writes_residual: bool,
}

impl WayBack {
    /// What an earlier run kept, with the gradients of so many samples.
    fn kept(kept: Kept<'_>, links: usize, samples: usize) -> Option<(Self, Vec<Array>)> {
        let way: Self = kept.get(WAY_BACK).filter(|way: &Self| way.links <= links)?;
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

    fn add(
        &mut self,
        block: Option<BlockId>,
        tensors: impl Iterator<Item = TensorFisher>,
        weights: &WeightTable,
    ) {
        self.links += 1;
        let record = |block: BlockId, t: TensorFisher| TensorRecord {
            block: block.index() as u32,
            weight: weights[t.weight].name.clone(),
            trace: t.trace,
            mean_square: t.mean_square,
            elementwise: t.elementwise,
            writes_residual: t.writes_residual,
        };
        if let Some(block) = block {
            self.tensors.extend(tensors.map(|t| record(block, t)));
        }
    }

    fn scores(self, graph: &Graph, weights: &WeightTable) -> BTreeMap<BlockId, Vec<TensorFisher>> {
        let mut blocks: BTreeMap<BlockId, Vec<TensorFisher>> =
            graph.blocks().map(|(id, _)| (id, vec![])).collect();
        for t in self.tensors {
            let block = graph
                .blocks()
                .map(|(id, _)| id)
                .find(|id| id.index() == t.block as usize);
            if let (Some(weight), Some(of)) = (
                weights.find(&t.weight),
                block.and_then(|id| blocks.get_mut(&id)),
            ) {
                let TensorRecord {
                    trace,
                    mean_square,
                    elementwise,
                    writes_residual,
                    ..
                } = t;
                of.push(TensorFisher {
                    weight,
                    trace,
                    mean_square,
                    elementwise,
                    writes_residual,
                });
            }
        }
        blocks
    }
}

/// The product that makes the logits.
pub(crate) struct Head {
    weight: WeightId,
    reads: ValueId,
    makes: ValueId,
}

impl Head {
    pub fn of(graph: &Graph) -> Option<Self> {
        let node = graph.node(head(graph)?.0);
        match (&node.op, &node.inputs[..], &node.outputs[..]) {
            (Op::Linear, &[Operand::Value(reads), Operand::Weight(weight), ..], &[makes]) => {
                Some(Self {
                    weight,
                    reads,
                    makes,
                })
            }
            _ => None,
        }
    }

    /// Squared norm of the gradient `sum_t g_t h_t'` of the matrix, which isn't made:
    /// `sum over t, u of (g_t . g_u) (h_t . h_u)`.
    fn squared_gradient(
        &self,
        trace: &Trace<'_>,
        logits: ValueId,
        seed: &Array,
    ) -> Result<f64, PassError> {
        let wanted = Wanted {
            values: vec![self.makes],
            weights: vec![],
        };
        let gradient = trace
            .vjp(&[(logits, seed.clone())], &wanted)?
            .values
            .remove(&self.makes);
        let states = trace.value(self.reads)?;
        let g: Vec<&[f32]> = gradient.iter().flat_map(row_slices).collect();
        let h: Vec<&[f32]> = row_slices(&states).collect();
        let dot =
            |a: &[f32], b: &[f32]| f64::from(a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>());
        let product = |t: usize, u: usize| dot(g[t], g[u]) * dot(h[t], h[u]);
        let row = |t: usize| product(t, t) + 2.0 * (0..t).map(|u| product(t, u)).sum::<f64>();
        Ok((0..g.len().min(h.len())).map(row).sum())
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

/// The block's tensors with nothing accumulated yet, and their entries.
fn tensors(
    chain: &Chain<'_>,
    block: BlockId,
    segment: &Segment<'_>,
) -> Result<Vec<(TensorFisher, Vec<f32>)>, PassError> {
    let writers = residual_writers(chain.graph, block);
    let mut tensors = Vec::new();
    for &weight in segment.weights() {
        let theta = chain.weights[weight].to_f32()?;
        let mean_square =
            theta.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / theta.len().max(1) as f64;
        let writes_residual = writers.contains(&weight);
        tensors.push((
            TensorFisher {
                weight,
                trace: 0.0,
                mean_square,
                elementwise: 0.0,
                writes_residual,
            },
            theta,
        ));
    }
    Ok(tensors)
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

fn accumulate(tensor: &mut TensorFisher, theta: &[f32], gradient: &[f32], samples: usize) {
    let (mut squares, mut weighted) = (0.0, 0.0);
    for (&g, &x) in gradient.iter().zip(theta) {
        let square = f64::from(g) * f64::from(g);
        squares += square;
        weighted += square * f64::from(x) * f64::from(x);
    }
    tensor.trace += squares / samples as f64;
    tensor.elementwise += weighted / samples as f64;
}
