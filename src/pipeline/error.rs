//! The errors of all stages, as one type.

use std::path::PathBuf;

use dlc_errors::{Fault, Faulty};
use dlc_eval::EvalError;
use dlc_exporters::ExportError;
use dlc_files::{InputError, IoError};
use dlc_ir::IrError;
use dlc_onnx::OnnxError;
use dlc_passes::PassError;
use dlc_runtime::RuntimeError;
use thiserror::Error;

use crate::checkpoint::CheckpointError;
use crate::import::ImportError;

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
    /// Writing the bundle.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// Reading ONNX.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// Writing a file.
    #[error(transparent)]
    Io(#[from] IoError),
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
    /// Converted weights that aren't finite in the type asked for.
    #[error("NaN or infinite numbers stand in {} of the tensors once they are {dtype}: {}; take another element type with --dtype, if they are finite in it", .tensors.len(), shown(.tensors))]
    Converted {
        /// The type.
        dtype: dlc_ir::DType,
        /// The tensors, with the first such element.
        tensors: Vec<(String, usize)>,
    },
    /// A checkpoint that this work can't be done on.
    #[error("{}: {problem}", path.display())]
    Misfit {
        /// The checkpoint.
        path: PathBuf,
        /// Why not, and what can be done instead.
        problem: String,
    },
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
        source: IoError,
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

impl Faulty for PipelineError {
    fn fault(&self) -> Fault {
        match self {
            Self::Checkpoint(e) => e.fault(),
            Self::Import(e) => e.fault(),
            Self::Pass(e) => e.fault(),
            Self::Export(e) => e.fault(),
            Self::Onnx(e) => e.fault(),
            Self::Io(e) => e.fault(),
            Self::Runtime(e) => e.fault(),
            Self::Eval(e) => e.fault(),
            Self::Ir(e) => e.fault(),
            Self::Config { .. }
            | Self::NonFinite(_)
            | Self::Converted { .. }
            | Self::Misfit { .. }
            | Self::Overflow(_)
            | Self::Read { .. }
            | Self::Input(_)
            | Self::Scratch { .. }
            | Self::Threads { .. } => Fault::BadInput,
        }
    }
}
