//! Writes a [`dlc_ir::Module`] as ONNX files, and a *bundle* around them: shared weights, manifest and what consumers expect.
//!
//! Protobuf types never leave [`onnx`]. This crate transforms no graph, reads no checkpoint and never prints.

#![warn(missing_docs)]

mod bundle;
mod error;
mod genai;
pub mod manifest;
pub mod onnx;
mod progress;
mod staging;
mod weights;

pub use bundle::{BundleRequest, SpeculativeDefaults, write_bundle};
pub use error::ExportError;
pub use progress::Progress;
pub use staging::check_replaceable;
