//! Looks into a shared library before `ort` does.
//!
//! After a failed attempt to load one, `ort` 2.0.0-rc.14 takes the next for done and reads memory
//! that was never written. So it is given only what is known to load. Never calls into `ort`.

use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};

use libloading::Library;

use super::{OLDEST_MINOR, SETUP};

/// A library that is an ONNX Runtime of a usable version, held loaded.
#[derive(Debug)]
pub(super) struct Probed {
    /// Absolute.
    pub path: PathBuf,
    pub version: String,
    _library: Library,
}

/// The start of `OrtApiBase`, the structure that never changes.
#[repr(C)]
struct ApiBase {
    get_api: unsafe extern "system" fn(u32) -> *const c_void,
    get_version: unsafe extern "system" fn() -> *const c_char,
}

/// Loads `path`, and checks what it is. The error is the reason alone.
pub(super) fn probe(path: &Path) -> Result<Probed, String> {
    if !path.is_file() {
        return Err("there is no such file".to_owned());
    }
    let path = std::path::absolute(path).map_err(|error| format!("it can't be found: {error}"))?;
    #[expect(unsafe_code, reason = "loading a shared library")]
    // SAFETY: loading runs the library's initializers; the user named or installed it to be run.
    // `OrtGetApiBase` has this signature in every ONNX Runtime, and returns a structure that lives
    // as long as the library, which is held.
    let (library, version, api) = unsafe {
        let library = Library::new(&path)
            .map_err(|error| format!("it doesn't load: {}", innermost(&error)))?;
        let get = library
            .get::<unsafe extern "C" fn() -> *const ApiBase>("OrtGetApiBase")
            .map_err(|_| "it isn't an ONNX Runtime library".to_owned())?;
        let base = get()
            .as_ref()
            .ok_or_else(|| "it isn't a working ONNX Runtime library".to_owned())?;
        let version = (base.get_version)();
        let version = if version.is_null() {
            String::new()
        } else {
            CStr::from_ptr(version).to_string_lossy().into_owned()
        };
        let api = if is_recent(&version) {
            (base.get_api)(OLDEST_MINOR)
        } else {
            std::ptr::null()
        };
        (library, version, api)
    };
    if api.is_null() {
        return Err(format!(
            "it is ONNX Runtime {version}, and 1.{OLDEST_MINOR} or newer is needed: {SETUP}"
        ));
    }
    Ok(Probed {
        path,
        version,
        _library: library,
    })
}

fn is_recent(version: &str) -> bool {
    let mut parts = version
        .split('.')
        .map(|part| part.parse::<u32>().unwrap_or(0));
    parts.next() == Some(1) && parts.next() >= Some(OLDEST_MINOR)
}

fn innermost(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert!(is_recent("1.24.0") && is_recent("1.31.1") && is_recent("1.100.0-dev"));
        assert!(
            !is_recent("1.9.9") && !is_recent("1.23.2") && !is_recent("") && !is_recent("0.99.1")
        );
    }
}
