//! The products that choose experts.

use std::collections::BTreeSet;

use dlc_ir::{Def, Graph, NodeId, Op, Operand};

/// The nodes whose results are the logits of a mixture of experts.
pub(crate) fn routers(graph: &Graph) -> BTreeSet<NodeId> {
    let mixtures = graph
        .nodes()
        .filter(|(_, node)| matches!(node.op, Op::Experts(_)));
    let maker = |node: &dlc_ir::Node| match node.inputs.get(1) {
        Some(Operand::Value(logits)) => match graph.value(*logits).def {
            Def::Node(maker, _) => Some(maker),
            Def::Input(_) => None,
        },
        _ => None,
    };
    mixtures.filter_map(|(_, node)| maker(node)).collect()
}
