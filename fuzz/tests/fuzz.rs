//! libFuzzer over the target that `DLC_FUZZ_TARGET` names, with its seeds in the folder
//! `DLC_FUZZ_CORPUS`; see `scripts/fuzz.sh`.
#![no_main]
#![allow(missing_docs, clippy::print_stderr, clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::LazyLock;

use dlc_fuzz::{TARGETS, Target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("DLC_FUZZ_TARGET").unwrap_or_default();
    dlc_fuzz::find(&name).unwrap_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!(
            "DLC_FUZZ_TARGET={name:?} is no target; there are {}",
            names.join(", ")
        );
        std::process::exit(2)
    })
});

fn prepare() {
    // libFuzzer's own hook aborts at every panic, those included that dlc contains and turns into
    // errors.
    drop(std::panic::take_hook());
    let corpus = PathBuf::from(std::env::var_os("DLC_FUZZ_CORPUS").unwrap_or_else(|| ".".into()));
    for (i, seed) in dlc_fuzz::seeds(TARGET.name).into_iter().enumerate() {
        std::fs::write(corpus.join(format!("seed-{i}")), seed).unwrap();
    }
}

libfuzzer_sys::fuzz_target!(init: prepare(), |data: &[u8]| (TARGET.run)(data));
