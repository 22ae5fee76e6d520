//! What can go wrong when a graph is run.

use dlc_errors::{Fault, Faulty};
use dlc_ir::{Graph, IrError, NodeId};
use thiserror::Error;

/// An error of the evaluator, with the place where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EvalError {
    /// An array's data doesn't fill its shape.
    #[error("array: {problem}")]
    Array {
        /// What doesn't fit.
        problem: String,
    },
    /// An input or output of a graph is missing, unknown or of the wrong type.
    #[error("graph {graph}, {name}: {problem}")]
    Boundary {
        /// The graph's name.
        graph: String,
        /// The name on the boundary.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A node can't be computed.
    #[error("graph {graph}, {op} %{value}: {problem}")]
    Node {
        /// The graph's name.
        graph: String,
        /// The op's name.
        op: &'static str,
        /// Name of the node's first output in the text form.
        value: String,
        /// Why not.
        problem: String,
        /// Whose fault it is: the data that was fed, or dlc's.
        fault: Fault,
    },
    /// A segment is made of, or asked for, something that it can't have.
    #[error("graph {graph}: {problem}")]
    Segment {
        /// The graph's name.
        graph: String,
        /// What it is.
        problem: String,
    },
    /// A weight can't be read.
    #[error("graph {graph}: {source}")]
    Weight {
        /// The name of the graph that uses it.
        graph: String,
        /// What is wrong with it.
        source: IrError,
    },
    /// Logits and targets don't fit each other.
    #[error("cross entropy: {problem}")]
    Loss {
        /// What doesn't fit.
        problem: String,
    },
}

impl EvalError {
    pub(crate) fn segment(graph: &Graph, problem: impl Into<String>) -> Self {
        Self::Segment {
            graph: graph.name.clone(),
            problem: problem.into(),
        }
    }

    pub(crate) fn boundary(graph: &Graph, name: &str, problem: impl Into<String>) -> Self {
        Self::Boundary {
            graph: graph.name.clone(),
            name: name.to_owned(),
            problem: problem.into(),
        }
    }
}

impl Faulty for EvalError {
    /// Whose fault the error is. Data comes from outside; segments are put together by dlc's own
    /// code.
    fn fault(&self) -> Fault {
        match self {
            Self::Array { .. } | Self::Boundary { .. } | Self::Loss { .. } => Fault::BadInput,
            Self::Node { fault, .. } => *fault,
            Self::Segment { .. } => Fault::Bug,
            Self::Weight { source, .. } => source.fault(),
        }
    }
}

/// Why an op failed, before the node is known.
#[derive(Debug)]
pub(crate) enum OpError {
    /// The data that was fed can't be used.
    Data(String),
    /// The op got operands that type inference doesn't let pass.
    Bug(String),
}

impl From<candle_core::Error> for OpError {
    fn from(error: candle_core::Error) -> Self {
        Self::Bug(first_line(&error))
    }
}

impl OpError {
    /// The error of the node `id`.
    pub(crate) fn at(self, graph: &Graph, id: NodeId) -> EvalError {
        let node = graph.node(id);
        let value = node
            .outputs
            .first()
            .map(|v| graph.value_names()[*v].to_owned())
            .unwrap_or_default();
        let (problem, fault) = match self {
            Self::Data(problem) => (problem, Fault::BadInput),
            Self::Bug(problem) => (problem, Fault::Bug),
        };
        EvalError::Node {
            graph: graph.name.clone(),
            op: node.op.name(),
            value,
            problem,
            fault,
        }
    }
}

/// candle appends a backtrace where the environment asks for one.
pub(crate) fn first_line(error: &candle_core::Error) -> String {
    error
        .to_string()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}
