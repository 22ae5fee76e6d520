//! The float matrices that codes stand for: what sensitivities are measured on, and what is coded
//! anew in fewer bits.

use std::collections::BTreeMap;
use std::sync::Arc;

use dlc_ir::{
    CodedPart, DType, Expr, Graph, GroupFormat, Op, Operand, QuantizedPart, WeightId, WeightTable,
};

use super::matrices::Matrix;
use crate::draft::head;
use crate::error::PassError;

/// The matrices of codes that products of `graph` read: as `Matrix`, of which `weight` are the
/// codes.
pub(crate) fn coded_matrices(graph: &Graph) -> Vec<(Matrix, GroupFormat)> {
    let head = head(graph).map(|(node, _)| node);
    let coded = graph.nodes().filter_map(|(id, node)| match node.op {
        Op::QuantizedLinear(format) => {
            let Some(Operand::Weight(weight)) = node.inputs.get(1) else {
                return None;
            };
            let matrix = Matrix {
                node: id,
                weight: *weight,
                block: node.block,
                is_head: head == Some(id),
                is_table: false,
            };
            Some((matrix, format))
        }
        _ => None,
    });
    coded.collect()
}

/// Puts products with floats in the place of those with codes that `chosen` names: with the matrix
/// that was coded, or the numbers of the codes where that isn't known. Codes that stand in the
/// checkpoint by themselves stay.
pub(crate) fn put_floats(
    graph: &mut Graph,
    weights: &mut WeightTable,
    chosen: impl Fn(&Matrix, GroupFormat) -> bool,
) -> Result<(), PassError> {
    let mut replaced = BTreeMap::new();
    for (matrix, format) in coded_matrices(graph) {
        if chosen(&matrix, format) {
            let node = graph.node(matrix.node);
            let scales = match node.inputs.get(2) {
                Some(Operand::Weight(scales)) => weights[*scales].dtype,
                _ => DType::F32,
            };
            if let Some(floats) = add_floats(weights, matrix.weight, scales)? {
                let x = node.inputs.first().copied();
                let bias = node.inputs.get(graph.bias_at(node, weights)).copied();
                let inputs = x.into_iter().chain([floats.into()]).chain(bias).collect();
                replaced.insert(matrix.node, (Op::Linear, inputs));
            }
        }
    }
    Ok(graph.replace_nodes(weights, |id, _| replaced.remove(&id))?)
}

/// `graph` with floats in the place of all its codes, and the weights that it reads.
pub(crate) fn in_floats(
    graph: &Graph,
    weights: &WeightTable,
) -> Result<(Graph, WeightTable), PassError> {
    let (mut graph, mut weights) = (graph.clone(), weights.clone());
    put_floats(&mut graph, &mut weights, |_, _| true)?;
    Ok((graph, weights))
}

/// The floats that codes stand for, if that is known, in the type that is asked for.
fn add_floats(
    weights: &mut WeightTable,
    codes: WeightId,
    dtype: DType,
) -> Result<Option<WeightId>, PassError> {
    let Some(expr) = weights[codes].expr() else {
        return Ok(None);
    };
    let (floats, columns) = match expr {
        Expr::Quantize { input, columns, .. } => (input.as_ref().clone(), *columns),
        Expr::Coded {
            matrix,
            part: CodedPart::Part(_, QuantizedPart::Codes),
        } => {
            let floats = Expr::Coded {
                matrix: Arc::clone(matrix),
                part: CodedPart::Entries,
            };
            (floats, matrix.shape()[1])
        }
        _ => return Ok(None),
    };
    let shape = [floats.elements() / columns.max(1), columns];
    let name = format!("{}.floats", weights[codes].name);
    Ok(Some(weights.add_apart(
        &name,
        &shape,
        floats.cast(dtype),
    )?))
}
