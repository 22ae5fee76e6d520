//! Why a checkpoint can't be imported. Errors list everything that is wrong at once, not the first
//! thing.

use std::fmt;
use std::path::PathBuf;

use dlc_errors::printable::list;
use dlc_errors::{Fault, Faulty};
use dlc_ir::{DType, IrError};
use thiserror::Error;

/// A checkpoint that can't become a module.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The architecture isn't one of [`FAMILIES`](super::FAMILIES).
    #[error("{}: {problem}", path.display())]
    Architecture {
        /// The configuration.
        path: PathBuf,
        /// What was found, what is supported, and the nearest of these.
        problem: String,
    },
    /// Keys of the configuration that are wrong, or that ask for something dlc can't do.
    #[error("{}: {} with the configuration:{}", path.display(), count(problems.len(), "problem"), list(problems))]
    Config {
        /// The configuration.
        path: PathBuf,
        /// Every key at fault.
        problems: Vec<ConfigProblem>,
    },
    /// Tensors that are missing, of the wrong shape or type, or unknown.
    #[error("{}: {} with the tensors that config.json asks for:{}{}", path.display(), count(problems.len(), "problem"), list(problems), hint.as_deref().unwrap_or_default())]
    Tensors {
        /// The checkpoint's folder.
        path: PathBuf,
        /// Every tensor at fault.
        problems: Vec<String>,
        /// What the reason may be, as a sentence on a line of its own.
        hint: Option<String>,
    },
    /// The element type that was asked for isn't a float type.
    #[error("weights can't be imported as {0}. Ask for f32, f16 or bf16")]
    DType(DType),
    /// A weight or graph that the IR refuses.
    #[error(transparent)]
    Ir(#[from] IrError),
}

impl Faulty for ImportError {
    /// Whose fault the error is: the input's, if any part of it is wrong.
    fn fault(&self) -> Fault {
        match self {
            Self::Architecture { .. } => Fault::Unsupported,
            Self::Config { problems, .. }
                if problems.iter().all(|p| p.fault == Fault::Unsupported) =>
            {
                Fault::Unsupported
            }
            Self::Config { .. } | Self::Tensors { .. } | Self::DType(_) => Fault::BadInput,
            Self::Ir(error) => error.fault(),
        }
    }
}

/// One key of a configuration, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The key, with the object around it where there is one: `rope_scaling.factor`.
    pub key: String,
    /// Wrong, or beyond dlc.
    pub fault: Fault,
    /// What is wrong.
    pub problem: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.key, self.problem)
    }
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
