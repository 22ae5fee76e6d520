//! A whole graph, by its boundary names.

use std::collections::{BTreeMap, BTreeSet};

use dlc_ir::{Graph, NodeId, ValueId, WeightTable};

use crate::array::Array;
use crate::error::{EvalError, first_line};
use crate::execute::{Tensors, execute, load};
use crate::peaks::Peaks;
use crate::symbols::Symbols;

/// Runs `graph` on `feeds`, one array for each of its inputs, and returns its outputs by name.
///
/// Arrays must have the element type (`f32` for every float type), rank and known axes of their
/// input, and there must be one number for each symbol: inputs `[batch, seq]` and
/// `[batch, past+seq]` fix `batch`, `seq` and `past`. Weights are read node by node and dropped
/// again.
///
/// # Errors
/// [`EvalError::Boundary`] for feeds that are missing, unknown or don't fit; [`EvalError::Node`]
/// for data that an op can't take: ids outside of the table, masks other than 0 and 1, negative
/// positions; [`EvalError::Weight`] for weights without data.
pub fn run(
    graph: &Graph,
    weights: &WeightTable,
    feeds: &BTreeMap<String, Array>,
) -> Result<BTreeMap<String, Array>, EvalError> {
    evaluate(graph, weights, feeds, None)
}

/// As [`run`], and adds to `peaks` how large the numbers got.
///
/// # Errors
/// As [`run`].
pub fn run_noting_peaks(
    graph: &Graph,
    weights: &WeightTable,
    feeds: &BTreeMap<String, Array>,
    peaks: &mut Peaks,
) -> Result<BTreeMap<String, Array>, EvalError> {
    let mut own = Peaks::default();
    let outputs = evaluate(graph, weights, feeds, Some(&mut own))?;
    peaks.join(&own);
    Ok(outputs)
}

fn evaluate(
    graph: &Graph,
    weights: &WeightTable,
    feeds: &BTreeMap<String, Array>,
    peaks: Option<&mut Peaks>,
) -> Result<BTreeMap<String, Array>, EvalError> {
    if let Some(name) = feeds.keys().find(|name| graph.find_input(name).is_none()) {
        let names: Vec<&str> = graph.inputs().iter().map(|i| i.name.as_str()).collect();
        return Err(EvalError::boundary(
            graph,
            name,
            format!("is not an input; the inputs are {}", names.join(", ")),
        ));
    }
    let mut arrays = Vec::new();
    for input in graph.inputs() {
        let array = feeds
            .get(&input.name)
            .ok_or_else(|| EvalError::boundary(graph, &input.name, "is not fed"))?;
        arrays.push((&graph.value(input.value).ty, array));
    }
    let at = |index: usize, problem: String| {
        let name = graph.inputs().get(index).map_or("", |input| &input.name);
        EvalError::boundary(graph, name, problem)
    };
    let symbols = Symbols::solve(&arrays).map_err(|(index, problem)| at(index, problem))?;
    let mut values = Tensors::new();
    for (index, (input, (_, array))) in graph.inputs().iter().zip(&arrays).enumerate() {
        values.insert(
            input.value,
            array.to_tensor().map_err(|e| at(index, first_line(&e)))?,
        );
    }

    let nodes: Vec<NodeId> = graph.nodes().map(|(id, _)| id).collect();
    let keep: BTreeSet<ValueId> = graph.outputs().iter().map(|o| o.value).collect();
    execute(
        graph,
        &nodes,
        &mut values,
        &|weight| load(graph, weights, weight),
        &symbols,
        Some(&keep),
        peaks,
    )?;

    let output = |output: &dlc_ir::Output| {
        let tensor = values
            .get(&output.value)
            .ok_or_else(|| EvalError::boundary(graph, &output.name, "isn't made by the graph"))?;
        let array = Array::from_tensor(tensor)
            .map_err(|e| EvalError::boundary(graph, &output.name, first_line(&e)))?;
        Ok((output.name.clone(), array))
    };
    graph.outputs().iter().map(output).collect()
}
