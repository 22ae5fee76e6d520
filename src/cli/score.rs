//! `dlc score`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use dlc_ir::{DType, Task};
use dlc_passes::ScoreCache;
use dlc_passes::registry::PassSpec;
use dlc_passes::sums::Shard;
use serde_json::json;

use super::cache::CacheArgs;
use super::compile::DTypeArg;
use super::destination::{self, Destination, check_stdout};
use super::failure::{Result, bail};
use super::open::{self, KeyArgs};
use super::output::{Output, note, warn};
use super::progress::Bar;
use super::{environment, hub};
use crate::pipeline::{
    CompileRequest, ScoreOutcome, check_scoring, parse_adapter_flag, parse_pass_flag, score,
};

/// The pass that is scored for if none is asked for.
const DEFAULT_PASS: &str = "fit-prune";

/// Score a shard of the calibration samples
///
/// The scores are those of `dlc compile` with the same model, adapters and passes. Shards can be
/// scored on several machines, and `dlc compile --scores` takes the files of all shards.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dlc score model/ --pass fit-prune:samples=64 --shard 1/2 -o part-1.safetensors
  dlc score model/ --pass fit-prune:samples=64 --shard 2/2 -o part-2.safetensors
  dlc compile model/ --pass fit-prune:samples=64 --scores part-*.safetensors -o out/")]
pub(super) struct Args {
    /// A Hugging Face folder, a .safetensors file with config.json beside it, a .gguf file, or a
    /// repository of the Hub, `ORG/NAME` or `ORG/NAME@REVISION`
    model: PathBuf,
    /// An adapter to merge, as for `dlc compile`; may be given several times
    #[arg(long = "adapter", value_name = "PATH[=WEIGHT]")]
    adapters: Vec<String>,
    /// What the adapters' trainer calls keys and tensors, if it wasn't PEFT: a YAML file, see
    /// docs/adapters.md
    #[arg(long, value_name = "FILE")]
    adapter_names: Option<PathBuf>,
    #[command(flatten)]
    keys: KeyArgs,
    /// The pass to score for, `fit-prune` or `auto-draft`, with its options, and passes before it;
    /// may be given several times [default: fit-prune]
    #[arg(long = "pass", value_name = "NAME[:key=value,...]")]
    passes: Vec<String>,
    /// Which of N shards of the samples to score
    #[arg(long, value_name = "I/N", default_value_t = Shard::WHOLE)]
    shard: Shard,
    /// What to compile the model for, whatever head it was saved with [default: what config.json
    /// says]
    #[arg(long, value_name = "TASK", value_parser = open::task_parser())]
    task: Option<Task>,
    /// Element type of weights and activations [default: f32]
    #[arg(long, value_enum)]
    dtype: Option<DTypeArg>,
    /// The file to write, .safetensors; `-` is stdout
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// Take weights that are NaN or infinite
    #[arg(long)]
    allow_nan: bool,
    #[command(flatten)]
    cache: CacheArgs,
    /// Threads for scoring [default: all cores]
    #[arg(long, value_name = "N", value_parser = environment::threads)]
    threads: Option<usize>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let output = Output::new(args.json);
    let mut request = request(args)?;
    let destination = Destination::check(&args.output, &["safetensors"])?;
    check_stdout(&[&destination], args.json)?;
    args.cache.check()?;
    if let Destination::File(path) = &destination
        && path.is_file()
        && !args.force
    {
        bail!(
            "{} exists already; replace it with --force, or name another file",
            path.display()
        );
    }
    check_scoring(&request)?;
    let found = hub::checkpoint(&request.model)?;
    (request.model, request.model_name) = (found.path, found.name);
    hub::adapters(&mut request.adapters)?;
    let cache = args.cache.open()?;
    let (bar, start) = (Bar::new(), Instant::now());
    let outcome = score(
        &request,
        args.shard,
        cache.as_ref().map(|c| c as &dyn ScoreCache),
        &bar,
    )?;
    bar.finish();
    for warning in &outcome.warnings {
        warn(warning)?;
    }
    let ScoreOutcome {
        pass,
        samples,
        of,
        loss,
        ..
    } = outcome;
    note(&format!(
        "shard {} of {pass}: {samples} of {of} samples, loss {loss:.4} nats; scored in {:.1} s",
        args.shard,
        start.elapsed().as_secs_f64()
    ))?;
    destination::write(&[(&destination, outcome.file)])?;
    if !destination.is_stdout() {
        output.result(&args.output.display().to_string())?;
    }
    output.json(&json!({
        "output": args.output,
        "pass": pass,
        "shard": args.shard.to_string(),
        "shard_samples": samples,
        "samples": of,
        "loss": loss,
        "warnings": outcome.warnings,
    }))?;
    Ok(ExitCode::SUCCESS)
}

fn request(args: &Args) -> Result<CompileRequest> {
    let mut passes: Vec<PassSpec> = args
        .passes
        .iter()
        .map(|flag| parse_pass_flag(flag))
        .collect::<Result<_, _>>()?;
    if passes.is_empty() {
        passes.push(parse_pass_flag(DEFAULT_PASS)?);
    }
    let adapters = args.adapters.iter().map(|flag| parse_adapter_flag(flag));
    Ok(CompileRequest {
        adapters: adapters.collect::<Result<_, _>>()?,
        adapter_names: args.adapter_names.clone(),
        ignore_keys: args.keys.ignore_keys.clone(),
        passes,
        task: args.task,
        dtype: args.dtype.map(DType::from),
        allow_nan: args.allow_nan,
        threads: args.threads.unwrap_or_else(environment::cores),
        ..CompileRequest::new(&args.model, &args.output)
    })
}
