//! `dlc bench`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use dlc_ir::Task;
use serde_json::json;

use super::backend::{BackendArgs, describe};
use super::diffusion::SamplerArgs;
use super::exit::CHECK_FAILED;
use super::models::Models;
use super::output::{Output, note};
use super::progress::{Bar, interruption};
use super::{bench_diffusion, bench_encoder, open, prompts};
use crate::report::Table;
use crate::runtime::{DecodeOptions, Equality, PromptMeasurement, StepCosts, best_gamma, measure, predicted_speedup, step_costs};

/// Measure plain against speculative decoding, in alternation in one run, with acceptance and equality of the output; of an encoder the
/// latency, and the pruned one beside the whole; of a diffusion model, time and quality of the images, likewise
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The bundle
    bundle: PathBuf,
    /// File of prompts (for an encoder, texts), one a line, or .jsonl with `prompt` [default: 8 built-in ones]
    #[arg(long, value_name = "FILE")]
    pub(super) prompts: Option<PathBuf>,
    /// Tokens to write for each prompt
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Tokens that the draft proposes per round
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    gamma: u8,
    /// Runs of each kind for each prompt; the median counts. Ten times as many for an encoder; for a diffusion model, runs of all images
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    pub(super) repeats: u8,
    /// Lengths of the texts that an encoder reads, in tokens; longer ones than it takes are left out
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [16, 64, 128, 256], value_parser = length)]
    pub(super) lengths: Vec<usize>,
    /// Images that a diffusion model makes, of its classes in turn
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) count: u16,
    /// Tells the classes of images apart: a .safetensors file of linear layers, `layers.N.weight` and `layers.N.bias`
    #[arg(long, value_name = "FILE")]
    pub(super) classifier: Option<PathBuf>,
    /// What images should be like: a .safetensors file with `mean` and `covariance` of their numbers
    #[arg(long, value_name = "FILE")]
    pub(super) statistics: Option<PathBuf>,
    #[command(flatten)]
    pub(super) sampler: SamplerArgs,
    #[command(flatten)]
    pub(super) backend: BackendArgs,
    /// Print the result as JSON
    #[arg(long)]
    pub(super) json: bool,
}

fn length(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "it must be a number of tokens, 1 or more".into())
}

/// The prompts or texts asked for, else the built-in ones.
pub(super) fn prompts(args: &Args) -> Result<Vec<String>> {
    match &args.prompts {
        Some(file) => prompts::read(file),
        None => Ok(include_str!("bench_prompts.txt").lines().map(str::to_owned).collect()),
    }
}

/// All prompts together.
struct Totals {
    plain: f64,
    speculative: f64,
    tokens: usize,
    acceptance: f64,
    tokens_per_round: f64,
    speedup: f64,
    predicted: f64,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let output = Output::new(args.json);
    let bundle = open::bundle(&args.bundle)?;
    match bundle.manifest().model.task {
        Task::TextGeneration => {}
        Task::ImageGeneration => return bench_diffusion::run(args, bundle),
        _ => return bench_encoder::run(args, bundle),
    }
    let prompts = prompts(args)?;
    let mut models = Models::open(&args.bundle, &args.backend, true)?;
    let gamma = usize::from(args.gamma);
    let options = DecodeOptions { max_tokens: args.max_tokens as usize, gamma, cancel: Some(interruption()), ..DecodeOptions::default() };
    let tokens = prompts.iter().map(|p| models.tokenizer.encode(p, true)).collect::<crate::runtime::Result<Vec<_>>>()?;
    let target = &mut models.target;
    let Some(draft) = &mut models.draft else { bail!("the bundle has no draft to compare with; compile it with --pass fit-prune") };
    note(&format!("running on {}", describe(&models.backend)))?;
    let bar = Bar::new();
    let mut results = Vec::new();
    for (i, prompt) in tokens.iter().enumerate() {
        dlc_passes::Progress::update(&bar, "decoding plainly and speculatively", i, tokens.len());
        results.push(measure(target, draft, prompt, &options, usize::from(args.repeats))?);
        if dlc_passes::Progress::interrupted(&bar) {
            return Ok(super::exit::INTERRUPTED.into());
        }
    }
    let longest = tokens.iter().max_by_key(|t| t.len()).map(Vec::as_slice).unwrap_or_default();
    let costs = step_costs(target, draft, longest, gamma, 20)?;
    bar.finish();
    let totals = totals(&results, costs, gamma);
    show(output, &prompts, &results, costs, gamma, &totals)?;
    let unequal = results.iter().filter(|r| matches!(r.equality, Equality::Different { .. })).count();
    output.json(&json_report(&prompts, &results, costs, gamma, &totals, models.backend.kind().name()))?;
    Ok(if unequal > 0 { CHECK_FAILED.into() } else { ExitCode::SUCCESS })
}

