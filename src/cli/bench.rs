//! `dlc bench`.

mod calibrate;
mod decoder;
mod diffusion;
mod encoder;

use std::path::PathBuf;
use std::process::ExitCode;

use dlc_ir::Task;

use self::diffusion::SideName;
use super::backend::BackendArgs;
use super::diffusion::SamplerArgs;
use super::drafting::DraftingArgs;
use super::failure::Result;
use super::flags::Given;
use super::input::Text;
use super::output::warn;
use super::{environment, open, prompts};

/// Measure a bundle: speed, acceptance, equality of the output, memory
///
/// Plain and speculative decoding run in alternation. An encoder's latency is measured, and the
/// pruned one's beside the whole one's. A diffusion model's time, memory and quality of the images
/// are measured likewise.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The bundle
    bundle: PathBuf,
    /// File of prompts (for an encoder, texts; for pipelines, of the images in turn), one a line, or
    /// .jsonl with `prompt` [default: built-in ones]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Tokens to write for each prompt
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Leave the model's `generation_config.json` alone
    #[arg(long)]
    no_generation_config: bool,
    #[command(flatten)]
    drafting: DraftingArgs,
    /// Decode once more, warm: with lookups in the prompts before and their texts too
    #[arg(long, conflicts_with = "no_lookup")]
    lookup_history: bool,
    /// Decode the built-in prompts of several tasks: code, chat, continuation, summary
    #[arg(long, conflicts_with = "prompts")]
    suite: bool,
    /// Measure what passes cost on this machine, keep it for later runs of this bundle, and print
    /// it
    #[arg(long, conflicts_with_all = ["prompts", "suite", "plot", "max_tokens", "no_generation_config", "repeats", "draft_tokens", "lookup", "no_lookup", "lookup_history", "draft_confidence"])]
    calibrate: bool,
    /// Draw the speedups by task; `-` is stdout
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Runs of each kind for each prompt; the median counts. Ten times as many for an encoder; for
    /// a diffusion model, runs of all images
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    repeats: u8,
    /// Lengths of the texts that an encoder reads, in tokens; longer ones than it takes are left
    /// out
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [16, 64, 128, 256], value_parser = length)]
    lengths: Vec<usize>,
    /// Images that a diffusion model makes, of its classes in turn
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    count: u16,
    /// Tells the classes of images apart: a .safetensors file of linear layers, `layers.N.weight`
    /// and `layers.N.bias`
    #[arg(long, value_name = "FILE")]
    classifier: Option<PathBuf>,
    /// What images should be like: a .safetensors file with `mean` and `covariance` of their
    /// numbers
    #[arg(long, value_name = "FILE")]
    statistics: Option<PathBuf>,
    /// Make one batch of images by one side alone, and print the most bytes of memory that this
    /// took: how bench measures memory
    #[arg(long, hide = true)]
    memory_of: Option<SideName>,
    #[command(flatten)]
    sampler: SamplerArgs,
    #[command(flatten)]
    backend: BackendArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

fn length(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|n| *n > 0)
        .ok_or_else(|| "it must be a number of tokens, 1 or more".into())
}

/// What kept the machine busy before anything is timed; warns where that is much.
pub(super) fn load_average() -> Result<Option<f64>> {
    let load = environment::load_average();
    if let Some(warning) = load.and_then(|load| environment::busy(load, environment::cores())) {
        warn(&warning)?;
    }
    Ok(load)
}

/// The prompts or texts asked for, else the built-in ones.
pub(super) fn prompts(args: &Args) -> Result<Vec<Text>> {
    let built_in = |line: &str| Text {
        content: line.to_owned(),
        place: "a built-in prompt".to_owned(),
    };
    match &args.prompts {
        Some(file) => prompts::read(file),
        None => Ok(include_str!("bench/prompts.txt")
            .lines()
            .map(built_in)
            .collect()),
    }
}

pub(super) fn run(args: &Args, given: &Given) -> Result<ExitCode> {
    let bundle = open::bundle(&args.bundle)?;
    given.check_bench(&bundle)?;
    match bundle.manifest().model.task {
        Task::TextGeneration => decoder::run(args),
        Task::ImageGeneration => diffusion::run(args, bundle),
        _ => encoder::run(args, bundle),
    }
}
