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
    /// A step of building a graph that doesn't fit those before it.
    #[error("graph {graph}: {problem}")]
    Build {
        /// The graph's name.
        graph: String,
        /// The input or block in question, and what to do first.
        problem: String,
    },
    /// An edit that the graph doesn't allow; it is as it was.
    #[error("graph {graph}: {problem}")]
    Edit {
        /// The graph's name.
        graph: String,
        /// The block, node or output in question, and what the edit needs.
        problem: String,
    },
    /// A value is read, or asked for, that nothing makes.
    #[error("graph {graph}: {value} is missing: nothing before makes it")]
    Missing {
        /// The graph's name.
        graph: String,
        /// The value, and who wants it.
        value: String,
    },
    /// A graph that breaks invariants of [`verify`](mod@crate::verify).
    #[error("graph {graph}: {}", listed(violations))]
    Invalid {
        /// The graph's name.
        graph: String,
        /// Every violation, with its place.
        violations: Vec<String>,
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

/// Violations that a message shows; more are counted.
const SHOWN: usize = 24;

fn listed(violations: &[String]) -> String {
    let shown = violations[..violations.len().min(SHOWN)].join("; ");
    match violations.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

impl Faulty for IrError {
    /// Whose fault the error is: text, weights and sampling plans come from outside, the rest from
    /// dlc's own code.
    fn fault(&self) -> Fault {
        match self {
            Self::Type { .. }
            | Self::Build { .. }
            | Self::Edit { .. }
            | Self::Missing { .. }
            | Self::Invalid { .. } => Fault::Bug,
            Self::Parse { .. } | Self::Weight { .. } | Self::Schedule { .. } => Fault::BadInput,
        }
    }
}
