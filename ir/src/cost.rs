//! What a graph costs: parameters, arithmetic and cache.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::dim::{Dim, Factor};
use crate::graph::{Graph, Node, Operand};
use crate::index::WeightId;
use crate::module::Diffusion;
use crate::op::{Experts, GroupFormat, Op};
use crate::types::{DType, Shape};
use crate::weight::WeightTable;

/// What the symbols of a graph's shapes stand for.
pub type Sizes = BTreeMap<String, u64>;

/// The cost of one graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Numbers of the weights that the graph uses, each counted once; of quantised ones those of
    /// the matrix that they stand for.
    pub parameters: u64,
    /// Bytes of these weights.
    pub weight_bytes: u64,
    /// Floating-point operations in matrix products with weights, per token: of a mixture those of
    /// the experts that a token goes through (attention over the cache comes on top).
    pub flops_per_token: u64,
    /// Bytes of key/value cache per token.
    pub cache_bytes_per_token: u64,
}

/// The cost of `graph`.
pub fn cost(graph: &Graph, weights: &WeightTable) -> Cost {
    let used = graph.weights();
    let quantized: BTreeMap<WeightId, QuantizedMatrix> = quantized_matrices(graph, weights)
        .map(|m| (m.codes, m))
        .collect();
    let scales: BTreeSet<WeightId> = quantized.values().map(|m| m.scales).collect();
    let numbers = used
        .iter()
        .filter(|w| weights[**w].dtype.is_float() && !scales.contains(w))
        .map(|w| weights[*w].elements() as u64);
    let parameters = total(numbers.chain(quantized.values().map(|m| m.elements)));
    let products = graph.nodes().filter_map(|(_, node)| {
        let entries = entries_of_a_token(graph, weights, node)?;
        Some(entries.saturating_mul(2))
    });
    let cache = graph
        .inputs()
        .iter()
        .filter(|i| i.cache.is_some())
        .map(|i| {
            let ty = &graph.value(i.value).ty;
            let width = ty
                .shape
                .0
                .iter()
                .filter_map(Dim::known)
                .fold(1usize, usize::saturating_mul);
            width.saturating_mul(ty.dtype.size()) as u64
        });
    let weight_bytes = total(used.iter().map(|w| weights[*w].bytes() as u64));
    Cost {
        parameters,
        weight_bytes,
        flops_per_token: total(products),
        cache_bytes_per_token: total(cache),
    }
}

/// Entries of the matrices of weights that a node multiplies each token with.
fn entries_of_a_token(graph: &Graph, weights: &WeightTable, node: &Node) -> Option<u64> {
    match (&node.op, &node.inputs[..]) {
        (Op::Linear, &[Operand::Value(_), Operand::Weight(matrix), ..]) => {
            Some(weights[matrix].elements() as u64)
        }
        (Op::QuantizedLinear(_), _) => {
            let matrices = matrices_of_node(graph, weights, node);
            matrices.first().map(|matrix| matrix.elements)
        }
        (Op::Experts(experts), &[Operand::Value(x), _, Operand::Weight(gate), ..]) => {
            let width = graph.value(x).ty.shape.last().and_then(Dim::known)?;
            let inner = *weights[gate].shape.first()?;
            of_experts(*experts, width.checked_mul(inner)? as u64)
        }
        _ => None,
    }
}

/// What a token meets of a mixture in which it meets so much of a matrix.
fn of_experts(experts: Experts, of_matrix: u64) -> Option<u64> {
    of_matrix
        .checked_mul(Experts::MATRICES as u64)?
        .checked_mul(experts.top as u64)
}

/// The sum, or the largest number.
fn total(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

/// A quantised matrix as one node uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantizedMatrix {
    /// Its layout.
    pub format: GroupFormat,
    /// Its codes.
    pub codes: WeightId,
    /// Its scales.
    pub scales: WeightId,
    /// Entries of the matrix.
    pub elements: u64,
    /// Bytes of codes, scales and zero points.
    pub bytes: u64,
}

/// The quantised matrices of `graph`, in the order of the nodes.
pub fn quantized_matrices<'g>(
    graph: &'g Graph,
    weights: &'g WeightTable,
) -> impl Iterator<Item = QuantizedMatrix> + use<'g> {
    let nodes = graph.nodes();
    nodes.flat_map(|(_, node)| matrices_of_node(graph, weights, node))
}

