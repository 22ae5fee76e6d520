//! ONNX: the messages, the lowering of graphs to them per profile, and a reader for files of any
//! origin.
//!
//! Nothing outside of this module knows a protobuf type.

pub(crate) mod builder;
mod check;
mod constants;
pub(crate) mod lower;
pub(crate) mod proto;
mod reader;
mod wire;

pub use check::check_graph;
pub use constants::{OnnxConstant, hash_constants};
pub use lower::keeps_scores_single;
pub use reader::{OnnxNode, OnnxPort, OnnxSummary, read_onnx};
