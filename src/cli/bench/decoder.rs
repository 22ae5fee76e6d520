//! `dlc bench` of a language model: plain against speculative decoding, by prompt and by task.

use std::process::ExitCode;

use dlc_methods::speculation::{
    CostTable, DecodeOptions, SourceStats, Stats, SuffixIndex, TokenModel,
};
use dlc_runtime::{Equality, PromptMeasurement, measure, measure_after};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Args, load_average, prompts};
use crate::cli::backend::describe;
use crate::cli::destination::{self, Destination, check_stdout};
use crate::cli::drafting::{HISTORY, measure_costs, measured_costs};
use crate::cli::exit::{CHECK_FAILED, INTERRUPTED};
use crate::cli::failure::{Context, Failure, Result, bail};
use crate::cli::generation::GenerationArgs;
use crate::cli::models::{Models, Wishes};
use crate::cli::output::{Output, note};
use crate::cli::phases;
use crate::cli::progress::Bar;
use crate::cli::signals::interruption;
use crate::cli::write::sourced;
use crate::report::{Table, ranged, speedup_plot};

/// A prompt, and what it is a case of.
#[derive(Debug, Deserialize)]
struct Case {
    task: String,
    prompt: String,
    /// Where the prompt is from, if that isn't here.
    #[serde(skip)]
    place: Option<String>,
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
        results.fold(
            Self {
                task: task.to_owned(),
                ..Self::default()
            },
            |mut totals, result| {
                totals.plain += result.plain_seconds;
                totals.speculative += result.speculative_seconds;
                totals.unequal +=
                    usize::from(matches!(result.equality, Equality::Different { .. }));
                totals.ties += usize::from(matches!(result.equality, Equality::Tie { .. }));
                totals.stats.add(&result.stats);
                totals
            },
        )
    }

    fn speedup(&self) -> f64 {
        self.plain / self.speculative
    }

    fn json(&self) -> Value {
        json!({
            "task": self.task, "speedup": self.speedup(), "predicted_speedup": self.stats.predicted_speedup(),
            "plain_seconds": self.plain, "speculative_seconds": self.speculative, "acceptance": self.stats.acceptance(),
            "tokens_per_round": self.stats.tokens_per_round(), "draft": sourced(&self.stats.draft), "lookup": sourced(&self.stats.lookup),
            "tree_gain": {"at_most": self.stats.tree_gain_at_most(), "expected": self.stats.tree_gain_expected()},
            "ties": self.ties, "different": self.unequal,
        })
    }
}

fn cases(args: &Args) -> Result<Vec<Case>> {
    if args.suite {
        let lines = include_str!("suite.jsonl").lines();
        return lines
            .map(|line| serde_json::from_str(line).map_err(Failure::bug))
            .collect();
    }
    Ok(prompts(args)?
        .into_iter()
        .map(|prompt| Case {
            task: "prompts".into(),
            prompt: prompt.content,
            place: Some(prompt.place),
        })
        .collect())
}

