//! Fuzz targets: each takes the bytes of one file that a stranger may have written, and lets dlc
//! read it as a command would.
//!
//! Whatever the bytes are, a target returns: an error is as good as a result, and only a panic, a
//! crash or a hang is a fault. Under libFuzzer they run by `scripts/fuzz.sh`; `cargo test` runs
//! each on its seeds, whole and changed at random.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

mod seeds;
mod targets;

pub use seeds::seeds;
pub use targets::{TARGETS, Target};

/// The target called `name`.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
