//! `dlc compare`.

mod report;
mod sides;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use dlc_ir::Task;

use self::sides::models;
use super::backend::BackendArgs;
use super::exit::CHECK_FAILED;
use super::failure::{Result, bail};
use super::open::KeyArgs;
use super::output::{Output, note};
use super::progress::Bar;
use super::{input, prompts};
use crate::pipeline::{Comparison, HELD_BACK, Outcome, Reading, compare_models};

/// Measure how much model B differs from model A
///
/// Decoders and encoders that choose: the KL divergence of B from A, how often both find the same
/// answer the likeliest, and the perplexity of decoders. Other encoders: the angle between their
/// vectors. Denoisers: the error of the prediction. Bundles run on the backend, checkpoints on the
/// evaluator.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dlc compare org/model out/
  dlc compare f32/ int4/ --max-kl 0.05
  dlc compare out/ out/ --graph draft")]
pub(super) struct Args {
    /// The reference: a checkpoint (also `ORG/NAME` of the Hub) or a bundle
    a: PathBuf,
    /// What is judged by it: a checkpoint or a bundle
    b: PathBuf,
    /// The graph of bundle B to judge, such as `draft` or `pruned`; of A it is the target
    #[arg(long, value_name = "NAME", default_value = TARGET)]
    graph: String,
    /// File of text to read, or .jsonl with `prompt` or `text` a line; for an encoder, texts, one a
    /// line; - for stdin [default: a built-in text that no pass calibrates with]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens of a piece of text that is read by itself; longer texts are cut into such
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..))]
    length: u32,
    /// Tokens of all texts to read
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(2..))]
    max_tokens: u32,
    /// Exit with 1 if the mean KL divergence is above this, in nats
    #[arg(long, value_name = "X", value_parser = divergence, allow_negative_numbers = true)]
    max_kl: Option<f64>,
    #[command(flatten)]
    keys: KeyArgs,
    #[command(flatten)]
    backend: BackendArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

const TARGET: &str = "target";

fn divergence(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|x| *x >= 0.0)
        .ok_or_else(|| "it must be a number of nats, 0 or more".into())
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let output = Output::new(args.json);
    let [a, b] = models(args)?;
    let task = a.module.model.task;
    let reading = reading(args, task)?;
    let session = args.backend.session();
    let backend = if a.bundle.is_some() || b.bundle.is_some() {
        Some(args.backend.start()?)
    } else {
        None
    };
    let sides = [
        a.side(TARGET, backend.as_ref(), &session)?,
        b.side(&args.graph, backend.as_ref(), &session)?,
    ];
    for (side, name) in sides.iter().zip(["A", "B"]) {
        let by = report::computed_by(side);
        note(&format!("{name}: {}, computed by {by}", side.name))?;
    }
    let bar = Bar::new();
    let comparison = compare_models(&sides[0], &sides[1], &reading, &bar)?;
    bar.finish();
    if args.max_kl.is_some() && !matches!(comparison.outcome, Outcome::Distributions(_)) {
        bail!(
            "--max-kl is for models that choose among tokens or classes, and these are for {}; leave it out",
            task.name()
        );
    }
    output.result(&report::text(&sides, &comparison))?;
    output.json(&report::json(&sides, task, &comparison))?;
    Ok(if passes(args, &comparison) {
        ExitCode::SUCCESS
    } else {
        CHECK_FAILED.into()
    })
}

/// Whether the divergence is one that is allowed.
fn passes(args: &Args, comparison: &Comparison) -> bool {
    match (&comparison.outcome, args.max_kl) {
        (Outcome::Distributions(divergence), Some(most)) => divergence.mean_kl() <= most,
        _ => true,
    }
}

/// What models for `task` read.
fn reading(args: &Args, task: Task) -> Result<Reading> {
    if task == Task::ImageGeneration && args.text.is_some() {
        bail!("--text is for models that read texts, and these make images; leave it out");
    }
    Ok(Reading {
        texts: match &args.text {
            Some(file) => texts(file, task)?,
            None => HELD_BACK.split("\n\n").map(str::to_owned).collect(),
        },
        length: args.length as usize,
        most_tokens: args.max_tokens as usize,
    })
}

/// The texts in a file: for a decoder a plain file is one.
fn texts(file: &Path, task: Task) -> Result<Vec<String>> {
    let lines = file.extension().is_some_and(|e| e == "jsonl");
    if task == Task::TextGeneration && !lines {
        return Ok(vec![input::text(file)?.content]);
    }
    let texts = prompts::read(file)?.into_iter();
    Ok(texts.map(|text| text.content).collect())
}
