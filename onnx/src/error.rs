//! What can be wrong with an ONNX file.

use std::path::{Path, PathBuf};

use dlc_errors::{Fault, Faulty};
use dlc_files::InputError;
use thiserror::Error;

/// A file that can't be read as ONNX.
#[derive(Debug, Error)]
pub enum OnnxError {
    /// The file can't be opened.
    #[error(transparent)]
    Input(#[from] InputError),
    /// It is damaged, or no ONNX file.
    #[error("{} is not a readable ONNX file: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl OnnxError {
    /// For `map_err`: a damaged file, with what is wrong.
    pub fn damaged(path: &Path) -> impl Fn(String) -> Self {
        move |problem| Self::Damaged {
            path: path.to_owned(),
            problem,
        }
    }
}

impl Faulty for OnnxError {
    fn fault(&self) -> Fault {
        Fault::BadInput
    }
}
