//! What can go wrong in a pass.

use dlc_errors::{Fault, Faulty};
use dlc_eval::EvalError;
use dlc_ir::IrError;
use dlc_methods::MethodError;
use thiserror::Error;

/// An error of a pass, with the way out.
#[derive(Debug, Error)]
pub enum PassError {
    /// There is no pass of this name.
    #[error("there is no pass `{name}`{hint}; `dlc passes` lists them")]
    UnknownPass {
        /// The name asked for.
        name: String,
        /// `, did you mean ...?` or nothing.
        hint: String,
    },
    /// An option isn't known or has a value that doesn't fit.
    #[error("pass {pass}: {problem}")]
    Options {
        /// The pass.
        pass: &'static str,
        /// What is wrong, and what would fit.
        problem: String,
    },
    /// An adapter can't be merged; everything that stands against it.
    #[error("adapter {adapter}: {}", listed(.problems))]
    Adapter {
        /// The adapter's file.
        adapter: String,
        /// Whether dlc lacks something, rather than the adapter.
        unsupported: bool,
        /// What is wrong, and what would fit.
        problems: Vec<String>,
    },
    /// The calibration data can't be used.
    #[error("calibration: {problem}")]
    Calibration {
        /// What is wrong, and what would fit.
        problem: String,
    },
    /// A sampler or a schedule can't be used.
    #[error("{place}: {problem}")]
    Sampler {
        /// The scheduler's configuration, or the schedule's file.
        place: String,
        /// What is wrong, and what would fit.
        problem: String,
        /// Whether dlc lacks something.
        unsupported: bool,
    },
    /// What passes cost isn't known.
    #[error("{place}: {problem}")]
    Costs {
        /// The runtime, or the file with costs.
        place: String,
        /// What is wrong, and the way out.
        problem: String,
    },
    /// Scores that were given can't be used.
    #[error("{place}: {problem}")]
    Scores {
        /// The file.
        place: String,
        /// What is wrong, and the way out.
        problem: String,
    },
    /// The module isn't one that the pass can work on.
    #[error("pass {pass}: {problem}")]
    Unsupported {
        /// The pass.
        pass: &'static str,
        /// What the pass needs.
        problem: String,
    },
    /// A score is NaN or infinite.
    #[error(
        "pass {pass}: the {score} score of {unit} is {value}; some weight is NaN or infinite, or so large that the model overflows"
    )]
    NotFinite {
        /// The pass.
        pass: &'static str,
        /// The score's name.
        score: &'static str,
        /// The layer or block.
        unit: String,
        /// The value.
        value: f64,
    },
    /// A pass left a graph that breaks an invariant.
    #[error("pass {pass} left a broken graph: {source}")]
    Broken {
        /// The pass.
        pass: &'static str,
        /// The violations.
        source: IrError,
    },
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// Evaluating the graph failed.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// A method refused its input: logits that are NaN, for one.
    #[error(transparent)]
    Method(#[from] MethodError),
    /// An edit failed.
    #[error(transparent)]
    Ir(#[from] IrError),
}

/// Problems of an adapter that are listed; more are counted.
const SHOWN: usize = 24;

/// One problem after the colon, several on lines of their own.
fn listed(problems: &[String]) -> String {
    match problems {
        [only] => only.clone(),
        several => format!("\n  {}", several.join("\n  ")),
    }
}

impl PassError {
    /// An adapter's file against which these problems stand; the first of many are listed, and the
    /// others counted. `unsupported` says whether all are things that dlc lacks.
    pub fn adapter(file: &str, mut problems: Vec<String>, unsupported: bool) -> Self {
        let more = problems.len().saturating_sub(SHOWN);
        problems.truncate(SHOWN);
        if more > 0 {
            problems.push(format!("and {more} more"));
        }
        Self::Adapter {
            adapter: file.to_owned(),
            unsupported,
            problems,
        }
    }

    /// The error as one of `pass`, if another pass's own steps led to it.
    pub(crate) fn within(self, pass: &'static str) -> Self {
        match self {
            Self::Unsupported { problem, .. } => Self::Unsupported { pass, problem },
            Self::Options { problem, .. } => Self::Options { pass, problem },
            Self::NotFinite {
                score, unit, value, ..
            } => Self::NotFinite {
                pass,
                score,
                unit,
                value,
            },
            other => other,
        }
    }
}

impl Faulty for PassError {
    fn fault(&self) -> Fault {
        match self {
            Self::UnknownPass { .. }
            | Self::Options { .. }
            | Self::Calibration { .. }
            | Self::Costs { .. }
            | Self::Scores { .. }
            | Self::NotFinite { .. }
            | Self::Adapter {
                unsupported: false, ..
            }
            | Self::Sampler {
                unsupported: false, ..
            } => Fault::BadInput,
            Self::Unsupported { .. }
            | Self::Adapter {
                unsupported: true, ..
            }
            | Self::Sampler {
                unsupported: true, ..
            } => Fault::Unsupported,
            Self::Broken { .. } => Fault::Bug,
            Self::Interrupted => Fault::Interrupted,
            Self::Eval(error) => error.fault(),
            Self::Method(error) => error.fault(),
            Self::Ir(error) => error.fault(),
        }
    }
}
