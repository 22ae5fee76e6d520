//! What the system says of a file, and what was tried.

use std::io;
use std::path::{Path, PathBuf};

use dlc_errors::{Fault, Faulty};
use thiserror::Error;

/// A file or folder that can't be made, read or written.
#[derive(Debug, Error)]
#[error("can't {action} {}: {source}", path.display())]
pub struct IoError {
    action: &'static str,
    path: PathBuf,
    /// What the system says.
    pub source: io::Error,
}

impl IoError {
    /// For `map_err`: what was tried (a verb: `create`) on which path.
    pub fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

impl Faulty for IoError {
    fn fault(&self) -> Fault {
        Fault::BadInput
    }
}
