//! A checkpoint's files in JSON, and how the opener's refusals read for a checkpoint.

use std::fs::{self, File};
use std::path::Path;

use dlc_files::{InputError, InputProblem, open_input, read_input};
use serde_json::{Map, Value};

use super::error::CheckpointError;

/// Opens a regular file and returns its size.
pub(super) fn open(path: &Path) -> Result<(File, u64), CheckpointError> {
    Ok(open_input(path)?)
}

/// Whether there is anything of that name: a link to a missing file is no missing file.
pub(super) fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// The JSON object in a file of at most `cap` bytes, and the file's size.
pub(super) fn read_object(
    path: &Path,
    cap: u64,
) -> Result<(Map<String, Value>, u64), CheckpointError> {
    match read_json(path, cap)? {
        (Value::Object(object), size) => Ok((object, size)),
        _ => Err(CheckpointError::file(
            path,
            "holds JSON, but not an object `{...}`. Download the file again",
        )),
    }
}

/// The JSON in a file of at most `cap` bytes, and the file's size.
pub(super) fn read_json(path: &Path, cap: u64) -> Result<(Value, u64), CheckpointError> {
    let bytes = read_input(path, cap)?;
    let size = bytes.len() as u64;
    let value = serde_json::from_slice(&bytes);
    value.map(|value| (value, size)).map_err(|error| {
        CheckpointError::file(
            path,
            format!("is not JSON ({error}). Download the file again"),
        )
    })
}

/// Refuses a file of more than `cap` bytes.
pub(super) fn check_size(path: &Path, size: u64, cap: u64) -> Result<(), CheckpointError> {
    let problem = || {
        format!(
            "is {size} bytes long, more than the {cap} that dlc reads. Check that it is the checkpoint's own file"
        )
    };
    if size > cap {
        Err(CheckpointError::file(path, problem()))
    } else {
        Ok(())
    }
}

impl From<InputError> for CheckpointError {
    fn from(InputError { path, problem }: InputError) -> Self {
        match problem {
            InputProblem::Missing => Self::file(
                &path,
                "is missing. Download the whole checkpoint, for instance with `hf download ID --local-dir DIR`",
            ),
            InputProblem::System(reason) => Self::read(&path, reason),
            problem => Self::file(&path, problem.to_string()),
        }
    }
}