/// What was measured, and on what.
#[derive(Debug)]
struct Comparison<'r> {
    cases: &'r [Case],
    /// One for each case.
    results: &'r [PromptMeasurement],
    tasks: Vec<Totals>,
    all: Totals,
    costs: CostTable,
    /// Where the costs come from.
    measured: &'static str,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let output = Output::new(args.json);
    let plot = args
        .plot
        .as_deref()
        .map(|path| Destination::check(path, &["svg"]))
        .transpose()?;
    check_stdout(&plot.iter().collect::<Vec<_>>(), args.json)?;
    let wishes = Wishes {
        guesses: true,
        ..args.drafting.wishes(true)
    };
    let mut models = Models::open(&args.bundle, &args.backend, wishes)?;
    if models.draft.is_none() && args.drafting.looks_nothing_up() && !args.calibrate {
        bail!(
            "the bundle has no draft, and --no-lookup leaves nothing to compare with; compile it with --pass fit-prune"
        );
    }
    let backend = describe(&models.backend);
    let threads = args.backend.session().threads;
    note(&format!("running on {backend}"))?;
    let load = load_average()?;
    if args.calibrate {
        return super::calibrate::run(args, &mut models);
    }
    let cases = cases(args)?;
    let (costs, measured) = if let Some(costs) = measured_costs(&models.bundle, &backend, threads) {
        (costs, "calibrated")
    } else {
        phases::begin("timing passes");
        (measure_costs(&mut models, 10)?, "measured in this run")
    };
    let options = GenerationArgs::file_alone(args.no_generation_config)
        .rules(&models.bundle)?
        .options;
    let options = DecodeOptions {
        max_tokens: args.max_tokens as usize,
        max_length: None,
        // All texts are of one length.
        stop_tokens: Vec::new(),
        cancel: Some(interruption()),
        ..options
    };
    let options = args.drafting.apply(options, &models, costs.clone());
    let Some(results) = decode(args, &mut models, &cases, &options)? else {
        return Ok(INTERRUPTED.into());
    };
    let compared = |results| Comparison::new(&cases, results, costs.clone(), measured);
    let cold = compared(results.cold.as_slice());
    let warm = results.warm.as_deref().map(compared);
    let text = match &warm {
        Some(warm) => format!(
            "{}\n\nwarm: lookups in earlier prompts and their texts too\n{}",
            cold.text(),
            warm.text()
        ),
        None => cold.text(),
    };
    match &plot {
        Some(Destination::Stdout) => note(&text)?,
        _ => output.result(&text)?,
    }
    if let Some(plot) = &plot {
        destination::write(&[(plot, cold.plot().into_bytes())])?;
    }
    let backend = models.backend.kind().name();
    let mut report = cold.json(backend, load);
    if let Some(warm) = &warm {
        report["warm"] = warm.json(backend, load);
    }
    output.json(&report)?;
    let unequal = cold.all.unequal + warm.map_or(0, |warm| warm.all.unequal);
    Ok(if unequal > 0 {
        CHECK_FAILED.into()
    } else {
        ExitCode::SUCCESS
    })
}

/// What decoding took, one for each case.
struct Results {
    /// With lookups in the text alone.
    cold: Vec<PromptMeasurement>,
    /// With lookups in the cases before too, if that was asked for.
    warm: Option<Vec<PromptMeasurement>>,
}

/// None if the user stopped it.
fn decode(
    args: &Args,
    models: &mut Models,
    cases: &[Case],
    options: &DecodeOptions,
) -> Result<Option<Results>> {
    let bar = Bar::new();
    phases::begin("decoding plainly and speculatively");
    let (mut cold, mut warm) = (Vec::new(), args.lookup_history.then(Vec::new));
    let (alone, mut history) = (SuffixIndex::default(), SuffixIndex::new(HISTORY));
    let repeats = usize::from(args.repeats);
    for (i, case) in cases.iter().enumerate() {
        dlc_passes::Progress::update(&bar, "decoding plainly and speculatively", i, cases.len());
        let place = || case.place.clone().unwrap_or_else(|| case.task.clone());
        let prompt = models
            .tokenizer
            .encode(&case.prompt, true)
            .with_context(place)?;
        let draft = models
            .draft
            .as_mut()
            .map(|draft| draft as &mut dyn TokenModel);
        let target = &mut models.target;
        if let Some(warm) = &mut warm {
            let histories = [&alone, &history];
            let measured = measure_after(target, draft, &prompt, options, histories, repeats);
            let [without, with] = measured.with_context(place)?;
            history.begin(&prompt);
            history.extend(&with.tokens);
            cold.push(without);
            warm.push(with);
        } else {
            let measured = measure(target, draft, &prompt, options, repeats);
            cold.push(measured.with_context(place)?);
        }
        if dlc_passes::Progress::interrupted(&bar) {
            return Ok(None);
        }
    }
    bar.finish();
    Ok(Some(Results { cold, warm }))
}

fn equality(equality: Equality) -> String {
    match equality {
        Equality::Equal => "equal".into(),
        Equality::Tie { at, gap } => format!("tie at token {at} (logits differ by {gap:.1e})"),
        Equality::Different { at, gap } => {
            format!("DIFFERENT from token {at} on (logits differ by {gap:.1e})")
        }
    }
}

impl<'r> Comparison<'r> {
    fn new(
        cases: &'r [Case],
        results: &'r [PromptMeasurement],
        costs: CostTable,
        measured: &'static str,
    ) -> Self {
        let mut names: Vec<&str> = cases.iter().map(|case| case.task.as_str()).collect();
        names.dedup();
        let of = |task: &str| {
            Totals::of(
                task,
                cases
                    .iter()
                    .zip(results)
                    .filter(|(case, _)| case.task == task)
                    .map(|pair| pair.1),
            )
        };
        let tasks = names.into_iter().map(of).collect();
        Self {
            cases,
            results,
            tasks,
            all: Totals::of("all", results.iter()),
            costs,
            measured,
        }
    }

