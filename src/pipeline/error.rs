//! The errors of all stages, as one type.

use std::path::PathBuf;

use dlc_eval::EvalError;
use dlc_exporters::ExportError;
use dlc_ir::{Fault, IrError};
use dlc_passes::PassError;
use thiserror::Error;

use crate::checkpoint::CheckpointError;
use crate::files::InputError;
use crate::import::ImportError;
use crate::runtime::RuntimeError;

/// An error of any stage.
#[derive(Debug, Error)]
pub enum PipelineError {
    /// Opening the checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Importing it.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A pass.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// Writing the bundle, or reading ONNX.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// Running the bundle.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// Evaluating a graph.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// A graph or weight.
    #[error(transparent)]
    Ir(#[from] IrError),
    /// A pipeline file or a `--pass` flag.
    #[error("{place}: {problem}")]
    Config {
        /// The file or flag.
        place: String,
        /// What is wrong, and what would fit.
        problem: String,
    },
    /// Weights that are NaN or infinite.
    #[error("NaN or infinite numbers stand in {} of the weights: {}; mend the checkpoint, or compile it as it is with --allow-nan", .0.len(), shown(.0))]
    NonFinite(Vec<(String, usize)>),
    /// Merged weights that are infinite in the type that they are stored in.
    #[error("merged values of {} tensors are too large for the type that they are stored in: {}; merge with a smaller weight, or convert the checkpoint to \
             bf16 or f32 first", .0.len(), shown(.0))]
    Overflow(Vec<(String, usize)>),
    /// A file that can't be read.
    #[error("can't read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file that can't be an input.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A temporary folder that can't be made.
    #[error("can't make a temporary folder in {}: {source}", folder.display())]
    Scratch {
        /// Where it was to be.
        folder: PathBuf,
        /// What stands against it.
        source: ExportError,
    },
    /// The threads can't be started.
    #[error("can't start {threads} threads: {problem}; ask for fewer with --threads")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// What the system says.
        problem: String,
    },
}

fn shown(weights: &[(String, usize)]) -> String {
    let mut list: Vec<String> = weights
        .iter()
        .take(5)
        .map(|(name, index)| format!("{name} (element {index})"))
        .collect();
    if weights.len() > list.len() {
        list.push("...".into());
    }
    list.join(", ")
}

impl PipelineError {
    /// Whose fault the error is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Checkpoint(e) => e.fault(),
            Self::Import(e) => e.fault(),
            Self::Pass(e) => e.fault(),
            Self::Export(e) => e.fault(),
            Self::Runtime(e) => e.fault(),
            Self::Eval(e) => e.fault(),
            Self::Ir(e) => e.fault(),
            Self::Config { .. }
            | Self::NonFinite(_)
            | Self::Overflow(_)
            | Self::Read { .. }
            | Self::Input(_)
            | Self::Scratch { .. }
            | Self::Threads { .. } => Fault::BadInput,
        }
    }

    /// Whether it is the user's wish to stop that ended the work.
    pub fn is_interruption(&self) -> bool {
        match self {
            Self::Pass(error) => error.is_interruption(),
            Self::Export(error) => error.is_interruption(),
            _ => false,
        }
    }
}
