//! ONNX Runtime's telemetry, off.
//!
//! The library, from 1.29 on, writes a device's id and events below the user's cache folder and
//! looks up its maker's collector as soon as it is loaded; what its API says comes too late. Only
//! an environment variable stops that, and only if it is set before.

use std::env;

/// The variable.
const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";

/// Sets `ORT_DISABLE_TELEMETRY=1` for this process, unless the variable is set already.
/// [`start`](super::start) does it before it loads the library. A program with several threads
/// calls this first of all, or sets the variable outside.
pub fn disable_telemetry() {
    if env::var_os(VARIABLE).is_some() {
        return;
    }
    #[expect(
        unsafe_code,
        reason = "the library reads its environment, and no other setting in time"
    )]
    // SAFETY: Rust's own readers of the environment are locked out while it changes. Readers in C
    // are not: the command calls this before it starts a thread, and other programs are asked to do
    // so, or to set the variable themselves, after which nothing is changed here.
    unsafe {
        env::set_var(VARIABLE, "1");
    }
}

/// What the variable says to the library: none if nothing was loaded yet and nobody set it.
pub fn telemetry_variable() -> Option<String> {
    env::var_os(VARIABLE).map(|value| format!("{VARIABLE}={}", value.to_string_lossy()))
}
