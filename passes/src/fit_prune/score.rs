//! The empirical Fisher information of every weight, block by block.
//!
//! For sample s with loss `L_s` (mean cross-entropy of the [`Objective`]'s answers) and weight tensor t, `Tr(F_t) ~ 1/n sum_s || dL_s/dtheta_t ||^2`: squares of
//! per-sample gradients (FIT, Zandonati et al., ICLR 2023; SDFP, arXiv 2602.05499). One forward keeps the residual at every block border; then,
//! from the last block to the first, the block is run again with gradients. One block's weights and gradients are in memory at a time.

use std::collections::BTreeMap;

use dlc_eval::{Array, Segment, Trace, Wanted};
use dlc_ir::{BlockId, Def, Graph, Node, Op, Operand, ValueId, WeightId, WeightTable};

use super::chain::{Chain, Link};
use super::objective::{Objective, row_slices};
use super::steps::Steps;
use crate::context::Progress;
use crate::draft::head;
use crate::error::PassError;

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
    /// Whether it is the matrix that writes into the residual stream (`o_proj`, `down_proj`).
    pub writes_residual: bool,
}

/// Fisher information of all blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct FisherScores {
    /// The tensors of each block, in the order in which the block reads them.
    pub blocks: BTreeMap<BlockId, Vec<TensorFisher>>,
    /// The matrix that makes the logits, and its Tr(F); none if something else makes them, or it wasn't asked for.
    pub head: Option<(WeightId, f64)>,
    /// Mean loss of the samples, in nats per answer.
    pub loss: f64,
}

/// Scores every block of `graph` on `samples`, each a sequence of 2 or more token ids. Runs on the rayon pool that is installed.
///
/// # Errors
/// [`PassError::Unsupported`] if the graph is no chain of blocks; [`PassError::Calibration`] if there is no sample, one holds less than 2
/// tokens, or a token is outside of the vocabulary.
pub fn fisher_scores(
    graph: &Graph,
    weights: &WeightTable,
    objective: Objective,
    samples: &[Vec<u32>],
    progress: &dyn Progress,
) -> Result<FisherScores, PassError> {
    scores(graph, weights, objective, samples, None, progress)
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
    scores(graph, weights, objective, samples, Head::of(graph), progress)
}

fn scores(
    graph: &Graph,
    weights: &WeightTable,
    objective: Objective,
    samples: &[Vec<u32>],
    mut matrix: Option<Head>,
    progress: &dyn Progress,
) -> Result<FisherScores, PassError> {
    let chain = Chain::new(graph, weights)?;
    let feeds = chain.feeds(samples)?;
    let (last, body) = chain.links.split_last().ok_or_else(no_links)?;
    let backward = body.iter().filter(|link| link.reads.is_some()).count();
    let mut steps = Steps::start(progress, "scoring by Fisher information", (body.len() + 1 + backward) * samples.len())?;

    let mut borders: Vec<Vec<Array>> = Vec::new();
    for link in body {
        let segment = chain.load(link)?;
        let mut next = Vec::new();
        for (s, feed) in feeds.iter().enumerate() {
            next.push(Chain::forward(&segment, link, feed, borders.last().map(|b| &b[s]))?);
            steps.step()?;
        }
        borders.push(next);
    }

    let mut loss = 0.0;
    let mut gradients = Vec::new();
    let head = chain.load(last)?;
    let head_inputs = borders.pop();
    for (s, tokens) in samples.iter().enumerate() {
        let known = Chain::known(last, &feeds[s], head_inputs.as_ref().map(|b| &b[s]));
        let trace = head.trace(&known)?;
        let (sample_loss, seed) = objective.loss(&trace.value(chain.logits)?, tokens)?;
        loss += f64::from(sample_loss) / samples.len() as f64;
        if let Some(matrix) = &mut matrix {
            matrix.trace += matrix.squared_gradient(&trace, chain.logits, &seed)? / samples.len() as f64;
        }
        gradients.push(residual_gradient(&trace, last, seed, vec![])?.0);
        steps.step()?;
    }
    drop((head, head_inputs));

    let mut blocks = BTreeMap::new();
    for link in body.iter().rev().filter(|link| link.reads.is_some()) {
        let inputs = borders.pop();
        let segment = chain.load(link)?;
        // What stands between blocks only passes the gradient on.
        let mut tensors = link.block.map_or_else(|| Ok(vec![]), |block| tensors(&chain, block, &segment))?;
        let weights: Vec<WeightId> = tensors.iter().map(|(t, _)| t.weight).collect();
        for (s, gradient) in gradients.iter_mut().enumerate() {
            let known = Chain::known(link, &feeds[s], inputs.as_ref().map(|b| &b[s]));
            let (incoming, weight_gradients) = residual_gradient(&segment.trace(&known)?, link, gradient.clone(), weights.clone())?;
            for (tensor, theta) in &mut tensors {
                if let Some(g) = weight_gradients.get(&tensor.weight).and_then(Array::as_f32) {
                    accumulate(tensor, theta, g, samples.len());
                }
            }
            *gradient = incoming;
            steps.step()?;
        }
        blocks.extend(link.block.map(|block| (block, tensors.into_iter().map(|(t, _)| t).collect())));
    }
    Ok(FisherScores { blocks, head: matrix.map(|m| (m.weight, m.trace)), loss })
}

