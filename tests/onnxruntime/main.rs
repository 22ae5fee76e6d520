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

use std::path::PathBuf;

use dlc_runtime::{Backend, BackendKind, BackendSearch, start};
use libtest_mimic::{Arguments, Trial};

/// The backend, if it is ONNX Runtime.
fn backend() -> Option<Backend> {
    let variable = |name| std::env::var_os(name).filter(|v: &std::ffi::OsString| !v.is_empty());
    let data = variable("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|h| h.join(".local/share")));
    let search = BackendSearch {
        env: variable("ORT_DYLIB_PATH").map(PathBuf::from),
        data_dir: data.map(|d| d.join("dlc/onnxruntime")),
        require_ort: variable("DLC_REQUIRE_ORT").is_some_and(|v| v != "0"),
        ..BackendSearch::default()
    };
    let backend = start(&search).unwrap_or_else(|e| panic!("{e}"));
    (backend.kind() == BackendKind::OnnxRuntime).then_some(backend)
}

fn main() {
    let arguments = Arguments::from_args();
    let backend = backend();
    if backend.is_none() {
        eprintln!(
            "no ONNX Runtime library found: its tests are ignored; scripts/fetch_onnxruntime.sh fetches one"
        );
    }
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