    /// The totals of every task, and those of all.
    fn totals(&self) -> impl Iterator<Item = &Totals> {
        self.tasks.iter().chain([&self.all])
    }

    fn text(&self) -> String {
        format!(
            "{}\n{}{}",
            self.prompts_table(),
            self.tasks_table(),
            self.summary()
        )
    }

    fn prompts_table(&self) -> Table {
        let mut table = Table::new(&[
            "prompt",
            "tokens",
            "plain tok/s",
            "spec. tok/s",
            "speedup",
            "spread",
            "predicted",
            "accepted",
            "tok/round",
            "output",
        ]);
        for (case, r) in self.cases.iter().zip(self.results) {
            let n = r.tokens.len() as f64;
            table.row([
                case.prompt
                    .chars()
                    .map(|c| if c.is_control() { ' ' } else { c })
                    .take(24)
                    .collect(),
                r.tokens.len().to_string(),
                format!("{:.1}", n / r.plain_seconds),
                format!("{:.1}", n / r.speculative_seconds),
                format!("{:.2}", r.plain_seconds / r.speculative_seconds),
                ranged(r.speedup_range(), 2),
                format!("{:.2}", r.stats.predicted_speedup()),
                format!("{:.0}%", 100.0 * r.stats.acceptance()),
                format!("{:.2}", r.stats.tokens_per_round()),
                equality(r.equality),
            ]);
        }
        table
    }

    fn tasks_table(&self) -> Table {
        let share = |counts: SourceStats| format!("{}/{}", counts.accepted, counts.tested);
        let mut table = Table::new(&[
            "task",
            "speedup",
            "predicted",
            "tok/round",
            "draft accepted",
            "looked up, accepted",
        ]);
        for totals in self.totals() {
            table.row([
                totals.task.clone(),
                format!("{:.2}", totals.speedup()),
                format!("{:.2}", totals.stats.predicted_speedup()),
                format!("{:.2}", totals.stats.tokens_per_round()),
                share(totals.stats.draft),
                share(totals.stats.lookup),
            ]);
        }
        table
    }

    fn summary(&self) -> String {
        let Totals { stats, .. } = &self.all;
        let passes: Vec<String> = self
            .costs
            .verify
            .iter()
            .skip(1)
            .map(|(k, v)| format!("v({k}) = {v:.2}"))
            .collect();
        let mut lines = format!(
            "speedup {:.2}x over plain decoding ({} tokens, {:.0}% accepted, {:.2} tokens a round), predicted {:.2}x\n\
             costs in target steps, {}: draft step c = {:.2}; {}",
            self.all.speedup(),
            stats.tokens,
            100.0 * stats.acceptance(),
            stats.tokens_per_round(),
            stats.predicted_speedup(),
            self.measured,
            self.costs.draft,
            passes.join(", "),
        );
        if stats.draft.tested > 0 {
            let (hits, rejected, most) = (
                stats.draft.runner_up,
                stats.draft.tested - stats.draft.accepted,
                stats.tree_gain_at_most(),
            );
            lines += &format!(
                "\nthe draft's second choice was right at {hits} of {rejected} rejections: judging it too would make {most:.2}x of the speed at most"
            );
        }
        lines
    }

    fn plot(&self) -> String {
        let bars: Vec<(&str, f64, f64)> = self
            .totals()
            .map(|t| (t.task.as_str(), t.speedup(), t.stats.predicted_speedup()))
            .collect();
        speedup_plot(&bars)
    }

    fn json(&self, backend: &str, load: Option<f64>) -> Value {
        let rows = self.cases.iter().zip(self.results).map(|(case, r)| {
            json!({
                "task": case.task, "prompt": case.prompt, "tokens": r.tokens.len(), "plain_seconds": r.plain_seconds,
                "speculative_seconds": r.speculative_seconds, "plain_range": r.plain_range, "speculative_range": r.speculative_range,
                "speedup_range": r.speedup_range(), "predicted_speedup": r.stats.predicted_speedup(), "acceptance": r.stats.acceptance(),
                "tokens_per_round": r.stats.tokens_per_round(), "output": equality(r.equality),
            })
        });
        let mut report = self.all.json();
        report["backend"] = json!(backend);
        report["load_average"] = json!(load);
        report["costs"] = json!(self.costs);
        report["tasks"] = self.tasks.iter().map(Totals::json).collect();
        report["prompts"] = rows.collect();
        report
    }
}
