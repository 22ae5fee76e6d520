//! Everything that needs no ONNX Runtime: the evaluator, the built-in tract, the command.
#![allow(missing_docs, clippy::print_stderr, clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod decoding;

mod adapters;
mod architecture;
mod atomic;
mod cases;
mod changing;
mod command;
mod compile;
mod conditions;
mod diffusion;
mod encoders;
mod errors;
mod fit_prune;
mod goldens;
mod misfits;
mod output;
mod quantized;
mod readme;
mod running;
mod sampling;
mod skipping;
mod stopping;