/// The quantised matrices that one node reads.
fn matrices_of_node(graph: &Graph, weights: &WeightTable, node: &Node) -> Vec<QuantizedMatrix> {
    if let (Op::QuantizedGather(format), Some((_, parts))) = (&node.op, node.inputs.split_last()) {
        let width = node.outputs.first().and_then(|made| {
            let shape = &graph.value(*made).ty.shape;
            shape.last().and_then(Dim::known)
        });
        let table = width.and_then(|width| matrix(weights, *format, parts, width));
        return table.into_iter().collect();
    }
    let width = match node.inputs.first() {
        Some(Operand::Value(x)) => graph.value(*x).ty.shape.last().and_then(Dim::known),
        _ => None,
    };
    let (Some(width), Some(inputs)) = (width, node.inputs.get(1..)) else {
        return vec![];
    };
    let matrix = |format, parts: &[Operand], columns| matrix(weights, format, parts, columns);
    match node.op {
        Op::QuantizedLinear(format) => matrix(format, inputs, width).into_iter().collect(),
        Op::Experts(
            experts @ Experts {
                format: Some(format),
                ..
            },
        ) => {
            let inputs = inputs.get(Experts::LEADING - 1..).unwrap_or_default();
            let shape = |operand: Option<&Operand>| match operand {
                Some(Operand::Weight(w)) => weights[*w].shape.clone(),
                _ => vec![],
            };
            let inner = shape(inputs.first()).first().copied().unwrap_or_default();
            let parts = experts.parts(shape(inputs.get(2)).len());
            let all = inputs
                .chunks(parts)
                .zip([width, width, inner].into_iter().cycle());
            all.filter_map(|(parts, columns)| matrix(format, parts, columns))
                .collect()
        }
        _ => vec![],
    }
}

/// The matrix `[.., columns]` that begins with these operands.
fn matrix(
    weights: &WeightTable,
    format: GroupFormat,
    operands: &[Operand],
    columns: usize,
) -> Option<QuantizedMatrix> {
    let [Operand::Weight(codes), Operand::Weight(scales), ..] = *operands else {
        return None;
    };
    let zero_points = operands.get(2).and_then(|operand| match operand {
        Operand::Weight(w) => Some(*w),
        Operand::Value(_) => None,
    });
    let parts = [
        Some(codes),
        Some(scales),
        zero_points.filter(|w| weights[*w].dtype == DType::U8),
    ];
    let bytes = parts
        .into_iter()
        .flatten()
        .map(|w| weights[w].bytes() as u64);
    Some(QuantizedMatrix {
        format,
        codes,
        scales,
        elements: columns.saturating_mul(*weights[codes].shape.first()?) as u64,
        bytes: total(bytes),
    })
}

/// Multiply-adds of one node: those of products with weights, of convolutions, and of both products
/// of attention (with keys that are there already, if there are caches). Everything else counts as
/// nothing.
///
/// Nothing if `sizes` lacks a symbol, or if the number is beyond all measure.
pub fn macs(graph: &Graph, weights: &WeightTable, node: &Node, sizes: &Sizes) -> Option<u64> {
    let ty = |at: usize| {
        node.inputs
            .get(at)
            .map(|operand| graph.operand_type(*operand, weights))
    };
    let made = || {
        node.outputs
            .first()
            .and_then(|v| elements(&graph.value(*v).ty.shape, sizes))
    };
    match arithmetic(&node.op) {
        Arithmetic::Matrix => made()?.checked_mul(length(ty(0)?.shape.last()?, sizes)?),
        Arithmetic::Mixture(experts) => {
            let inner = length(ty(Experts::LEADING)?.shape.0.first()?, sizes)?;
            of_experts(experts, made()?.checked_mul(inner)?)
        }
        Arithmetic::Kernel => {
            let kernel = Shape(ty(1)?.shape.0.get(1..)?.to_vec());
            made()?.checked_mul(elements(&kernel, sizes)?)
        }
        Arithmetic::Scores { causal } => {
            let mut keys = length(ty(1)?.shape.0.get(1)?, sizes)?;
            if causal && node.inputs.len() > 4 {
                keys = keys.checked_add(length(ty(4)?.shape.0.get(2)?, sizes)?)?;
            }
            made()?.checked_mul(keys)?.checked_mul(2)
        }
        Arithmetic::Uncounted => Some(0),
    }
}

