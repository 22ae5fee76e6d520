//! What the test suites share: golden checkpoints, and what a backend makes of them.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

pub mod adapters;
pub mod decoding;
pub mod diffusion;
pub mod golden;
pub mod padding;
pub mod quantized;
pub mod sampling;
pub mod session;
pub mod variants;

use std::path::{Path, PathBuf};

/// A file or folder in `fixtures/`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}
