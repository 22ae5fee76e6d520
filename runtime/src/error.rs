//! The one error of the runtime: what was wrong, in which file, graph or port, and the way out.

use std::path::{Path, PathBuf};

use dlc_bundle::CheckError;
use dlc_errors::{Fault, Faulty};
use dlc_files::InputError;
use dlc_methods::MethodError;

/// Result of anything in the runtime.
pub type Result<T, E = RuntimeError> = std::result::Result<T, E>;

/// What can go wrong between a bundle and its words.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// A file that is missing, unreadable, too large or not what it should be.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// What a user asked for contradicts itself or the model.
    #[error("{0}")]
    Input(String),
    /// The backend, or dlc, can't do this; says how to get there all the same.
    #[error("{what}: {reason}. {fix}")]
    Unsupported {
        /// The bundle, graph, library or file in question.
        what: String,
        /// Why it isn't possible.
        reason: String,
        /// What to do instead.
        fix: String,
    },
    /// No usable ONNX Runtime although one was demanded.
    #[error(
        "no usable ONNX Runtime library: {0}. Run `dlc setup onnxruntime`, or name one with `--ort-lib`"
    )]
    NoLibrary(String),
    /// A boundary value of a graph that isn't as it must be.
    #[error("graph `{graph}`, port `{port}`: {problem}")]
    Port {
        /// The graph.
        graph: String,
        /// The input or output.
        port: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The backend refused to load or run a graph.
    #[error("graph `{graph}` ({}): the backend failed to {action}: {message}", file.display())]
    Graph {
        /// The graph.
        graph: String,
        /// Its ONNX file.
        file: PathBuf,
        /// `load` or `run`.
        action: &'static str,
        /// The backend's own words.
        message: String,
    },
    /// A graph that isn't what its manifest says.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The method that ran the graphs: decoding or sampling.
    #[error(transparent)]
    Method(#[from] MethodError),
    /// A state that the runtime itself must never reach.
    #[error("a bug in dlc: {0}")]
    Bug(String),
}

impl RuntimeError {
    /// What is wrong with a file, and what to do.
    pub fn file(path: &Path, problem: impl Into<String>) -> Self {
        Self::File {
            path: path.to_path_buf(),
            problem: problem.into(),
        }
    }

    pub(crate) fn unsupported(
        what: impl Into<String>,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::Unsupported {
            what: what.into(),
            reason: reason.into(),
            fix: fix.into(),
        }
    }

    pub(crate) fn port(graph: &str, port: &str, problem: impl Into<String>) -> Self {
        Self::Port {
            graph: graph.to_owned(),
            port: port.to_owned(),
            problem: problem.into(),
        }
    }
}

impl Faulty for RuntimeError {
    fn fault(&self) -> Fault {
        match self {
            Self::File { .. } | Self::Input(_) => Fault::BadInput,
            Self::Port { .. } | Self::Graph { .. } => Fault::Model,
            Self::Unsupported { .. } | Self::NoLibrary(_) => Fault::Unsupported,
            Self::Check(error) => error.fault(),
            Self::Method(error) => error.fault(),
            Self::Bug(_) => Fault::Bug,
        }
    }
}

impl From<InputError> for RuntimeError {
    fn from(error: InputError) -> Self {
        Self::file(&error.path, error.problem.to_string())
    }
}
