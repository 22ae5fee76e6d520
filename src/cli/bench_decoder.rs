//! `dlc bench` of a language model: plain against speculative decoding, by prompt and by task.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use dlc_ir::speculation::CostTable;
use serde::Deserialize;
use serde_json::{Value, json};

use super::backend::describe;
use super::bench::{Args, prompts};
use super::drafting::{measured_costs, store_costs};
use super::exit::{CHECK_FAILED, INTERRUPTED};
use super::models::Models;
use super::output::{Output, note};
use super::progress::{Bar, interruption};
use super::run::sourced;
use crate::report::{Table, speedup_plot};
use crate::runtime::{DecodeOptions, Equality, PromptMeasurement, Stats, TokenModel, calibrate, measure};

/// A prompt, and what it is a case of.
#[derive(Debug, Deserialize)]
struct Case {
    task: String,
    prompt: String,
}

/// What all prompts of a task took together.
#[derive(Debug, Clone, Default)]
struct Totals {
    task: String,
    plain: f64,
    speculative: f64,
    unequal: usize,
    ties: usize,
    stats: Stats,
}

impl Totals {
    fn of<'m>(task: &str, results: impl Iterator<Item = &'m PromptMeasurement>) -> Self {
        results.fold(Self { task: task.to_owned(), ..Self::default() }, |mut totals, result| {
            totals.plain += result.plain_seconds;
            totals.speculative += result.speculative_seconds;
            totals.unequal += usize::from(matches!(result.equality, Equality::Different { .. }));
            totals.ties += usize::from(matches!(result.equality, Equality::Tie { .. }));
            totals.stats.add(&result.stats);
            totals
        })
    }

    fn speedup(&self) -> f64 {
        self.plain / self.speculative
    }

    fn json(&self) -> Value {
        json!({
            "task": self.task, "speedup": self.speedup(), "predicted_speedup": self.stats.predicted_speedup(),
            "plain_seconds": self.plain, "speculative_seconds": self.speculative, "acceptance": self.stats.acceptance(),
            "tokens_per_round": self.stats.tokens_per_round(), "draft": sourced(&self.stats.draft), "lookup": sourced(&self.stats.lookup),
            "ties": self.ties, "different": self.unequal,
        })
    }
}

fn cases(args: &Args) -> Result<Vec<Case>> {
    if args.suite {
        let lines = include_str!("bench_suite.jsonl").lines();
        return lines.map(|line| serde_json::from_str(line).context("the built-in prompts")).collect();
    }
    Ok(prompts(args)?.into_iter().map(|prompt| Case { task: "prompts".into(), prompt }).collect())
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let output = Output::new(args.json);
    let mut models = Models::open(&args.bundle, &args.backend, Some(args.drafting.cache()))?;
    if models.draft.is_none() && args.drafting.looks_nothing_up() && !args.calibrate {
        bail!("the bundle has no draft, and --no-lookup leaves nothing to compare with; compile it with --pass fit-prune");
    }
    let backend = describe(&models.backend);
    let threads = args.backend.session().threads;
    note(&format!("running on {backend}"))?;
    if args.calibrate {
        let costs = costs(&mut models, 40)?;
        store_costs(&models.bundle, &backend, threads, &costs)?;
        output.result(&serde_yaml::to_string(&costs)?)?;
        output.json(&costs)?;
        return Ok(ExitCode::SUCCESS);
    }
    let cases = cases(args)?;
    let (costs, measured) = match measured_costs(&models.bundle, &backend, threads) {
        Some(costs) => (costs, "calibrated"),
        None => (costs(&mut models, 10)?, "measured in this run"),
    };
    let options = DecodeOptions { max_tokens: args.max_tokens as usize, cancel: Some(interruption()), ..DecodeOptions::default() };
    let options = args.drafting.apply(options, costs.clone());
    let Some(results) = decode(args, &mut models, &cases, &options)? else { return Ok(INTERRUPTED.into()) };
    let mut tasks: Vec<&str> = cases.iter().map(|case| case.task.as_str()).collect();
    tasks.dedup();
    let of = |task: &str| Totals::of(task, cases.iter().zip(&results).filter(|(case, _)| case.task == task).map(|pair| pair.1));
    let tasks: Vec<Totals> = tasks.into_iter().map(of).collect();
    let all = Totals::of("all", results.iter());
    show(output, &cases, &results, &tasks, &all, &costs, measured)?;
    if let Some(path) = &args.plot {
        let bars: Vec<(&str, f64, f64)> = tasks.iter().chain([&all]).map(|t| (t.task.as_str(), t.speedup(), t.stats.predicted_speedup())).collect();
        std::fs::write(path, speedup_plot(&bars)).with_context(|| format!("can't write the plot to {}", path.display()))?;
    }
    output.json(&report(&cases, &results, &tasks, &all, &costs, models.backend.kind().name()))?;
    Ok(if all.unequal > 0 { CHECK_FAILED.into() } else { ExitCode::SUCCESS })
}

