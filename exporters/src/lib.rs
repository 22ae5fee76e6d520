//! Writes a [`dlc_ir::Module`] as ONNX files, and a *bundle* around them: shared weights, manifest
//! and what consumers expect. Also checkpoints whose tensors have other values than those of the
//! one they were copied from.
//!
//! This crate transforms no graph, reads no checkpoint and
//! never prints.

#![warn(missing_docs)]

mod bundle;
mod checkpoint;
mod deploy;
mod encode;
mod error;
mod names;
pub mod onnx;
mod progress;
mod search;
mod stack;
mod staging;
mod weights;

pub use bundle::{BundleRequest, write_bundle, write_bundle_of};
pub use checkpoint::{CopiedFile, Origin, Patch, write_checkpoint};
pub use deploy::{
    DeploymentTarget, FileEdit, Fitted, Layout, TARGETS, TargetFiles, WrittenBundle, find_target,
};
pub use error::ExportError;
pub use onnx::{CpuNode, CudaReport, cuda_report};
pub use progress::Progress;
pub use search::SearchDefaults;
pub use staging::check_replaceable;
