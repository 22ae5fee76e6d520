//! What can be wrong with a GGUF file.

use std::path::{Path, PathBuf};

use dlc_errors::{Fault, Faulty};
use dlc_files::InputError;
use thiserror::Error;

/// A GGUF file that can't be read as a checkpoint.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The file can't be opened.
    #[error(transparent)]
    Input(#[from] InputError),
    /// It is damaged, or no GGUF file.
    #[error("{}: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// It is sound, but dlc doesn't read all that it holds.
    #[error("{}:{}", path.display(), list(problems))]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Everything that dlc doesn't read.
        problems: Vec<String>,
    },
}

fn list(problems: &[String]) -> String {
    match problems {
        [one] => format!(" {one}"),
        _ => format!("\n  - {}", problems.join("\n  - ")),
    }
}

impl GgufError {
    pub(crate) fn damaged(path: &Path, problem: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }
}

impl Faulty for GgufError {
    fn fault(&self) -> Fault {
        match self {
            Self::Input(_) | Self::Damaged { .. } => Fault::BadInput,
            Self::Unsupported { .. } => Fault::Unsupported,
        }
    }
}
