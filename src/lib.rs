//! `dlc` compiles a Hugging Face checkpoint into ONNX files that run faster, and proves that they
//! still say the same.
//!
//! ```text
//! checkpoint --import--> module --passes--> module --export--> bundle --runtime--> text
//! ```
//!
//! The graph IR, the evaluator, the passes and the exporters are crates of their own; this one
//! reads checkpoints, runs the pipeline, runs bundles, and holds the command.

#![warn(missing_docs)]

pub mod checkpoint;
pub mod cli;
pub mod import;
pub mod pipeline;
pub mod quality;
pub mod report;
