//! The lowering of graphs to ONNX, per profile, and what the files hold.

pub(crate) mod builder;
pub(crate) mod cuda;
pub(crate) mod lower;
mod operators;

pub use cuda::{CpuNode, CudaReport, cuda_report};
pub use lower::keeps_scores_single;
