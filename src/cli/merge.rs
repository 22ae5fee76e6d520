//! `dlc merge`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use dlc_passes::merge_adapter::MergeAdapterOptions;
use serde_json::json;

use super::destination::Destination;
use super::failure::Result;
use super::output::{Output, note, warn};
use super::progress::Bar;
use super::{environment, hub, open};
use crate::pipeline::{MergeOutcome, MergeRequest, check_merge, merge, parse_adapter_flag};
use crate::report::pass_summary;

/// Merge adapters into a checkpoint and write a checkpoint
///
/// The new checkpoint is laid out like the one that was read.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dlc merge base/ --adapter tuned/ -o merged/
  dlc merge base/ --adapter tuned/=0.7 --adapter style/ -o merged/
To compile without a merged checkpoint on disk: dlc compile base/ --adapter tuned/")]
pub(super) struct Args {
    /// A Hugging Face folder, a .safetensors file with config.json beside it, or a repository of
    /// the Hub, `ORG/NAME` or `ORG/NAME@REVISION`
    model: PathBuf,
    /// An adapter, a folder of PEFT (LoRA, rsLoRA, DoRA, Dual LoRA), a LoRA file of diffusers or
    /// sd-scripts, or a repository of the Hub, `PATH` or `PATH=WEIGHT`; may be given several times
    #[arg(long = "adapter", value_name = "PATH[=WEIGHT]", required = true)]
    adapters: Vec<String>,
    /// What the adapters' trainer calls keys and tensors, if it wasn't PEFT: a YAML file, see
    /// docs/adapters.md
    #[arg(long, value_name = "FILE")]
    adapter_names: Option<PathBuf>,
    #[command(flatten)]
    keys: open::KeyArgs,
    /// Multiplies the change of every adapter
    #[arg(
        long,
        value_name = "X",
        default_value_t = MergeAdapterOptions::default().scale,
        allow_negative_numbers = true
    )]
    scale: f64,
    /// Folder of the merged checkpoint, free or empty [default: the checkpoint's name with -merged,
    /// in the current folder]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Take weights that are NaN or infinite
    #[arg(long)]
    allow_nan: bool,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = environment::threads)]
    threads: Option<usize>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let output = Output::new(args.json);
    let mut request = MergeRequest {
        model: args.model.clone(),
        adapters: args
            .adapters
            .iter()
            .map(|a| parse_adapter_flag(a))
            .collect::<Result<_, _>>()?,
        adapter_names: args.adapter_names.clone(),
        ignore_keys: args.keys.ignore_keys.clone(),
        options: MergeAdapterOptions {
            scale: args.scale,
            allow_nan: args.allow_nan,
        },
        output: args
            .output
            .clone()
            .unwrap_or_else(|| PathBuf::from(format!("{}-merged", hub::model_name(&args.model)))),
        allow_nan: args.allow_nan,
        threads: args.threads.unwrap_or_else(environment::cores),
    };
    Destination::check_folder(&request.output)?;
    check_merge(&request)?;
    request.model = hub::checkpoint(&request.model)?.path;
    hub::adapters(&mut request.adapters)?;
    let (bar, start) = (Bar::new(), Instant::now());
    let MergeOutcome { run, warnings } = merge(&request, &bar)?;
    bar.finish();
    for warning in &warnings {
        warn(warning)?;
    }
    note(&format!(
        "{}\nmerged in {:.1} s",
        pass_summary(&run),
        start.elapsed().as_secs_f64()
    ))?;
    output.result(&request.output.display().to_string())?;
    output.json(
        &json!({"output": request.output, "report": run.report.to_value(), "warnings": warnings}),
    )?;
    Ok(ExitCode::SUCCESS)
}
