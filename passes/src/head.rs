//! The head: the product whose result, bent entry by entry at most, is a graph's logits.

use dlc_ir::{Def, Graph, NodeId, Op, Operand};

/// The product that makes the logits of `graph`, and whether columns are gathered from it; none if something else makes them.
pub(crate) fn head(graph: &Graph) -> Option<(NodeId, bool)> {
    let mut value = graph.find_output("logits")?.value;
    let mut trimmed = false;
    while let Def::Node(id, _) = graph.value(value).def {
        let node = graph.node(id);
        match node.op {
            Op::Linear | Op::QuantizedLinear(_) => return Some((id, trimmed)),
            Op::GatherColumns => trimmed = true,
            Op::Scale { .. } | Op::Tanh | Op::Cast { .. } => {}
            _ => return None,
        }
        let Some(Operand::Value(before)) = node.inputs.first() else { return None };
        value = *before;
    }
    None
}
