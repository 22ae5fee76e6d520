//! The matrices of a graph that can be quantised, what that would do to them, and doing it.
//!
//! Ids of nodes and blocks stay what they were, so that a caller may quantise one block after the
//! other, each in its own way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dlc_ir::{
    BlockId, Coded, CodedPart, DType, Experts, Expr, Graph, GroupFormat, IrError, Node, NodeId, Op,
    Operand, QuantizedPart, Quantizer, Refinement, Weight, WeightId, WeightTable,
};
use rayon::prelude::*;

use super::unsupported;
use crate::draft::head;
use crate::error::PassError;
use crate::fold_constants::constant_values;
use crate::routers::routers;

/// A matrix of weights that a node multiplies with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// The node.
    pub node: NodeId,
    /// The matrix, `[out, in]`.
    pub weight: WeightId,
    /// The block that the node belongs to.
    pub block: Option<BlockId>,
    /// Whether the logits come from it.
    pub is_head: bool,
    /// Whether rows of it are looked up, rather than products made with it.
    pub is_table: bool,
}

/// The matrices of `graph` that aren't quantised yet, in the order of the nodes. Those that choose
/// experts stay as they are: an error there is another expert. So do those whose products are
/// constants.
pub fn matrices(graph: &Graph, weights: &WeightTable) -> Vec<Matrix> {
    let head = head(graph).map(|(node, _)| node);
    let routers = routers(graph);
    let mut matrices = Vec::new();
    let constants = constant_values(graph);
    let is_constant = |node: &Node| match node.inputs.first() {
        Some(Operand::Value(input)) => constants.contains(input),
        _ => false,
    };
    let products = graph.nodes().filter(|(id, node)| {
        !routers.contains(id) && node.lookup().is_none() && !is_constant(node)
    });
    for (id, node) in products {
        for operand in unquantized(node) {
            if let Operand::Weight(weight) = *operand
                && weights[weight].elements() > 0
            {
                matrices.push(Matrix {
                    node: id,
                    weight,
                    block: node.block,
                    is_head: head == Some(id),
                    is_table: false,
                });
            }
        }
    }
    matrices
}

/// The tables of `graph` that tokens are looked up in, in floats and in whole groups of so many.
pub(super) fn tables(graph: &Graph, weights: &WeightTable, group_size: usize) -> Vec<Matrix> {
    let ids = graph
        .find_input("input_ids")
        .map(|input| Operand::Value(input.value));
    let table = |(node, found): (NodeId, &Node)| match (&found.op, found.lookup()?) {
        (Op::Gather, (Operand::Weight(weight), looked_up)) if Some(looked_up) == ids => {
            let (rows, columns) = matrix_shape(&weights[weight]).ok()?;
            (rows > 0 && columns.is_multiple_of(group_size)).then_some(Matrix {
                node,
                weight,
                block: found.block,
                is_head: false,
                is_table: true,
            })
        }
        _ => None,
    };
    graph.nodes().filter_map(table).collect()
}

/// The inputs of `node` that are matrices in floats.
fn unquantized(node: &Node) -> &[Operand] {
    match (&node.op, &node.inputs[..]) {
        (Op::Linear, [Operand::Value(_), matrix, ..])
        | (Op::Gather, [matrix @ Operand::Weight(_), _]) => std::slice::from_ref(matrix),
        (Op::Experts(Experts { format: None, .. }), inputs) => {
            inputs.get(Experts::LEADING..).unwrap_or_default()
        }
        _ => &[],
    }
}

/// The codes that a weight stands for, in the layout that keeps them, if one does.
pub(crate) fn codes(weights: &WeightTable, id: WeightId) -> Option<(&Arc<dyn Coded>, GroupFormat)> {
    match weights[id].expr()? {
        Expr::Coded {
            matrix,
            part: CodedPart::Entries,
        } if weights[id].shape == matrix.shape() => Some((matrix, matrix.group_format()?)),
        _ => None,
    }
}

/// Whether any matrix of `graph` stands for codes that can be kept.
pub(crate) fn keeps_codes(graph: &Graph, weights: &WeightTable) -> bool {
    matrices(graph, weights)
        .iter()
        .any(|matrix| codes(weights, matrix.weight).is_some())
}

/// What quantising does to a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perturbation {
    /// Mean square of the change of an entry: the `E[d^2]` that FIT multiplies with the trace of
    /// the Fisher information.
    pub mean_square: f64,
    /// The same with rounding to nearest alone.
    pub mean_square_nearest: f64,
    /// Mean square of the change as a share of that of the matrix; 0 for a matrix of zeros.
    pub relative: f64,
    /// Share of the groups that refining brought nearer.
    pub refined: f64,
}