fn totals(results: &[PromptMeasurement], costs: StepCosts, gamma: usize) -> Totals {
    let mut stats = crate::runtime::Stats::default();
    for result in results {
        stats.add(&result.stats);
    }
    let plain: f64 = results.iter().map(|r| r.plain_seconds).sum();
    let speculative: f64 = results.iter().map(|r| r.speculative_seconds).sum();
    Totals {
        plain,
        speculative,
        tokens: results.iter().map(|r| r.tokens.len()).sum(),
        acceptance: stats.acceptance(),
        tokens_per_round: stats.tokens_per_round(),
        speedup: plain / speculative,
        predicted: predicted_speedup(stats.acceptance(), gamma, costs.draft, costs.verify),
    }
}

fn equality(equality: Equality) -> String {
    match equality {
        Equality::Equal => "equal".into(),
        Equality::Tie { at, gap } => format!("tie at token {at} (logits differ by {gap:.1e})"),
        Equality::Different { at, gap } => format!("DIFFERENT from token {at} on (logits differ by {gap:.1e})"),
    }
}

fn show(output: Output, prompts: &[String], results: &[PromptMeasurement], costs: StepCosts, gamma: usize, totals: &Totals) -> Result<()> {
    let mut table = Table::new(&["prompt", "tokens", "plain tok/s", "spec. tok/s", "speedup", "accepted", "tok/round", "output"]);
    for (prompt, r) in prompts.iter().zip(results) {
        let n = r.tokens.len() as f64;
        table.row([
            prompt.chars().take(24).collect(),
            r.tokens.len().to_string(),
            format!("{:.1}", n / r.plain_seconds),
            format!("{:.1}", n / r.speculative_seconds),
            format!("{:.2}", r.plain_seconds / r.speculative_seconds),
            format!("{:.0}%", 100.0 * r.stats.acceptance()),
            format!("{:.2}", r.stats.tokens_per_round()),
            equality(r.equality),
        ]);
    }
    output.result(&table.to_string())?;
    let (best, best_speedup) = best_gamma(totals.acceptance, costs.draft, |k| 1.0 + (costs.verify - 1.0) * (k - 1) as f64 / gamma as f64, 8);
    output.result(&format!(
        "speedup {:.2}x over plain decoding ({} tokens, {:.0}% accepted, {:.2} tokens a round)\n\
         draft step c = {:.2} target steps, verification v({}) = {:.2}: predicted {:.2}x; best draft length {best} ({best_speedup:.2}x predicted)",
        totals.speedup,
        totals.tokens,
        100.0 * totals.acceptance,
        totals.tokens_per_round,
        costs.draft,
        gamma + 1,
        costs.verify,
        totals.predicted,
    ))
}

fn json_report(
    prompts: &[String],
    results: &[PromptMeasurement],
    costs: StepCosts,
    gamma: usize,
    totals: &Totals,
    backend: &str,
) -> serde_json::Value {
    let rows = prompts.iter().zip(results).map(|(prompt, r)| {
        json!({
            "prompt": prompt, "tokens": r.tokens.len(), "plain_seconds": r.plain_seconds, "speculative_seconds": r.speculative_seconds,
            "acceptance": r.stats.acceptance(), "tokens_per_round": r.stats.tokens_per_round(), "output": equality(r.equality),
        })
    });
    json!({
        "backend": backend, "gamma": gamma, "speedup": totals.speedup, "predicted_speedup": totals.predicted, "acceptance": totals.acceptance,
        "tokens_per_round": totals.tokens_per_round, "plain_seconds": totals.plain, "speculative_seconds": totals.speculative,
        "draft_step": costs.draft, "verify_pass": costs.verify, "prompts": rows.collect::<Vec<_>>(),
    })
}
