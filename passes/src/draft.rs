//! What the passes that make a draft cheaper share: finding its head, and putting the cheaper one
//! in its place.

use dlc_ir::cost::cost;
use dlc_ir::diff::diff;
use dlc_ir::{Def, Graph, Module, NodeId, Op, Operand};

use crate::report::PassReport;

/// The head of `graph`: the product whose result, changed entry by entry at most, is its logits;
/// and whether columns are gathered from it; none if something else makes them.
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
        let Some(Operand::Value(before)) = node.inputs.first() else {
            return None;
        };
        value = *before;
    }
    None
}

/// Puts `draft` in the place of the module's, if it has one, and reports what it saves against the
/// graph `before`, and how it differs from the target.
pub(crate) fn replace_draft(
    module: &mut Module,
    report: &mut PassReport,
    before: &Graph,
    draft: Graph,
) {
    let bytes = [before, &draft].map(|graph| cost(graph, &module.weights).weight_bytes);
    report.fact(
        "bytes of the draft's weights",
        format!("{} -> {}", bytes[0], bytes[1]),
    );
    if let Some(target) = module.graph("target") {
        report.diff = Some(diff((target, &module.weights), (&draft, &module.weights)));
    }
    // What was assumed of another draft isn't of this one.
    module.drafting = module.drafting.filter(|known| known.draft_tokens.is_some());
    match module
        .graphs
        .iter_mut()
        .find(|graph| graph.name == draft.name)
    {
        Some(old) => *old = draft,
        None => module.graphs.push(draft),
    }
}
