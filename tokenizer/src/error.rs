//! Why there is no `tokenizer.json`.

use dlc_errors::{Fault, Faulty};
use thiserror::Error;

/// A vocabulary that can't be converted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// A file is damaged, or isn't what its name says.
    #[error("{file}: {problem}")]
    Damaged {
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// The files are sound, but dlc doesn't follow what they say.
    #[error("{0}")]
    Unsupported(String),
}

impl ConvertError {
    pub(crate) fn damaged(file: &str, problem: impl Into<String>) -> Self {
        Self::Damaged {
            file: file.to_owned(),
            problem: problem.into(),
        }
    }
}

impl Faulty for ConvertError {
    fn fault(&self) -> Fault {
        match self {
            Self::Damaged { .. } => Fault::BadInput,
            Self::Unsupported(_) => Fault::Unsupported,
        }
    }
}
