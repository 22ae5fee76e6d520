//! Opening files that strangers wrote: only regular files, only up to a cap.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use serde_json::{Map, Value};

use super::error::CheckpointError;

/// Opens a regular file and returns its size. A pipe or device is refused before it can block.
pub(super) fn open_regular(path: &Path) -> Result<(File, u64), CheckpointError> {
    let metadata = fs::metadata(path).map_err(|e| missing_or_unreadable(path, e))?;
    if !metadata.is_file() {
        return Err(CheckpointError::file(path, "is not a regular file. Put the checkpoint's own file there"));
    }
    let file = File::open(path).map_err(|e| CheckpointError::read(path, e))?;
    Ok((file, metadata.len()))
}

/// Whether there is anything of that name: a link to a missing file is no missing file.
pub(super) fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// The JSON object in a file of at most `cap` bytes, and the file's size.
pub(super) fn read_object(path: &Path, cap: u64) -> Result<(Map<String, Value>, u64), CheckpointError> {
    match read_json(path, cap)? {
        (Value::Object(object), size) => Ok((object, size)),
        _ => Err(CheckpointError::file(path, "holds JSON, but not an object `{...}`. Download the file again")),
    }
}

/// The JSON in a file of at most `cap` bytes, and the file's size.
pub(super) fn read_json(path: &Path, cap: u64) -> Result<(Value, u64), CheckpointError> {
    let (file, size) = open_regular(path)?;
    let mut bytes = Vec::new();
    file.take(cap + 1).read_to_end(&mut bytes).map_err(|e| CheckpointError::read(path, e))?;
    check_size(path, size.max(bytes.len() as u64), cap)?;
    let value = serde_json::from_slice(&bytes);
    value.map(|value| (value, size)).map_err(|error| CheckpointError::file(path, format!("is not JSON ({error}). Download the file again")))
}

/// Refuses a file of more than `cap` bytes.
pub(super) fn check_size(path: &Path, size: u64, cap: u64) -> Result<(), CheckpointError> {
    let problem = || format!("is {size} bytes long, more than the {cap} that dlc reads. Check that it is the checkpoint's own file");
    if size > cap { Err(CheckpointError::file(path, problem())) } else { Ok(()) }
}

fn missing_or_unreadable(path: &Path, error: io::Error) -> CheckpointError {
    if error.kind() == io::ErrorKind::NotFound {
        return CheckpointError::file(path, "is missing. Download the whole checkpoint, for instance with `hf download ID --local-dir DIR`");
    }
    CheckpointError::read(path, error)
}
