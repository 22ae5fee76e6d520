//! `dlc bench` with an encoder: latency by length, and the pruned encoder beside the whole one.

use std::process::ExitCode;

use dlc_ir::{Similarity, Task};
use dlc_runtime::{
    Bundle, EncoderSession, Rows, Timing, choices, latencies, sentence_vector, similarity,
};
use serde_json::{Value, json};

use super::{Args, load_average, prompts};
use crate::cli::backend::describe;
use crate::cli::failure::{Context, Result, bail};
use crate::cli::input::Text;
use crate::cli::models::EncoderModel;
use crate::cli::output::{Output, note};
use crate::cli::phases;
use crate::cli::progress::Bar;
use crate::report::{Table, ranged};

/// Runs for one of `--repeats`: an encoder's run is short.
const RUNS: usize = 10;

/// What one text of so many tokens takes.
struct Latency {
    tokens: usize,
    target: Timing,
    pruned: Option<Timing>,
}

pub(super) fn run(args: &Args, bundle: Bundle) -> Result<ExitCode> {
    let output = Output::new(args.json);
    let has_pruned = bundle.graph("pruned").is_ok();
    let texts = prompts(args)?;
    let mut model = EncoderModel::open(bundle, &args.backend, "target")?;
    let mut pruned = if has_pruned {
        Some(model.another(&args.backend, "pruned")?)
    } else {
        None
    };
    note(&format!("running on {}", describe(&model.backend)))?;
    let load = load_average()?;
    let bar = Bar::new();
    phases::begin("timing texts");
    let mut measured = Vec::new();
    let most = model.session.context_length();
    let lengths: Vec<usize> = args
        .lengths
        .iter()
        .copied()
        .filter(|n| *n <= most)
        .collect();
    if lengths.is_empty() {
        bail!("the encoder takes {most} tokens, and all --lengths are longer; give shorter ones");
    }
    for (i, &tokens) in lengths.iter().enumerate() {
        dlc_passes::Progress::update(&bar, "encoding", i, lengths.len());
        let mut sessions: Vec<&mut EncoderSession> = [&mut model.session]
            .into_iter()
            .chain(pruned.as_mut())
            .collect();
        let vocab = model.bundle.manifest().model.vocab_size;
        let mut timings = latencies(
            &mut sessions,
            tokens,
            vocab,
            RUNS * usize::from(args.repeats),
        )?
        .into_iter();
        measured.push(Latency {
            tokens,
            target: timings.next().unwrap_or_default(),
            pruned: timings.next(),
        });
        if dlc_passes::Progress::interrupted(&bar) {
            return Ok(crate::cli::exit::INTERRUPTED.into());
        }
    }
    bar.finish();
    output.result(&table(&measured).to_string())?;
    let agreement = match pruned {
        Some(mut pruned) => agreement(&mut model, &mut pruned, &texts)?,
        None => None,
    };
    if let Some((text, _)) = &agreement {
        output.result(text)?;
    }
    let rows = measured.iter().map(|m| {
        json!({
            "tokens": m.tokens, "target_seconds": m.target.median(), "target_range": m.target.range(),
            "pruned_seconds": m.pruned.as_ref().map(Timing::median), "pruned_range": m.pruned.as_ref().map(Timing::range),
        })
    });
    output.json(&json!({
        "backend": model.backend.kind().name(), "task": model.bundle.manifest().model.task, "lengths": rows.collect::<Vec<_>>(),
        "load_average": load,
        "agreement": agreement.map(|(_, value)| value),
    }))?;
    Ok(ExitCode::SUCCESS)
}

fn table(measured: &[Latency]) -> Table {
    let pruned = measured.iter().any(|m| m.pruned.is_some());
    let all = [
        "tokens",
        "target ms",
        "spread",
        "pruned ms",
        "spread",
        "speedup",
    ];
    let mut table = Table::new(if pruned { &all[..] } else { &all[..3] });
    let ms = |timing: &Timing| {
        [
            format!("{:.2}", 1e3 * timing.median()),
            ranged(timing.range().map(|s| 1e3 * s), 2),
        ]
    };
    for m in measured {
        let mut row = vec![m.tokens.to_string()];
        row.extend(ms(&m.target));
        if let Some(pruned) = &m.pruned {
            row.extend(ms(pruned));
            row.push(format!("{:.2}", m.target.median() / pruned.median()));
        }
        table.row(row);
    }
    table
}

/// How far the pruned encoder says what the whole one says, over texts; none without a tokenizer to
/// read them.
fn agreement(
    model: &mut EncoderModel,
    pruned: &mut EncoderSession,
    texts: &[Text],
) -> Result<Option<(String, Value)>> {
    let Some(tokenizer) = &model.tokenizer else {
        note("the bundle has no tokenizer.json, so the pruned encoder isn't compared on texts")?;
        return Ok(None);
    };
    let sentence = model
        .bundle
        .manifest()
        .model
        .sentence
        .clone()
        .unwrap_or_default();
    let vector = |rows: &Rows| sentence_vector(rows, &sentence, 0);
    let (mut same, mut answers, mut cosines) = (0u32, 0u32, 0.0);
    for Text { content, place } in texts {
        let batch = [tokenizer
            .analyse_cut(content, model.session.context_length(), false)
            .with_context(|| place.clone())?
            .0];
        let [a, b]: [Vec<Rows>; 2] = [model.session.run(&batch)?, pruned.run(&batch)?];
        for (a, b) in a.iter().zip(&b) {
            cosines += f64::from(similarity(Similarity::Cosine, &vector(a), &vector(b)));
            let best = |row: &[f32]| choices(row, 1, false).first().map(|c| c.index);
            same += a
                .each()
                .zip(b.each())
                .filter(|(x, y)| best(x) == best(y))
                .count() as u32;
            answers += a.each().count() as u32;
        }
    }
    let n = texts.len();
    if model.bundle.manifest().model.task == Task::FeatureExtraction {
        let mean = cosines / n.max(1) as f64;
        return Ok(Some((
            format!("mean cosine of the vectors of {n} texts, pruned against whole: {mean:.4}"),
            json!({"texts": n, "cosine": mean}),
        )));
    }
    let share = 100.0 * f64::from(same) / f64::from(answers.max(1));
    let shown = format!(
        "the pruned encoder gives the answer of the whole one in {share:.1}% of {answers} cases, over {n} texts"
    );
    Ok(Some((
        shown,
        json!({"texts": n, "answers": answers, "same": same}),
    )))
}
