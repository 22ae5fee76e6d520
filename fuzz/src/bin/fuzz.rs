//! libFuzzer over the target that `DLC_FUZZ_TARGET` names; see `scripts/fuzz.sh`.
#![no_main]
#![allow(clippy::print_stderr)]

use std::sync::LazyLock;

use dlc_fuzz::{TARGETS, Target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    // libFuzzer's own hook aborts at every panic, those included that dlc contains and turns into errors.
    drop(std::panic::take_hook());
    let name = std::env::var("DLC_FUZZ_TARGET").unwrap_or_default();
    dlc_fuzz::find(&name).unwrap_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("DLC_FUZZ_TARGET={name:?} is no target; there are {}", names.join(", "));
        std::process::exit(2)
    })
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| (TARGET.run)(data));
