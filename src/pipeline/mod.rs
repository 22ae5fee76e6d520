//! From a checkpoint to a bundle: import, passes, export; from a checkpoint to a merged one; and
//! back from a bundle to a module.
//!
//! Never prints and reads no environment: progress, cache folder and threads come with the request.

mod adapters;
mod bundle_module;
mod cache;
mod calibration;
mod codes;
mod compare;
mod comparison;
mod compile;
mod config;
mod constants;
mod convert;
mod cuda;
mod error;
mod feeds;
mod generation;
mod lora_modules;
mod lora_names;
mod machine;
mod merge;
mod monitor;
mod name_map;
mod needs;
mod off_grid;
mod outgrown;
mod prompt_lines;
mod prompts;
mod range;
mod relayout;
mod request;
mod samplers;
mod score;
mod score_file;
mod score_parts;
mod source;
mod verify;
mod warnings;

pub use adapters::{AdapterSpec, parse_adapter_flag};
pub use bundle_module::{OnnxModule, module_of_bundle, read_onnx};
pub use cache::DiskCache;
pub use calibration::TextCalibration;
pub use compare::{WeightDifference, compare_weights};
pub use comparison::{Comparison, HELD_BACK, Outcome, Reading, Runner, Side, compare_models};
pub use compile::{CompileOutcome, check_compilation, compile};
pub use config::{PipelineConfig, parse_pass_flag};
pub use constants::{ConstantDifference, Constants, Transposed};
pub use convert::{ConvertOutcome, ConvertRequest, convert};
pub use dlc_passes::registry::PassSpec;
pub use error::PipelineError;
pub use machine::BundleMachine;
pub use merge::{MergeOutcome, MergeRequest, check_merge, merge};
pub use monitor::Monitor;
pub use needs::needs;
pub use prompt_lines::{BadLine, built_in_prompts, prompt_lines};
pub use request::CompileRequest;
pub use samplers::DiffusionSamplers;
pub use score::{ScoreOutcome, check_scoring, score};
pub use score_parts::check_scores;
pub use source::source_record;
pub use verify::{Case, Check, Deviation, Tolerance, compare_with_source, verify_bundle};
pub use warnings::Use;