/// What `quantizer` would do to `weight`, a matrix; nothing is written or kept. Runs on the rayon
/// pool that the caller has installed.
///
/// # Errors
/// [`PassError::Ir`] for a weight without data, [`PassError::Unsupported`] for one that isn't a
/// matrix in f32 or f16.
pub fn perturbation(weight: &Weight, quantizer: &Quantizer) -> Result<Perturbation, PassError> {
    const ENTRIES: usize = 1 << 20;
    let (_, columns) = matrix_shape(weight)?;
    let rows_at_once = (ENTRIES / columns).max(1) * columns;
    let starts: Vec<usize> = (0..weight.elements()).step_by(rows_at_once).collect();
    let nearest = Quantizer {
        refinement: Refinement::None,
        ..*quantizer
    };
    let part = |&from: &usize| -> Result<[f64; 4], IrError> {
        let mut entries = vec![0.0; rows_at_once.min(weight.elements() - from)];
        weight.read_f32(from, &mut entries)?;
        let mut sums = [0.0; 4];
        for group in entries
            .chunks(columns)
            .flat_map(|row| row.chunks(quantizer.format.group_size))
        {
            let (plain, square) = nearest.squared_error(group, weight.dtype);
            let error = if quantizer.refinement == Refinement::None {
                plain
            } else {
                quantizer.squared_error(group, weight.dtype).0
            };
            sums = [
                sums[0] + error,
                sums[1] + plain,
                sums[2] + square,
                sums[3] + f64::from(u8::from(error < plain)),
            ];
        }
        Ok(sums)
    };
    // Parts are summed in order, so that the number of threads doesn't matter.
    let parts = starts.par_iter().map(part).collect::<Result<Vec<_>, _>>()?;
    let [error, plain, square, refined] = parts
        .into_iter()
        .fold([0.0; 4], |a, b| std::array::from_fn(|i| a[i] + b[i]));
    let (entries, groups) = (
        weight.elements() as f64,
        (weight.elements() / columns * quantizer.format.groups(columns)) as f64,
    );
    Ok(Perturbation {
        mean_square: error / entries,
        mean_square_nearest: plain / entries,
        relative: if square == 0.0 { 0.0 } else { error / square },
        refined: refined / groups,
    })
}

/// How far known codes are from a matrix.
fn distance(weight: &Weight, matrix: &Arc<dyn Coded>) -> Result<Perturbation, PassError> {
    const ENTRIES: usize = 1 << 20;
    let coded = Expr::Coded {
        matrix: Arc::clone(matrix),
        part: CodedPart::Entries,
    };
    let starts: Vec<usize> = (0..weight.elements()).step_by(ENTRIES).collect();
    let part = |&from: &usize| -> Result<[f64; 2], IrError> {
        let mut entries = vec![0.0; ENTRIES.min(weight.elements() - from)];
        let mut rounded = vec![0.0; entries.len()];
        weight.read_f32(from, &mut entries)?;
        coded.read_f32(from, &mut rounded);
        let pairs = entries.iter().zip(&rounded);
        Ok(pairs.fold([0.0; 2], |[error, square], (w, r)| {
            let (w, r) = (f64::from(*w), f64::from(*r));
            [error + (w - r).powi(2), square + w * w]
        }))
    };
    let parts = starts.par_iter().map(part).collect::<Result<Vec<_>, _>>()?;
    let [error, square] = parts
        .into_iter()
        .fold([0.0; 2], |a, b| std::array::from_fn(|i| a[i] + b[i]));
    let mean_square = error / weight.elements().max(1) as f64;
    Ok(Perturbation {
        mean_square,
        mean_square_nearest: mean_square,
        relative: if square == 0.0 { 0.0 } else { error / square },
        refined: 0.0,
    })
}

/// Quantises the matrices of `block`.
///
/// # Errors
/// As [`quantize_nodes`].
pub fn quantize_block(
    graph: &mut Graph,
    weights: &mut WeightTable,
    block: BlockId,
    quantizer: &Quantizer,
) -> Result<(), PassError> {
    let nodes = matrices(graph, weights)
        .into_iter()
        .filter(|m| m.block == Some(block))
        .map(|m| m.node)
        .collect();
    quantize_nodes(graph, weights, &nodes, quantizer)
}

/// Quantises the matrices of `nodes`, which are nodes of `graph` that [`matrices`] lists. Weights of
/// other graphs stay as they are.
///
/// # Errors
/// As [`code_matrices`].
pub fn quantize_nodes(
    graph: &mut Graph,
    weights: &mut WeightTable,
    nodes: &BTreeSet<NodeId>,
    quantizer: &Quantizer,
) -> Result<(), PassError> {
    let rule = |matrix: &Matrix| {
        nodes
            .contains(&matrix.node)
            .then_some(Coding::Rule(*quantizer))
    };
    code_matrices(graph, weights, rule)
}

/// How a matrix becomes codes.
#[derive(Debug, Clone)]
pub enum Coding {
    /// By a rule, from its entries alone, when it is written.
    Rule(Quantizer),
    /// These are the codes.
    Known(Arc<dyn Coded>, GroupFormat),
}

impl Coding {
    /// Bits and groups.
    pub fn format(&self) -> GroupFormat {
        match self {
            Self::Rule(quantizer) => quantizer.format,
            Self::Known(_, format) => *format,
        }
    }

