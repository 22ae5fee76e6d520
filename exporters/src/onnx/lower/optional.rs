//! Inputs of decoders in profile `ort` that callers may leave out.
//!
//! Each is an initializer that is an input too: callers may override it (from version 4 of the ONNX
//! format on) or know nothing of it. All are 0 then, and the graph does what it would without them.
//! The other profiles have none: tract can't override them, and `ort-tract` 0.5.0 fails on a file
//! that has them.

use std::collections::HashSet;

use dlc_bundle::{LOGITS_TO_KEEP, PROMPT_LENGTH, Profile};
use dlc_ir::{DType, Graph, ValueId};
use dlc_onnx::proto::ValueInfoProto;

use super::rows::Rows;
use super::tensor_type;

/// All of them; 64-bit integers without axes.
pub(crate) const OPTIONAL_INPUTS: [&str; 2] = [LOGITS_TO_KEEP, PROMPT_LENGTH];

/// The axis of tokens that get logits.
pub(crate) const KEPT: &str = "kept";

/// Whether the graph is that of a decoder with caches, in the profile that has them.
pub(super) fn takes_optional_inputs(graph: &Graph, profile: Profile) -> bool {
    profile == Profile::Ort && graph.inputs().iter().any(|input| input.cache.is_some())
}

/// The values of a decoder's graph that have a row for each token that gets logits: these, and what
/// lies between them and the last product. Of other graphs none.
pub(crate) fn kept_values(graph: &Graph, profile: Profile) -> HashSet<ValueId> {
    if !takes_optional_inputs(graph, profile) {
        return HashSet::new();
    }
    Rows::find(graph).map(Rows::made).unwrap_or_default()
}

/// The record of an input in the ONNX graph.
pub(super) fn port(name: &str) -> ValueInfoProto {
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(tensor_type(DType::I64, vec![])),
    }
}
