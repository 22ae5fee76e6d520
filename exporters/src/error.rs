//! What can go wrong while a module is written or an ONNX file is read.

use std::io;
use std::path::{Path, PathBuf};

use dlc_ir::{Fault, IrError};
use thiserror::Error;

use crate::input::InputError;

/// An error of the exporters, with the file, node or tensor where it stands.
#[derive(Debug, Error)]
pub enum ExportError {
    /// A node has no form in the profile.
    #[error("graph {graph}, node {node} ({op}): {problem}")]
    Node {
        /// The graph's name.
        graph: String,
        /// The node's place: block and number.
        node: String,
        /// The op's name.
        op: &'static str,
        /// What can't be written.
        problem: String,
    },
    /// The module as a whole can't be a bundle.
    #[error("{subject}: {problem}")]
    Module {
        /// The graph, weight or side file.
        subject: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file can't be made, read or written.
    #[error("can't {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file that can't be an input.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The output stands already.
    #[error("{} exists already; give another folder with -o, or --force to replace it", .0.display())]
    Exists(PathBuf),
    /// The output may not be replaced.
    #[error("{} is not replaced: {problem}; give another folder with -o", path.display())]
    NotReplaced {
        /// The output.
        path: PathBuf,
        /// Why it is left alone.
        problem: String,
    },
    /// A file that should be ONNX is not.
    #[error("{} is not a readable ONNX file: {problem}", path.display())]
    Onnx {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// An input isn't what it was when it was opened.
    #[error("{} changed while it was read, so nothing was written; run the command again once nothing writes to the file any more", .0.display())]
    Changed(PathBuf),
    /// The caller asked to stop.
    #[error("stopped; nothing was left behind")]
    Cancelled,
    /// An error of the IR: a weight without data, for one.
    #[error(transparent)]
    Ir(#[from] IrError),
}

impl ExportError {
    /// Whether it is the user's wish to stop that ended the work.
    pub fn is_interruption(&self) -> bool {
        matches!(self, Self::Cancelled)
    }

    /// Whose fault the error is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Node { .. } => Fault::Unsupported,
            Self::Module { .. }
            | Self::Io { .. }
            | Self::Input(_)
            | Self::Exists(_)
            | Self::NotReplaced { .. }
            | Self::Onnx { .. }
            | Self::Changed(_)
            | Self::Cancelled => Fault::BadInput,
            Self::Ir(error) => error.fault(),
        }
    }

    pub(crate) fn module(subject: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Module {
            subject: subject.into(),
            problem: problem.into(),
        }
    }

    /// For `map_err`: an I/O error with what was tried on which path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}
