//! What can go wrong in the IR.

use dlc_errors::{Fault, Faulty};
use thiserror::Error;

/// An error of the IR, with the place where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IrError {
    /// A node's inputs don't fit its op.
    #[error("{op}: {problem}")]
    Type {
        /// The op's name.
        op: &'static str,
        /// What doesn't fit.
        problem: String,
    },
    /// An edit would break the graph.
    #[error("graph {graph}: {problem}")]
    Edit {
        /// The graph's name.
        graph: String,
        /// What the edit would break.
        problem: String,
    },
    /// The text form doesn't parse.
    #[error("line {line}: {problem}")]
    Parse {
        /// Line, from 1.
        line: usize,
        /// What was expected or found.
        problem: String,
    },
    /// A weight has no data, or is asked for a range that it doesn't have.
    #[error("weight {name}: {problem}")]
    Weight {
        /// The weight's name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A schedule of skipped blocks whose table doesn't fit.
    #[error("schedule: {problem}")]
    Schedule {
        /// What is wrong with it.
        problem: String,
    },
}

impl Faulty for IrError {
    /// Whose fault the error is: text, weights and sampling plans come from outside, the rest from
    /// dlc's own code.
    fn fault(&self) -> Fault {
        match self {
            Self::Type { .. } | Self::Edit { .. } => Fault::Bug,
            Self::Parse { .. } | Self::Weight { .. } | Self::Schedule { .. } => Fault::BadInput,
        }
    }
}
