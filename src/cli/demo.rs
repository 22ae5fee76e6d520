//! `dlc demo`: the whole chain on a small trained checkpoint.

mod embedded;
mod images;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use dlc_bundle::Profile;
use dlc_methods::speculation::{CostTable, DecodeOptions, SourceStats, TokenModel};
use dlc_passes::ScoreCache;
use dlc_runtime::{Backend, BackendKind, Bundle, Equality, PromptMeasurement, measure};

use super::backend::{BackendArgs, describe};
use super::destination::Destination;
use super::drafting::{DraftingArgs, measure_costs};
use super::environment;
use super::exit::{CHECK_FAILED, INTERRUPTED};
use super::failure::{Context, Result};
use super::generation::GenerationArgs;
use super::models::Models;
use super::output::Output;
use super::progress::Bar;
use super::signals::interruption;
use crate::pipeline::{
    Check, CompileRequest, compile, module_of_bundle, parse_pass_flag, verify_bundle,
};
use crate::report::{checks_table, pass_summary};

/// Compile, verify and decode a small trained model
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    of: Option<Demo>,
    /// Another checkpoint than the small one that comes with dlc
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Text to continue
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "And it came to pass in those days, that"
    )]
    prompt: String,
    /// Layers to drop for the draft
    #[arg(long, value_name = "N", default_value_t = 6)]
    drop: usize,
    /// Most tokens to write
    #[arg(long, value_name = "N", default_value_t = 96)]
    max_tokens: usize,
    /// Keep the bundle in this folder [default: it is removed at the end]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    #[command(flatten)]
    drafting: DraftingArgs,
    #[command(flatten)]
    backend: BackendArgs,
}

/// Another demo than that of text.
#[derive(Debug, clap::Subcommand)]
enum Demo {
    Images(images::Args),
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    if let Some(Demo::Images(args)) = &args.of {
        return images::run(args);
    }
    let output = Output::new(false);
    args.output
        .as_deref()
        .map_or(Ok(()), Destination::check_folder)?;
    let backend = args.backend.start()?;
    let temporary = environment::scratch("demo")
        .context("can't make a temporary folder; name another by the variable TMPDIR")?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => embedded::TEXT.unpack(temporary.path())?,
    };
    let bundle = args
        .output
        .clone()
        .unwrap_or_else(|| temporary.path().join("bundle"));
    compile_bundle(args, output, &backend, &model, &bundle)?;
    let opened = Bundle::open(&bundle)?;
    let checks = verify(args, output, &backend, &opened)?;
    if interruption().load(Ordering::SeqCst) {
        return Ok(INTERRUPTED.into());
    }
    output.result(&format!(
        "\n3. decode {:?}, plainly and speculatively\n",
        args.prompt
    ))?;
    let mut models = Models::of(opened, &args.backend, args.drafting.wishes(true))?;
    let Some(equality) = plainly_and_speculatively(args, output, &mut models)? else {
        return Ok(INTERRUPTED.into());
    };
    let passed =
        checks.iter().all(Check::passed) && !matches!(equality, Equality::Different { .. });
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        CHECK_FAILED.into()
    })
}

fn compile_bundle(
    args: &Args,
    output: Output,
    backend: &Backend,
    model: &Path,
    bundle: &Path,
) -> Result<()> {
    let profile = profile(backend);
    output.result(&format!(
        "1. compile {} with fit-prune, profile {}\n",
        args.model.as_ref().map_or_else(
            || embedded::TEXT.name.to_owned(),
            |model| model.display().to_string()
        ),
        profile.name()
    ))?;
    let request = CompileRequest {
        passes: vec![parse_pass_flag(&format!("fit-prune:drop={}", args.drop))?],
        profile,
        force: true,
        backend: args.backend.search(),
        threads: environment::cores(),
        ..CompileRequest::new(model, bundle)
    };
    let bar = Bar::new();
    let outcome = compile(&request, None::<&dyn ScoreCache>, &bar)?;
    bar.finish();
    for run in outcome.runs.iter().filter(|r| r.report.scores.is_some()) {
        output.result(&pass_summary(run))?;
        let text = run
            .report
            .diff
            .as_ref()
            .map(|d| d.text.as_str())
            .unwrap_or_default();
        output.result(&format!("\n{}", excerpt(text)))?;
    }
    Ok(())
}

