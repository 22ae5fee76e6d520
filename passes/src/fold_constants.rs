//! Nodes that read weights alone: what they make is a weight too, computed when the bundle is
//! written.
//!
//! Runs once all passes have: they see, change and score the matrices that the nodes read.
//! `DeBERTa`'s projections of relative positions are such nodes. ONNX Runtime 1.31.1 leaves them in
//! the graph where it fuses the transposed matrix with the product before it looks for constants.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use dlc_ir::{Expr, Graph, IrError, Module, Op, Operand, ValueId, Weight, WeightId, WeightTable};

use crate::error::PassError;

/// Puts weights in the place of what linear layers and layer norms make of weights alone; returns
/// how many nodes these were.
///
/// # Errors
/// [`PassError::Ir`] for a graph that then doesn't fit together.
pub fn fold_constants(module: &mut Module) -> Result<usize, PassError> {
    let mut nodes = 0;
    for graph in &mut module.graphs {
        nodes += fold(graph, &mut module.weights)?;
    }
    if nodes > 0 {
        module.remove_unused_weights();
    }
    Ok(nodes)
}

/// The values that nodes make of weights alone.
pub(crate) fn constant_values(graph: &Graph) -> BTreeSet<ValueId> {
    let mut constant = BTreeSet::new();
    for (_, node) in graph.nodes() {
        let is_constant = |operand: &Operand| match operand {
            Operand::Weight(_) => true,
            Operand::Value(value) => constant.contains(value),
        };
        if node.inputs.iter().all(is_constant) {
            constant.extend(&node.outputs);
        }
    }
    constant
}

fn fold(graph: &mut Graph, weights: &mut WeightTable) -> Result<usize, IrError> {
    let mut folded = HashMap::new();
    for (_, node) in graph.nodes() {
        let operands = node.inputs.iter().map(|operand| match operand {
            Operand::Weight(id) => Some(*id),
            Operand::Value(value) => folded.get(value).copied(),
        });
        let (Some(operands), &[made]) = (operands.collect::<Option<Vec<_>>>(), &node.outputs[..])
        else {
            continue;
        };
        if let Some(weight) = evaluated(&node.op, &operands, weights)? {
            folded.insert(made, weight);
        }
    }
    if folded.is_empty() {
        return Ok(0);
    }
    graph.replace_nodes(weights, |_, node| {
        let follow = |operand: &Operand| match operand {
            Operand::Value(value) => folded.get(value).map_or(*operand, |id| (*id).into()),
            Operand::Weight(_) => *operand,
        };
        Some((node.op.clone(), node.inputs.iter().map(follow).collect()))
    })?;
    graph.remove_dead();
    Ok(folded.len())
}

/// The weight that `op` makes of weights, if it is of the ops that are folded.
fn evaluated(
    op: &Op,
    operands: &[WeightId],
    weights: &mut WeightTable,
) -> Result<Option<WeightId>, IrError> {
    let operands: Vec<&Weight> = operands.iter().map(|id| &weights[*id]).collect();
    let [x, parameters @ ..] = operands.as_slice() else {
        return Ok(None);
    };
    let &[rows, columns] = x.shape.as_slice() else {
        return Ok(None);
    };
    let (Some(input), Some(parameters)) = (x.expr(), exprs(parameters)) else {
        return Ok(None);
    };
    let (made, width) = match op {
        Op::Linear => linear(input, &parameters, [rows, columns]),
        Op::LayerNorm { eps } => (
            layer_norm(input, &parameters, [rows, columns], *eps),
            columns,
        ),
        _ => return Ok(None),
    };
    let last = operands.get(1).unwrap_or(x);
    let name = format!("{}.of.{}", last.name, x.name);
    let data = made.cast(x.dtype);
    weights.add(&name, &[rows, width], data).map(Some)
}

fn exprs<'w>(weights: &[&'w Weight]) -> Option<Vec<&'w Expr>> {
    weights.iter().map(|weight| weight.expr()).collect()
}

/// `x weight' + bias`, and its width.
fn linear(x: &Expr, parameters: &[&Expr], [rows, inner]: [usize; 2]) -> (Expr, usize) {
    let width = parameters
        .first()
        .map_or(0, |matrix| matrix.elements() / inner.max(1));
    let mut parameters = parameters.iter().copied().cloned();
    let matrix = parameters.next().map(|matrix| matrix.transposed(inner));
    let product = Expr::MatMul {
        left: Arc::new(x.clone()),
        right: Arc::new(matrix.unwrap_or(Expr::Join(vec![]))),
        inner,
        columns: width,
    };
    let made = parameters.fold(product, |made, bias| {
        Expr::Add(made.into(), every_row(bias, rows))
    });
    (made, width)
}

/// `(x - mean) / sqrt(variance + eps) * scale + bias`.
fn layer_norm(x: &Expr, parameters: &[&Expr], [rows, columns]: [usize; 2], eps: f32) -> Expr {
    let mut made = Expr::NormalizeRows {
        input: Arc::new(x.clone()),
        columns,
        eps,
    };
    if let [scale, more @ ..] = parameters {
        made = Expr::Mul(made.into(), every_row((*scale).clone(), rows));
        for bias in more {
            made = Expr::Add(made.into(), every_row((*bias).clone(), rows));
        }
    }
    made
}

/// A vector, a copy for each row.
fn every_row(vector: Expr, rows: usize) -> Arc<Expr> {
    Arc::new(Expr::Repeat {
        input: Arc::new(vector),
        each: 1,
        times: rows,
    })
}