/// What of an op's arithmetic counts.
enum Arithmetic {
    /// The product with a matrix of weights.
    Matrix,
    /// The products with the matrices of a token's experts.
    Mixture(Experts),
    /// The products with a convolution's kernel.
    Kernel,
    /// Both products of attention.
    Scores {
        /// Whether there are cached keys too.
        causal: bool,
    },
    /// Nothing beside products.
    Uncounted,
}

fn arithmetic(op: &Op) -> Arithmetic {
    match op {
        Op::Linear | Op::QuantizedLinear(_) => Arithmetic::Matrix,
        Op::Experts(experts) => Arithmetic::Mixture(*experts),
        Op::Conv2d { .. } => Arithmetic::Kernel,
        Op::Attention(attention) => Arithmetic::Scores {
            causal: attention.causal,
        },
        Op::Gather
        | Op::QuantizedGather(_)
        | Op::GatherColumns
        | Op::RmsNorm { .. }
        | Op::LayerNorm { .. }
        | Op::GroupNorm { .. }
        | Op::Upsample { .. }
        | Op::TimestepEmbedding(_)
        | Op::Modulate
        | Op::Positions { .. }
        | Op::LastToken { .. }
        | Op::FirstToken { .. }
        | Op::Rope(_)
        | Op::DisentangledBias(_)
        | Op::BucketedBias(_)
        | Op::Silu
        | Op::Gelu { .. }
        | Op::Tanh
        | Op::Relu
        | Op::Scale { .. }
        | Op::Clip { .. }
        | Op::Mul
        | Op::Add
        | Op::Concat { .. }
        | Op::Transpose { .. }
        | Op::Slice { .. }
        | Op::Reshape { .. }
        | Op::Cast { .. } => Arithmetic::Uncounted,
    }
}

/// Multiply-adds of a whole graph, see [`macs`].
pub fn graph_macs(graph: &Graph, weights: &WeightTable, sizes: &Sizes) -> Option<u64> {
    graph.nodes().try_fold(0u64, |sum, (_, node)| {
        sum.checked_add(macs(graph, weights, node, sizes)?)
    })
}

/// Tokens of text that the arithmetic of models of images is counted with: as many as CLIP gives.
pub const TEXT_TOKENS: u64 = 77;

/// The sizes for one image with [`TEXT_TOKENS`] tokens: of a model's own height and width, if it
/// makes images.
pub fn image_sizes(model: Option<&Diffusion>) -> Sizes {
    let sides = model.map(|model| {
        [
            (Diffusion::HEIGHT, model.height as u64),
            (Diffusion::WIDTH, model.width as u64),
        ]
    });
    let rest = [("batch", 1), ("text", TEXT_TOKENS)];
    sides
        .into_iter()
        .flatten()
        .chain(rest)
        .map(|(symbol, size)| (symbol.to_owned(), size))
        .collect()
}

/// Multiply-adds for one image, see [`image_sizes`]; nothing for graphs that don't work on images,
/// and without a size where the graph takes any.
pub fn macs_per_image(
    graph: &Graph,
    weights: &WeightTable,
    model: Option<&Diffusion>,
) -> Option<u64> {
    let on_images = graph
        .nodes()
        .any(|(_, node)| matches!(node.op, Op::Conv2d { .. }));
    if on_images {
        graph_macs(graph, weights, &image_sizes(model))
    } else {
        None
    }
}

fn elements(shape: &Shape, sizes: &Sizes) -> Option<u64> {
    shape
        .0
        .iter()
        .try_fold(1u64, |n, dim| n.checked_mul(length(dim, sizes)?))
}

/// The length of an axis at these sizes; none where it depends on a symbol that has none.
pub fn length(dim: &Dim, sizes: &Sizes) -> Option<u64> {
    let value = |factor: &Factor| {
        let symbol = usize::try_from(*sizes.get(&**factor.symbol())?).ok()?;
        factor.rounding().divide(symbol, factor.divisor())
    };
    dim.evaluate(value)?.try_into().ok()
}