fn verify(args: &Args, output: Output, backend: &Backend, bundle: &Bundle) -> Result<Vec<Check>> {
    output.result(&format!(
        "2. verify every graph against the evaluator, on {}\n",
        describe(backend)
    ))?;
    let module = module_of_bundle(bundle)?;
    let checks = verify_bundle(bundle, &module, backend, &args.backend.session(), None)?;
    output.result(&checks_table(&checks).to_string())?;
    Ok(checks)
}

/// The profile that the backend runs fastest.
fn profile(backend: &Backend) -> Profile {
    if backend.kind() == BackendKind::OnnxRuntime {
        Profile::Ort
    } else {
        Profile::Onnx
    }
}

/// The beginning of a long diff.
fn excerpt(text: &str) -> String {
    const LINES: usize = 12;
    let lines: Vec<String> = text
        .lines()
        .take(LINES)
        .map(|l| l.chars().take(118).collect())
        .collect();
    let rest = text.lines().count().saturating_sub(LINES);
    format!(
        "{}\n... {rest} more lines; keep the bundle with -o DIR, and `dlc diff DIR` shows them all\n\n",
        lines.join("\n")
    )
}

/// Runs of each kind; the median counts.
const REPEATS: usize = 5;

/// None if the user stopped it.
fn plainly_and_speculatively(
    args: &Args,
    output: Output,
    models: &mut Models,
) -> Result<Option<Equality>> {
    let costs = measure_costs(models, 2 * REPEATS)?;
    let rules = GenerationArgs::file_alone(false).rules(&models.bundle)?;
    let options = DecodeOptions {
        max_tokens: args.max_tokens,
        max_length: None,
        cancel: Some(interruption()),
        ..rules.options
    };
    let options = args.drafting.apply(options, models, costs.clone());
    let prompt = models.tokenizer.encode(&args.prompt, true)?;
    let draft = models
        .draft
        .as_mut()
        .map(|draft| draft as &mut dyn TokenModel);
    let measured = measure(&mut models.target, draft, &prompt, &options, REPEATS)?;
    if interruption().load(Ordering::SeqCst) {
        return Ok(None);
    }
    output.result(&format!(
        "{}{}\n",
        args.prompt,
        models.tokenizer.decode(&measured.tokens)?
    ))?;
    output.result(&speeds(&measured, &costs))?;
    output.result(&match measured.equality {
        Equality::Equal => format!(
            "output       equal, token for token ({} tokens)",
            measured.tokens.len()
        ),
        Equality::Tie { at, gap } => {
            format!("output       equal up to a tie at token {at}: two logits differ by {gap:.1e}")
        }
        Equality::Different { at, gap } => format!(
            "output       DIFFERENT from token {at} on (logits differ by {gap:.1e}): this is a bug"
        ),
    })?;
    Ok(Some(measured.equality))
}

/// How fast both ways were, and what each source of proposals did for it.
fn speeds(measured: &PromptMeasurement, costs: &CostTable) -> String {
    let (stats, n) = (measured.stats, measured.tokens.len() as f64);
    let step = format!("a step costs {:.2} of a target step", costs.draft);
    format!(
        "plain        {:>6.0} tokens/s\nspeculative  {:>6.0} tokens/s, {:.2} tokens a round\n  draft      {}; {step}\n  lookup     {}\nspeedup      {:>6.2}x",
        n / measured.plain_seconds,
        n / measured.speculative_seconds,
        stats.tokens_per_round(),
        contribution(&stats.draft, stats.rounds),
        contribution(&stats.lookup, stats.rounds),
        measured.plain_seconds / measured.speculative_seconds,
    )
}

fn contribution(counts: &SourceStats, rounds: usize) -> String {
    match counts.rounds {
        0 => format!("proposed in none of {rounds} rounds"),
        n => format!(
            "proposed in {n} of {rounds} rounds, {:.0}% of {} judged tokens accepted",
            100.0 * counts.acceptance(),
            counts.tested
        ),
    }
}
