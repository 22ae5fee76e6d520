//! A bundle: the folder that dlc writes and runs. The manifest `dlc.yaml` says what is in it.
//!
//! This crate is the contract between who writes bundles and who runs them: the manifest's types,
//! the names and hashes of files, and [`check_graph`], which compares an ONNX file with what the
//! manifest says of it. It writes nothing and runs nothing.

#![warn(missing_docs)]

mod check;
mod manifest;

pub use check::{CheckError, check_graph};
pub use manifest::*;
