//! What can go wrong while a module is written or an ONNX file is read.

use std::io;
use std::path::{Path, PathBuf};

use dlc_errors::{Fault, Faulty};
use dlc_files::{ChangedError, InputError, IoError};
use dlc_ir::IrError;
use thiserror::Error;

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
    /// A deployment target can't run the model.
    #[error("the model can't be deployed to {target}: {problem}")]
    Target {
        /// The target's name.
        target: &'static str,
        /// Why, and the way out.
        problem: String,
    },
    /// A file can't be made, read or written.
    #[error(transparent)]
    Io(#[from] IoError),
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
    /// An input isn't what it was when it was opened.
    #[error(transparent)]
    Changed(#[from] ChangedError),
    /// The caller asked to stop.
    #[error("stopped; nothing was left behind")]
    Interrupted,
    /// An error of the IR: a weight without data, for one.
    #[error(transparent)]
    Ir(#[from] IrError),
}

impl ExportError {
    pub(crate) fn module(subject: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Module {
            subject: subject.into(),
            problem: problem.into(),
        }
    }

    /// For `map_err`: an I/O error with what was tried on which path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let of = IoError::of(action, path);
        move |source| of(source).into()
    }
}

impl Faulty for ExportError {
    fn fault(&self) -> Fault {
        match self {
            Self::Node { .. } | Self::Target { .. } => Fault::Unsupported,
            Self::Module { .. }
            | Self::Io(_)
            | Self::Input(_)
            | Self::Exists(_)
            | Self::NotReplaced { .. }
            | Self::Changed(_) => Fault::BadInput,
            Self::Interrupted => Fault::Interrupted,
            Self::Ir(error) => error.fault(),
        }
    }
}
