//! Why a scheduler's configuration gives no sampling plan. Lists everything that is wrong at once.

use std::fmt::{self, Write as _};

use dlc_errors::{Fault, Faulty};

use crate::diffusion::PlanError;

/// A scheduler that dlc can't sample with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SchedulerError {
    /// The file isn't a JSON object.
    #[error(
        "scheduler_config.json: {0}. It must be an object as diffusers' `save_pretrained` writes it"
    )]
    Json(String),
    /// The scheduler is unknown, or none of those that dlc samples with.
    #[error("{0}")]
    Class(String),
    /// Keys of the configuration, or a number of steps, that are wrong or ask for something dlc
    /// can't do.
    #[error("scheduler_config.json, read as {class}: {}", list(problems))]
    Config {
        /// diffusers' name of the scheduler.
        class: &'static str,
        /// Every key at fault.
        problems: Vec<SchedulerProblem>,
    },
    /// A run of an image that takes no step, or more than all.
    #[error(
        "a strength of {strength} is none of a run of {steps} steps: it must be at most 1, and at least {} to take a step",
        1.0 / (*steps).max(1) as f64
    )]
    Strength {
        /// What was asked for.
        strength: f64,
        /// The steps of the whole run.
        steps: usize,
    },
    /// The numbers of the configuration are each fine, but give no sampler together.
    #[error(
        "scheduler_config.json, read as {class} for {steps} steps: {reason} (timestep {timestep}). The noise schedule leaves no signal or no noise \
         there, or two timesteps fall together. Take fewer steps, another `timestep_spacing` or another scheduler"
    )]
    Degenerate {
        /// diffusers' name of the scheduler.
        class: &'static str,
        /// The number of steps that was asked for.
        steps: usize,
        /// The timestep at which it goes wrong.
        timestep: f64,
        /// What the plan's own check says.
        #[source]
        reason: PlanError,
    },
}

impl Faulty for SchedulerError {
    /// Whose fault it is: the input's, if any part of it is wrong.
    fn fault(&self) -> Fault {
        match self {
            Self::Class(_) => Fault::Unsupported,
            Self::Config { problems, .. }
                if problems
                    .iter()
                    .all(|problem| problem.fault == Fault::Unsupported) =>
            {
                Fault::Unsupported
            }
            Self::Json(_)
            | Self::Config { .. }
            | Self::Strength { .. }
            | Self::Degenerate { .. } => Fault::BadInput,
        }
    }
}

/// One key of a scheduler's configuration, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulerProblem {
    /// The key; `steps` for the number of steps that was asked for.
    pub key: String,
    /// Wrong, or beyond dlc.
    pub fault: Fault,
    /// What is wrong.
    pub problem: String,
}

impl fmt::Display for SchedulerProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.key, self.problem)
    }
}

/// The problem itself if it is the only one, else one on each line.
fn list(problems: &[SchedulerProblem]) -> String {
    const LONGEST_LIST: usize = 20;
    if let [only] = problems {
        return only.to_string();
    }
    let mut text = format!("{} problems:", problems.len());
    for problem in problems.iter().take(LONGEST_LIST) {
        // Writing to a `String` can't fail.
        let _ = write!(text, "\n  - {problem}");
    }
    if problems.len() > LONGEST_LIST {
        let _ = write!(text, "\n  - and {} more", problems.len() - LONGEST_LIST);
    }
    text
}
