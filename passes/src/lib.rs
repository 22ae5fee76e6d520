//! The passes of dlc: module to module, each with a report.
//!
//! A new pass is one file here and one line in [`registry`]. Passes never print, read no
//! environment and open no file: what they need from outside comes through [`PassContext`].

#![warn(missing_docs)]

pub mod auto_draft;
mod clean_up;
mod context;
pub mod dip_go;
mod draft;
mod error;
mod fisher_work;
pub mod fit_prune;
pub mod fit_solver;
mod fold_constants;
mod keep_codes;
mod kept;
mod least_squares;
mod manager;
pub mod merge_adapter;
mod needs;
mod options;
pub mod quantize;
pub mod quantize_draft;
pub mod registry;
mod report;
mod routers;
mod sampling;
pub mod scoring;
pub mod skip;
mod sources;
pub mod sums;
mod texts;
pub mod trim_head;

pub use clean_up::{RemoveDeadNodes, RemoveUnused, RenumberCaches};
pub use context::{Pass, PassContext, Progress, ScoreCache};
pub use error::PassError;
pub use fold_constants::fold_constants;
pub use keep_codes::{KeptCodes, keep_codes};
pub use manager::{PassRun, rehearse_passes, run_pass, run_passes, score_shard};
pub use needs::{Needs, largest_weight};
pub use options::{OptionInfo, Range, hint};
pub use report::{DraftCandidate, PassReport, ScoreColumn, ScoreTable, WeightChange};
pub use sources::{
    AdaptedPart, Adapter, AdapterTensor, Calibration, Machine, Prompt, Samplers, ScoreParts,
    Sources,
};
