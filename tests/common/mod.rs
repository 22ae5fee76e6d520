//! What the test suites share: golden checkpoints, and what a backend makes of them.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

pub mod adapters;
pub mod batches;
pub mod decoding;
pub mod diffusion;
pub mod drafts;
pub mod golden;
pub mod hub;
pub mod lengths;
pub mod ops;
pub mod packed;
pub mod padding;
pub mod pieces;
pub mod pipelines;
pub mod quantized;
pub mod sampling;
pub mod session;
pub mod suite;
pub mod variants;

use std::path::{Path, PathBuf};

/// A file or folder in `fixtures/`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

/// Names of the folders in a folder of `fixtures/`.
pub fn folders(name: &str) -> Vec<String> {
    let entries = fixture(name).read_dir().unwrap().map(Result::unwrap);
    entries
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}