/// What passes cost behind 128 tokens, or as many as the context takes.
fn costs(models: &mut Models, repeats: usize) -> Result<CostTable> {
    const PAST: usize = 128;
    let model = &models.bundle.manifest().model;
    let past = PAST.min(model.context_length / 2).max(1);
    let prompt: Vec<u32> = (0..past as u32).map(|i| (i * 7919) % model.vocab_size.max(1) as u32).collect();
    let draft = models.draft.as_mut().map(|draft| draft as &mut dyn TokenModel);
    Ok(calibrate(&mut models.target, draft, &prompt, repeats)?)
}

/// None if the user stopped it.
fn decode(args: &Args, models: &mut Models, cases: &[Case], options: &DecodeOptions) -> Result<Option<Vec<PromptMeasurement>>> {
    let bar = Bar::new();
    let mut results = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        dlc_passes::Progress::update(&bar, "decoding plainly and speculatively", i, cases.len());
        let prompt = models.tokenizer.encode(&case.prompt, true)?;
        let draft = models.draft.as_mut().map(|draft| draft as &mut dyn TokenModel);
        results.push(measure(&mut models.target, draft, &prompt, options, usize::from(args.repeats))?);
        if dlc_passes::Progress::interrupted(&bar) {
            return Ok(None);
        }
    }
    bar.finish();
    Ok(Some(results))
}

fn equality(equality: Equality) -> String {
    match equality {
        Equality::Equal => "equal".into(),
        Equality::Tie { at, gap } => format!("tie at token {at} (logits differ by {gap:.1e})"),
        Equality::Different { at, gap } => format!("DIFFERENT from token {at} on (logits differ by {gap:.1e})"),
    }
}

fn show(
    output: Output,
    cases: &[Case],
    results: &[PromptMeasurement],
    tasks: &[Totals],
    all: &Totals,
    costs: &CostTable,
    measured: &str,
) -> Result<()> {
    let mut table = Table::new(&["prompt", "tokens", "plain tok/s", "spec. tok/s", "speedup", "predicted", "accepted", "tok/round", "output"]);
    for (case, r) in cases.iter().zip(results) {
        let n = r.tokens.len() as f64;
        table.row([
            case.prompt.chars().map(|c| if c.is_control() { ' ' } else { c }).take(24).collect(),
            r.tokens.len().to_string(),
            format!("{:.1}", n / r.plain_seconds),
            format!("{:.1}", n / r.speculative_seconds),
            format!("{:.2}", r.plain_seconds / r.speculative_seconds),
            format!("{:.2}", r.stats.predicted_speedup()),
            format!("{:.0}%", 100.0 * r.stats.acceptance()),
            format!("{:.2}", r.stats.tokens_per_round()),
            equality(r.equality),
        ]);
    }
    output.result(&table.to_string())?;
    let mut table = Table::new(&["task", "speedup", "predicted", "tok/round", "draft accepted", "looked up, accepted"]);
    for totals in tasks.iter().chain([all]) {
        let share = |counts: crate::runtime::SourceStats| format!("{}/{}", counts.accepted, counts.tested);
        table.row([
            totals.task.clone(),
            format!("{:.2}", totals.speedup()),
            format!("{:.2}", totals.stats.predicted_speedup()),
            format!("{:.2}", totals.stats.tokens_per_round()),
            share(totals.stats.draft),
            share(totals.stats.lookup),
        ]);
    }
    output.result(&format!("\n{table}"))?;
    let passes: Vec<String> = costs.verify.iter().skip(1).map(|(k, v)| format!("v({k}) = {v:.2}")).collect();
    output.result(&format!(
        "speedup {:.2}x over plain decoding ({} tokens, {:.0}% accepted, {:.2} tokens a round), predicted {:.2}x\n\
         costs in target steps, {measured}: draft step c = {:.2}; {}",
        all.speedup(),
        all.stats.tokens,
        100.0 * all.stats.acceptance(),
        all.stats.tokens_per_round(),
        all.stats.predicted_speedup(),
        costs.draft,
        passes.join(", "),
    ))
}

fn report(cases: &[Case], results: &[PromptMeasurement], tasks: &[Totals], all: &Totals, costs: &CostTable, backend: &str) -> Value {
    let rows = cases.iter().zip(results).map(|(case, r)| {
        json!({
            "task": case.task, "prompt": case.prompt, "tokens": r.tokens.len(), "plain_seconds": r.plain_seconds,
            "speculative_seconds": r.speculative_seconds, "predicted_speedup": r.stats.predicted_speedup(), "acceptance": r.stats.acceptance(),
            "tokens_per_round": r.stats.tokens_per_round(), "output": equality(r.equality),
        })
    });
    let mut report = all.json();
    report["backend"] = json!(backend);
    report["costs"] = json!(costs);
    report["tasks"] = tasks.iter().map(Totals::json).collect();
    report["prompts"] = rows.collect();
    report
}
