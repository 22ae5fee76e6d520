//! `dlc convert`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use dlc_ir::DType;
use serde_json::json;

use super::compile::DTypeArg;
use super::destination::Destination;
use super::environment;
use super::failure::Result;
use super::output::{Output, note, warn};
use super::progress::Bar;
use crate::pipeline::{ConvertOutcome, ConvertRequest, convert};

/// Convert a GGUF file into a checkpoint
///
/// Weights, configuration and tokenizer come from the file. `dlc compile` takes GGUF files as they
/// are; a checkpoint is for what else reads one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dlc convert model-Q4_K_M.gguf model/
  dlc convert model-Q8_0.gguf model/ --dtype f32")]
pub(super) struct Args {
    /// The GGUF file
    model: PathBuf,
    /// Folder of the checkpoint, free or empty
    output: PathBuf,
    /// Element type of the weights
    #[arg(long, value_enum, default_value = "f16")]
    dtype: DTypeArg,
    /// Rewrite the weights without changing the function, so that they no longer lie on the grid
    /// that they were quantised to
    #[arg(long)]
    off_grid: bool,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = environment::threads)]
    threads: Option<usize>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let output = Output::new(args.json);
    let request = ConvertRequest {
        model: args.model.clone(),
        output: args.output.clone(),
        dtype: args.dtype.into(),
        off_grid: args.off_grid,
        threads: args.threads.unwrap_or_else(environment::cores),
    };
    Destination::check_folder(&request.output)?;
    let (bar, start) = (Bar::new(), Instant::now());
    let outcome = convert(&request, &bar)?;
    bar.finish();
    for warning in &outcome.warnings {
        warn(warning)?;
    }
    note(&format!(
        "{}\nconverted in {:.1} s",
        summary(&outcome, request.dtype),
        start.elapsed().as_secs_f64()
    ))?;
    output.result(&request.output.display().to_string())?;
    output.json(&json!({
        "output": request.output,
        "tensors": outcome.tensors,
        "parameters": outcome.parameters,
        "stored": outcome.stored,
        "dtype": request.dtype.name(),
        "largest_rounding": outcome.rounding,
        "warnings": outcome.warnings,
    }))?;
    Ok(ExitCode::SUCCESS)
}

fn summary(outcome: &ConvertOutcome, dtype: DType) -> String {
    let stored: Vec<String> = outcome
        .stored
        .iter()
        .map(|(name, count)| format!("{count} in {name}"))
        .collect();
    let rounding = if outcome.rounding == 0.0 {
        "exact".to_owned()
    } else {
        format!("largest rounding {:.2e}", outcome.rounding)
    };
    format!(
        "{} tensors ({}), {} parameters, written in {dtype}: {rounding}",
        outcome.tensors,
        stored.join(", "),
        outcome.parameters
    )
}
