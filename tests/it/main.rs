//! Everything that needs no ONNX Runtime: the evaluator, the built-in tract, the command.
#![allow(missing_docs, clippy::print_stderr, clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod decoding;

mod adapters;
mod answers;
mod architecture;
mod atomic;
mod cases;
mod changing;
mod command;
mod comparing;
mod compile;
mod conditions;
mod cuda;
mod deploying;
mod diffing;
mod diffusion;
mod documents;
mod effects;
mod encoder_families;
mod encoders;
mod errors;
mod examples;
mod files;
mod fit_prune;
mod gguf;
mod goldens;
mod hostile;
mod hub;
mod integrity;
mod keys;
mod lookups;
mod misfits;
mod naming;
mod other_adapters;
mod output;
mod packed_checkpoints;
mod pipelines;
mod progress;
mod quantized;
mod readme;
mod rehearsal;
mod rotation;
mod running;
mod sampling;
mod schedulers;
mod sentence;
mod setup;
mod skipping;
mod stopping;
mod tasks;
mod terminal;
mod tokenizers;
mod writing;
