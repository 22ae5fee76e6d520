//! Everything that needs ONNX Runtime's library. Where there is none, these tests are reported as
//! ignored; with `DLC_REQUIRE_ORT=1` (in CI) that is an error.
#![allow(missing_docs, clippy::print_stderr, clippy::unwrap_used)]

mod adapters;
#[path = "../common/mod.rs"]
mod common;
mod comparing;
mod decoding;
mod goldens;
#[cfg(target_os = "linux")]
mod private;
mod quantized;
mod sampling;
mod variants;

use libtest_mimic::{Arguments, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let backend = common::session::onnxruntime();
    let trials = goldens::trials(backend.as_ref())
        .into_iter()
        .chain(decoding::trials(backend.as_ref()))
        .chain(variants::trials(backend.as_ref()));
    let trials = trials
        .chain(adapters::trials(backend.as_ref()))
        .chain(sampling::trials(backend.as_ref()))
        .chain(quantized::trials(backend.as_ref()))
        .chain(comparing::trials(backend.as_ref()));
    #[cfg(target_os = "linux")]
    let trials = trials.chain(private::trials(backend.as_ref()));
    let trials: Vec<Trial> = trials
        .map(|t| t.with_ignored_flag(backend.is_none()))
        .collect();
    libtest_mimic::run(&arguments, trials).exit();
}
