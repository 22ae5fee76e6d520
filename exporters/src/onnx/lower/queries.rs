//! What lowerings ask of a graph.

use dlc_ir::{Def, Dim, Graph, Node, NodeId, Op, Operand, ValueId};

/// The inputs that say how noisy each image is. Callers give one number for all as well as one for
/// each, so their axis has a name of its own.
pub(crate) fn noise_levels(graph: &Graph) -> Vec<ValueId> {
    let embedded = |value| {
        graph.nodes().any(|(_, n)| {
            matches!(n.op, Op::TimestepEmbedding(_))
                && n.inputs.first() == Some(&Operand::Value(value))
        })
    };
    let dims = |value: ValueId| graph.value(value).ty.shape.0.as_slice();
    let has_images = |dim: &Dim| {
        graph
            .inputs()
            .iter()
            .any(|i| dims(i.value).len() > 1 && dims(i.value)[0] == *dim)
    };
    let is_level = |value: &ValueId| {
        matches!(dims(*value), [dim] if dim.known().is_none() && has_images(dim))
            && embedded(*value)
    };
    graph
        .inputs()
        .iter()
        .map(|i| i.value)
        .filter(is_level)
        .collect()
}

/// The node that makes `operand`, and the value.
pub(super) fn maker(graph: &Graph, operand: Operand) -> Option<(NodeId, ValueId)> {
    let Operand::Value(value) = operand else {
        return None;
    };
    match graph.value(value).def {
        Def::Node(node, _) => Some((node, value)),
        Def::Input(_) => None,
    }
}

/// How often a value is read, outputs included.
pub(super) fn readers(graph: &Graph, value: ValueId) -> usize {
    let by_nodes = graph
        .nodes()
        .flat_map(|(_, n)| &n.inputs)
        .filter(|i| **i == Operand::Value(value))
        .count();
    by_nodes + graph.outputs().iter().filter(|o| o.value == value).count()
}

/// Whether a node of causal attention reads and makes caches.
pub(super) fn has_cache(attention: &Node) -> bool {
    attention.inputs.len() > 4
}
