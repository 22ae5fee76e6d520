//! Runs nodes one after the other: what [`run`](crate::run()) and [`Segment`](crate::Segment)
//! share.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor};
use dlc_ir::{DType, Graph, NodeId, Operand, ValueId, Weight, WeightId, WeightTable};

use crate::error::{EvalError, OpError};
use crate::ops::apply;
use crate::peaks::Peaks;
use crate::symbols::Symbols;

/// Values while a graph runs.
pub(crate) type Tensors = BTreeMap<ValueId, Tensor>;

/// Where a node's weights come from.
pub(crate) type WeightSource<'a> = dyn Fn(WeightId) -> Result<Tensor, EvalError> + 'a;

/// Adds the outputs of `nodes` to `values`; with `keep`, values are dropped after their last
/// reader, but for those. With `peaks`, notes how large they are.
pub(crate) fn execute(
    graph: &Graph,
    nodes: &[NodeId],
    values: &mut Tensors,
    weights: &WeightSource<'_>,
    symbols: &Symbols,
    keep: Option<&BTreeSet<ValueId>>,
    mut peaks: Option<&mut Peaks>,
) -> Result<(), EvalError> {
    let dropped = keep
        .map(|keep| last_reads(graph, nodes, keep))
        .unwrap_or_default();
    for (at, &id) in nodes.iter().enumerate() {
        let node = graph.node(id);
        let inputs = fetch(graph, id, values, weights)?;
        let outputs = apply(&node.op, &inputs, symbols).map_err(|e| e.at(graph, id))?;
        if let Some(peaks) = peaks.as_deref_mut() {
            peaks
                .note(id, node, &inputs, &outputs)
                .map_err(|e| e.at(graph, id))?;
        }
        for (&value, output) in node.outputs.iter().zip(outputs) {
            if keep.is_none_or(|keep| keep.contains(&value) || dropped.contains_key(&value)) {
                values.insert(value, output);
            }
        }
        values.retain(|value, _| dropped.get(value).is_none_or(|last| *last > at));
    }
    Ok(())
}

/// A node's operands.
pub(crate) fn fetch(
    graph: &Graph,
    id: NodeId,
    values: &Tensors,
    weights: &WeightSource<'_>,
) -> Result<Vec<Tensor>, EvalError> {
    let operand = |operand: &Operand| match operand {
        Operand::Value(v) => values.get(v).cloned().ok_or_else(|| {
            OpError::Bug(format!("%{} isn't known here", &graph.value_names()[*v])).at(graph, id)
        }),
        Operand::Weight(w) => weights(*w),
    };
    graph.node(id).inputs.iter().map(operand).collect()
}

/// For each value that isn't kept, the position of the last node that reads it.
fn last_reads(
    graph: &Graph,
    nodes: &[NodeId],
    keep: &BTreeSet<ValueId>,
) -> BTreeMap<ValueId, usize> {
    let mut last = BTreeMap::new();
    for (at, &id) in nodes.iter().enumerate() {
        for operand in &graph.node(id).inputs {
            if let Operand::Value(value) = operand
                && !keep.contains(value)
            {
                last.insert(*value, at);
            }
        }
    }
    last
}

/// A weight as the evaluator computes with it: floats in single precision.
pub(crate) fn load(
    graph: &Graph,
    weights: &WeightTable,
    id: WeightId,
) -> Result<Tensor, EvalError> {
    let weight = weights
        .get(id)
        .ok_or_else(|| EvalError::segment(graph, format!("weight {id} is not in the table")))?;
    let failed = |source| EvalError::Weight {
        graph: graph.name.clone(),
        source,
    };
    let shape = weight.shape.as_slice();
    let tensor = if weight.dtype == DType::I64 {
        Tensor::from_vec(integers(weight).map_err(failed)?, shape, &Device::Cpu)
    } else {
        Tensor::from_vec(weight.to_f32().map_err(failed)?, shape, &Device::Cpu)
    };
    tensor.map_err(|e| {
        EvalError::segment(
            graph,
            format!("weight {}: {}", weight.name, crate::error::first_line(&e)),
        )
    })
}

fn integers(weight: &Weight) -> Result<Vec<i64>, dlc_ir::IrError> {
    let mut bytes = vec![0; weight.bytes()];
    weight.write_bytes(0, &mut bytes)?;
    Ok(bytes
        .as_chunks()
        .0
        .iter()
        .map(|b| i64::from_le_bytes(*b))
        .collect())
}

/// Whether `id` is a node of `graph`.
pub(crate) fn has_node(graph: &Graph, id: NodeId) -> bool {
    graph
        .nodes()
        .next_back()
        .is_some_and(|(last, _)| id <= last)
}

/// Whether `id` is a value of `graph`.
pub(crate) fn has_value(graph: &Graph, id: ValueId) -> bool {
    graph
        .values()
        .next_back()
        .is_some_and(|(last, _)| id <= last)
}
