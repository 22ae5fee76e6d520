//! `dlc` compiles a Hugging Face checkpoint into ONNX files that run faster, and checks that they
//! compute the same function.
//!
//! ```text
//! checkpoint --import--> module --passes--> module --export--> bundle --runtime--> text
//! ```
//!
//! ```no_run
//! use dlc::pipeline::{CompileRequest, compile, parse_pass_flag};
//!
//! let request = CompileRequest {
//!     passes: vec![parse_pass_flag("fit-prune:drop=6")?],
//!     ..CompileRequest::new("my-llama", "my-llama-dlc")
//! };
//! let outcome = compile(&request, None, &())?;
//! for graph in outcome.manifest.graphs {
//!     println!("{}: {} parameters", graph.name, graph.parameters);
//! }
//! # Ok::<(), dlc::pipeline::PipelineError>(())
//! ```
//!
//! The IR, the evaluator, the passes, the exporters and the runtime are crates of their own; this
//! one reads checkpoints, runs the pipeline, and holds the command.

#![warn(missing_docs)]

pub mod checkpoint;
pub mod cli;
mod http;
mod hub;
pub mod import;
pub mod pipeline;
pub mod quality;
pub mod report;
pub mod serve;
