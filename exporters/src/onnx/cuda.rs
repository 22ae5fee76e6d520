//! Which nodes of a bundle's graphs ONNX Runtime's CUDA provider leaves to the CPU, said without a
//! GPU: those that it has no kernel for.
//!
//! Nodes that compute shapes it may leave to the CPU too, where they are faster; they don't count.
//! Nor do nodes that compute constants, which ONNX Runtime folds before it asks a provider.

use std::collections::HashSet;

use dlc_bundle::Profile;
use dlc_ir::Module;
use dlc_onnx::proto::{GraphProto, ModelProto};

use super::lower::lower_all;
use super::operators::{OPSETS, Operators, TypedNode, full_name};
use crate::error::ExportError;

/// What a bundle would leave to the CPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CudaReport {
    /// In the order of the graphs and their nodes.
    pub cpu_nodes: Vec<CpuNode>,
    /// Whether the same graphs in f16 would leave nothing to it.
    pub f16_leaves_none: bool,
}

/// A node without a CUDA kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuNode {
    /// The graph's name.
    pub graph: String,
    /// The node's name in the ONNX file.
    pub node: String,
    /// The operator, after its domain unless that is ai.onnx.
    pub operator: String,
    /// The opset that it has this form since.
    pub since: i64,
    /// What the words of its schema stand for: `T=f32 M=i32`.
    pub types: String,
}

/// What ONNX Runtime's CUDA provider would leave to the CPU of `module` in the operators of
/// `profile`. No weight is read.
///
/// # Errors
/// Those of writing the graphs, see [`write_bundle`](crate::write_bundle).
pub fn cuda_report(module: &Module, profile: Profile) -> Result<CudaReport, ExportError> {
    let operators = Operators::table();
    let mut report = CudaReport {
        cpu_nodes: vec![],
        f16_leaves_none: true,
    };
    for (graph, lowered) in module
        .graphs
        .iter()
        .zip(lower_all(module, profile, "", false)?)
    {
        let Some(body) = &lowered.model.graph else {
            continue;
        };
        let mut nodes = operators.typed(body);
        remove_constant(body, &mut nodes);
        let found = without_kernel(&operators, &nodes, opset(&lowered.model));
        report
            .cpu_nodes
            .extend(found.into_iter().map(|node| CpuNode {
                graph: graph.name.clone(),
                ..node
            }));
        report.f16_leaves_none &= leaves_none_in_f16(&operators, &nodes);
    }
    Ok(report)
}

/// The opset of ai.onnx that a model declares.
fn opset(model: &ModelProto) -> i64 {
    let declared = model.opset_import.iter().find(|set| set.domain.is_empty());
    declared.map_or(*OPSETS.end(), |set| set.version)
}

/// Leaves out the nodes that compute with initializers alone; inputs may override some.
fn remove_constant(graph: &GraphProto, nodes: &mut Vec<TypedNode<'_>>) {
    let inputs: HashSet<&str> = graph
        .input
        .iter()
        .map(|input| input.name.as_str())
        .collect();
    let names = graph.initializer.iter().map(|tensor| tensor.name.as_str());
    let mut constants: HashSet<&str> = names.filter(|name| !inputs.contains(name)).collect();
    constants.insert("");
    nodes.retain(|TypedNode { node, .. }| {
        let is_constant = node
            .input
            .iter()
            .all(|name| constants.contains(name.as_str()));
        if is_constant {
            constants.extend(node.output.iter().map(String::as_str));
        }
        !is_constant
    });
}

fn without_kernel(operators: &Operators, nodes: &[TypedNode<'_>], opset: i64) -> Vec<CpuNode> {
    let mut found = Vec::new();
    for node in nodes {
        let version = operators.version(node.node, opset);
        let binding = version.and_then(|version| version.binding(node));
        if let (Some(version), Some(binding)) = (version, &binding)
            && version.has_kernel(binding)
        {
            continue;
        }
        let types = binding.unwrap_or_default();
        let types = types.iter().map(|(word, ty)| format!("{word}={ty}"));
        found.push(CpuNode {
            graph: String::new(),
            node: node.node.name.clone(),
            operator: full_name(node.node),
            since: version.map_or(opset, |version| version.since),
            types: types.collect::<Vec<_>>().join(" "),
        });
    }
    found
}

fn leaves_none_in_f16(operators: &Operators, nodes: &[TypedNode<'_>]) -> bool {
    let half = nodes.iter().filter_map(|node| {
        let version = operators.version(node.node, *OPSETS.end())?;
        Some(node.in_f16(version))
    });
    let half: Vec<_> = half.collect();
    operators
        .lowest_opset(&half)
        .is_some_and(|opset| without_kernel(operators, &half, opset).is_empty())
}
