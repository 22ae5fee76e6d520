//! What decoding allocates once it is under way: on the thread that decodes, what Rust allocates.
//! ONNX Runtime's own memory isn't counted.
//!
//! A program of its own, since an allocator is the whole program's. Without ONNX Runtime's library
//! its tests are reported as ignored; with `DLC_REQUIRE_ORT=1` (in CI) that is an error.
#![allow(missing_docs, clippy::print_stderr, clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod counting;
mod looping;
mod sessions;

use libtest_mimic::{Arguments, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let backend = common::session::onnxruntime();
    let trials = looping::trials().into_iter();
    let on_sessions = sessions::trials(backend.as_ref()).into_iter();
    let on_sessions = on_sessions.map(|trial| trial.with_ignored_flag(backend.is_none()));
    let trials: Vec<Trial> = trials.chain(on_sessions).collect();
    libtest_mimic::run(&arguments, trials).exit();
}