/// The product that makes the logits, and what is known of it so far.
struct Head {
    weight: WeightId,
    reads: ValueId,
    makes: ValueId,
    trace: f64,
}

impl Head {
    fn of(graph: &Graph) -> Option<Self> {
        let node = graph.node(head(graph)?.0);
        match (&node.op, &node.inputs[..], &node.outputs[..]) {
            (Op::Linear, &[Operand::Value(reads), Operand::Weight(weight), ..], &[makes]) => Some(Self { weight, reads, makes, trace: 0.0 }),
            _ => None,
        }
    }

    /// Squared norm of the gradient `sum_t g_t h_t'` of the matrix, which isn't made: `sum over t, u of (g_t . g_u) (h_t . h_u)`.
    fn squared_gradient(&self, trace: &Trace<'_>, logits: ValueId, seed: &Array) -> Result<f64, PassError> {
        let wanted = Wanted { values: vec![self.makes], weights: vec![] };
        let gradient = trace.vjp(&[(logits, seed.clone())], &wanted)?.values.remove(&self.makes);
        let states = trace.value(self.reads)?;
        let g: Vec<&[f32]> = gradient.iter().flat_map(row_slices).collect();
        let h: Vec<&[f32]> = row_slices(&states).collect();
        let dot = |a: &[f32], b: &[f32]| f64::from(a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>());
        let product = |t: usize, u: usize| dot(g[t], g[u]) * dot(h[t], h[u]);
        let row = |t: usize| product(t, t) + 2.0 * (0..t).map(|u| product(t, u)).sum::<f64>();
        Ok((0..g.len().min(h.len())).map(row).sum())
    }
}

fn no_links() -> PassError {
    PassError::Unsupported { pass: super::NAME, problem: "the target has no nodes".into() }
}

type WeightGradients = BTreeMap<WeightId, Array>;

/// The gradient of the residual that a link reads, and those of `weights`. A first link that reads none returns the seed.
fn residual_gradient(trace: &Trace<'_>, link: &Link, seed: Array, weights: Vec<WeightId>) -> Result<(Array, WeightGradients), PassError> {
    let wanted = Wanted { values: link.reads.into_iter().collect(), weights };
    let mut gradients = trace.vjp(&[(link.makes, seed.clone())], &wanted)?;
    let residual = link.reads.and_then(|v| gradients.values.remove(&v)).unwrap_or(seed);
    Ok((residual, gradients.weights))
}

/// The block's tensors with nothing accumulated yet, and their entries.
fn tensors(chain: &Chain<'_>, block: BlockId, segment: &Segment<'_>) -> Result<Vec<(TensorFisher, Vec<f32>)>, PassError> {
    let residual_writer = residual_writer(chain.graph, block);
    let mut tensors = Vec::new();
    for &weight in segment.weights() {
        let theta = chain.weights[weight].to_f32()?;
        let mean_square = theta.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / theta.len().max(1) as f64;
        let writes_residual = residual_writer == Some(weight);
        tensors.push((TensorFisher { weight, trace: 0.0, mean_square, elementwise: 0.0, writes_residual }, theta));
    }
    Ok(tensors)
}

/// The matrix of the `linear` whose output is added to the block's residual, norms between aside.
fn residual_writer(graph: &Graph, block: BlockId) -> Option<WeightId> {
    let sum = behind_norms(graph, graph.block(block).output).filter(|n| n.op == Op::Add)?;
    let values = sum.inputs.iter().filter_map(|o| if let Operand::Value(v) = o { Some(*v) } else { None });
    let linear = values.filter_map(|v| behind_norms(graph, v)).find(|n| n.block == Some(block) && n.op == Op::Linear)?;
    linear.inputs.get(1).and_then(|o| if let Operand::Weight(w) = o { Some(*w) } else { None })
}

/// What makes `value`, or what a norm that makes it reads.
fn behind_norms(graph: &Graph, value: ValueId) -> Option<&Node> {
    let Def::Node(node, _) = graph.value(value).def else { return None };
    let node = graph.node(node);
    match (&node.op, node.inputs.first()) {
        (Op::LayerNorm { .. } | Op::RmsNorm { .. }, Some(Operand::Value(v))) => behind_norms(graph, *v),
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
