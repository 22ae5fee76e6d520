//! What a compilation for CUDA says of nodes that would run on the CPU.

use std::collections::BTreeMap;

use dlc_bundle::Profile;
use dlc_exporters::{CpuNode, DeploymentTarget, cuda_report};
use dlc_ir::{DType, Module};

use super::error::PipelineError;

/// The nodes that ONNX Runtime's CUDA provider has no kernel for, and a warning that names them and
/// the ways out; nothing of either if there are none.
pub(super) fn left_to_cpu(
    module: &Module,
    profile: Profile,
    deploy: Option<&DeploymentTarget>,
) -> Result<(Vec<CpuNode>, Option<String>), PipelineError> {
    let report = cuda_report(module, profile)?;
    if report.cpu_nodes.is_empty() {
        return Ok((vec![], None));
    }
    let mut ways = Vec::new();
    if report.f16_leaves_none && module.model.dtype != DType::F16 {
        ways.push("`--dtype f16`".to_owned());
    }
    // A deployment target implies the profile.
    let others = Profile::ALL
        .into_iter()
        .filter(|other| *other != profile && deploy.is_none());
    for other in others {
        // A profile that can't have the model is no way out.
        if cuda_report(module, other).is_ok_and(|report| report.cpu_nodes.is_empty()) {
            ways.push(format!("`--profile {}`", other.name()));
        }
    }
    let ways = match ways.as_slice() {
        [] => "; no other profile or element type of dlc has kernels for all".to_owned(),
        ways => format!("; {} leaves it none", ways.join(" or ")),
    };
    let warning = format!(
        "ONNX Runtime's CUDA provider leaves nodes to the CPU, which it has no kernel for: {}{ways}",
        listed(&report.cpu_nodes)
    );
    Ok((report.cpu_nodes, Some(warning)))
}

/// `8 com.microsoft.GroupQueryAttention (M=i32 T=f32), 1 Pad (T=bf16)`.
fn listed(nodes: &[CpuNode]) -> String {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for node in nodes {
        *counts.entry((&node.operator, &node.types)).or_default() += 1;
    }
    let kinds = counts
        .iter()
        .map(|((operator, types), count)| format!("{count} {operator} ({types})"));
    kinds.collect::<Vec<_>>().join(", ")
}
