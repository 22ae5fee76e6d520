//! What can be wrong with a checkpoint's files. Every message says what, in which file (and
//! tensor), and what to do next.

use std::io;
use std::path::{Path, PathBuf};

use dlc_errors::{Fault, Faulty};
use thiserror::Error;

pub(crate) use dlc_errors::printable::shown;

/// A checkpoint that can't be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The operating system refused to read a file.
    #[error("{}: can't be read ({reason}). Check the path and its permissions", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's own words.
        reason: io::Error,
    },
    /// A file that is missing, too large, damaged or not what its name says.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A tensor whose record in the file's header is wrong.
    #[error("{}: tensor `{tensor}`: {problem}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name, shortened and escaped for printing.
        tensor: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A GGUF file that can't be opened.
    #[error(transparent)]
    Gguf(#[from] dlc_gguf::GgufError),
    /// Weights that are quantised already, in a way that dlc doesn't read, or by tensors that don't
    /// fit each other.
    #[error("{}:{}", path.display(), dlc_errors::printable::list(problems))]
    Quantized {
        /// The configuration, or the folder of the tensors.
        path: PathBuf,
        /// Everything that is wrong.
        problems: Vec<String>,
        /// Whether it is what dlc lacks.
        unsupported: bool,
    },
    /// Weights in a format that dlc doesn't read.
    #[error("{}: {problem}", path.display())]
    Format {
        /// The file or folder.
        path: PathBuf,
        /// The format, and how to convert it.
        problem: String,
    },
}

impl CheckpointError {
    pub(super) fn read(path: &Path, reason: io::Error) -> Self {
        Self::Read {
            path: path.to_owned(),
            reason,
        }
    }

    pub(super) fn file(path: &Path, problem: impl Into<String>) -> Self {
        Self::File {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }

    pub(super) fn tensor(path: &Path, tensor: &str, problem: impl Into<String>) -> Self {
        Self::Tensor {
            path: path.to_owned(),
            tensor: shown(tensor),
            problem: problem.into(),
        }
    }
}

impl Faulty for CheckpointError {
    fn fault(&self) -> Fault {
        match self {
            Self::Gguf(error) => error.fault(),
            Self::Format { .. }
            | Self::Quantized {
                unsupported: true, ..
            } => Fault::Unsupported,
            Self::Quantized { .. }
            | Self::Read { .. }
            | Self::File { .. }
            | Self::Tensor { .. } => Fault::BadInput,
        }
    }
}
