//! The lowering of graphs to ONNX, per profile.

pub(crate) mod builder;
pub(crate) mod lower;

pub use lower::keeps_scores_single;
