//! The scoring engine: a model as a chain of links, one in memory at a time, run forwards and
//! backwards.
//!
//! `chain.rs` cuts a graph, `objective.rs` says what a model is scored on, `fisher.rs` sums squared
//! gradients (FIT: *A Metric for Model Sensitivity*, Zandonati et al., ICLR 2023), `agreement.rs`
//! compares answers, `divergence.rs` what two graphs expect, `steps.rs` tells how far all that is. It
//! chooses nothing and changes nothing.

pub(crate) mod agreement;
pub(crate) mod chain;
pub(crate) mod divergence;
pub(crate) mod fisher;
mod head;
pub(crate) mod objective;
pub(crate) mod steps;

use dlc_ir::Graph;

use crate::error::PassError;

pub use fisher::{FisherScores, TensorFisher, fisher_scores, fisher_scores_with_head};
pub(crate) use head::Head;
pub use objective::Objective;

/// As many links as a chain of the graph may have.
pub(crate) fn most_links(graph: &Graph) -> usize {
    2 * graph.blocks().count() + 2
}

/// What scoring can't work on; the pass that asked gives it its name.
pub(crate) fn unsupported(problem: impl Into<String>) -> PassError {
    PassError::Unsupported {
        pass: "scoring",
        problem: problem.into(),
    }
}

fn no_links() -> PassError {
    unsupported("the target has no nodes")
}
