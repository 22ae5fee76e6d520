//! What can go wrong in a method's arithmetic.

use dlc_errors::{Fault, Faulty};
use thiserror::Error;

use crate::diffusion::{PlanError, SchedulerError};

/// Result of anything in the methods.
pub type Result<T, E = MethodError> = std::result::Result<T, E>;

/// An input that contradicts itself or the model, a model that failed, or a bug.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MethodError {
    /// What was asked for contradicts itself or the model.
    #[error("{0}")]
    Input(String),
    /// A draft that can't guess for this target.
    #[error(
        "draft: its vocabulary has {draft} entries, the target's {target}. Use a draft made from this target, or `--no-draft`"
    )]
    Vocabulary {
        /// Entries of the draft's vocabulary.
        draft: usize,
        /// Entries of the target's.
        target: usize,
    },
    /// Logits that no distribution can be made of.
    #[error(
        "the logits at position {position} hold {found}: the model or its weights are broken (check with `dlc verify`)"
    )]
    Logits {
        /// Position of the logits in the sequence, from 0.
        position: usize,
        /// `NaN`, `+inf` or `no finite value`.
        found: &'static str,
    },
    /// A sampling plan that can't run.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A scheduler that dlc can't sample with.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    /// The model that the method runs failed.
    #[error("{0}")]
    Model(Box<dyn Faulty + Send + Sync>),
    /// A state that the method itself must never reach.
    #[error("a bug in dlc: {0}")]
    Bug(String),
}

impl MethodError {
    /// The failure of a model, as an error of the method that ran it.
    pub fn model(error: impl Faulty + Send + Sync + 'static) -> Self {
        Self::Model(Box::new(error))
    }
}

impl Faulty for MethodError {
    fn fault(&self) -> Fault {
        match self {
            Self::Input(_) | Self::Plan(_) => Fault::BadInput,
            Self::Logits { .. } => Fault::Model,
            Self::Vocabulary { .. } => Fault::Unsupported,
            Self::Scheduler(error) => error.fault(),
            Self::Model(error) => error.fault(),
            Self::Bug(_) => Fault::Bug,
        }
    }
}