    /// What it does to `weight`.
    ///
    /// # Errors
    /// As [`perturbation`].
    pub fn perturbation(&self, weight: &Weight) -> Result<Perturbation, PassError> {
        match self {
            Self::Rule(quantizer) => perturbation(weight, quantizer),
            Self::Known(matrix, _) => distance(weight, matrix),
        }
    }

    fn is_symmetric(&self) -> bool {
        match self {
            Self::Rule(quantizer) => quantizer.symmetric,
            Self::Known(matrix, format) => matrix.is_symmetric(*format),
        }
    }
}

/// Gives the matrices of `graph` the codes that `coding` says, which is the same for all matrices of
/// a node. Weights of other graphs stay as they are.
///
/// # Errors
/// [`PassError::Unsupported`] for matrices that are in neither f32 nor f16; [`PassError::Ir`] for
/// weights without data.
pub fn code_matrices(
    graph: &mut Graph,
    weights: &mut WeightTable,
    coding: impl Fn(&Matrix) -> Option<Coding>,
) -> Result<(), PassError> {
    let mut chosen: BTreeMap<NodeId, Coding> = BTreeMap::new();
    let tables = tables(graph, weights, 1);
    for matrix in matrices(graph, weights).into_iter().chain(tables) {
        if let Some(coding) = coding(&matrix) {
            chosen.insert(matrix.node, coding);
        }
    }
    let mut replaced = BTreeMap::new();
    for (id, coding) in chosen {
        let node = graph.node(id);
        let format = coding.format();
        let op = match node.op {
            Op::Experts(experts) => Op::Experts(Experts {
                format: Some(format),
                ..experts
            }),
            Op::Gather => Op::QuantizedGather(format),
            _ => Op::QuantizedLinear(format),
        };
        let floats = unquantized(node);
        let mut inputs = Vec::new();
        for operand in &node.inputs {
            match operand {
                Operand::Weight(weight) if floats.contains(operand) => {
                    inputs.extend(coded(weights, *weight, &coding)?);
                }
                other => inputs.push(*other),
            }
        }
        replaced.insert(id, (op, inputs));
    }
    Ok(graph.replace_nodes(weights, |id, _| replaced.remove(&id))?)
}

/// The parts of a coded weight, as operands: expressions that are evaluated when they are written.
fn coded(
    weights: &mut WeightTable,
    id: WeightId,
    coding: &Coding,
) -> Result<Vec<Operand>, PassError> {
    let weight = &weights[id];
    let shape @ (_, columns) = matrix_shape(weight)?;
    let format = coding.format();
    let name = format!("{}.int{}x{}", weight.name, format.bits, format.group_size);
    let data: Box<dyn Fn(QuantizedPart) -> Expr> = match coding {
        Coding::Rule(quantizer) => {
            let input = Arc::new(weight.unrounded()?.clone().cast(weight.dtype));
            let quantizer = *quantizer;
            Box::new(move |part| Expr::Quantize {
                input: Arc::clone(&input),
                columns,
                quantizer,
                part,
            })
        }
        Coding::Known(matrix, format) => {
            let (matrix, format, dtype) = (Arc::clone(matrix), *format, weight.dtype);
            Box::new(move |part| {
                let data = Expr::Coded {
                    matrix: Arc::clone(&matrix),
                    part: CodedPart::Part(format, part),
                };
                match part {
                    QuantizedPart::Scales => data.cast(dtype),
                    QuantizedPart::Codes | QuantizedPart::ZeroPoints => data,
                }
            })
        }
    };
    add_parts(weights, &name, format, shape, coding.is_symmetric(), data)
}

/// Adds the parts of a matrix of codes as weights whose names begin with `name`.
pub(crate) fn add_parts(
    weights: &mut WeightTable,
    name: &str,
    format: GroupFormat,
    (rows, columns): (usize, usize),
    symmetric: bool,
    data: impl Fn(QuantizedPart) -> Expr,
) -> Result<Vec<Operand>, PassError> {
    let groups = format.groups(columns);
    let codes = vec![rows, groups, format.code_bytes()];
    let mut parts = vec![
        (QuantizedPart::Codes, "codes", codes),
        (QuantizedPart::Scales, "scales", vec![rows, groups]),
    ];
    if !symmetric {
        let shape = vec![rows, format.zero_point_bytes(columns)];
        parts.push((QuantizedPart::ZeroPoints, "zero_points", shape));
    }
    let add = |(part, end, shape): (QuantizedPart, &str, Vec<usize>)| {
        let id = weights.add_apart(&format!("{name}.{end}"), &shape, data(part))?;
        Ok(id.into())
    };
    parts.into_iter().map(add).collect()
}

/// Rows and columns of a matrix that can be quantised.
pub(super) fn matrix_shape(weight: &Weight) -> Result<(usize, usize), PassError> {
    let has_type = matches!(weight.dtype, DType::F32 | DType::F16);
    match weight.shape[..] {
        [rows, columns] if rows * columns > 0 && has_type => Ok((rows, columns)),
        _ => Err(unsupported(format!(
            "weight {} is {}, and only matrices in f32 and f16 are quantised; compile with --dtype f32",
            weight.name,
            weight.ty()
        ))),
    }
}
