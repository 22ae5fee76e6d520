//! What was found, for people and for machines.

use dlc_ir::Task;
use dlc_methods::divergence::Divergence;
use serde_json::{Value, json};

use crate::cli::backend::describe;
use crate::pipeline::{Comparison, Outcome, Side};
use crate::report::{Table, percent};

/// The share of the positions that the second figure of the KL divergence is above.
const MOST: f64 = 0.99;

/// What computes a model.
pub(super) fn computed_by(side: &Side<'_>) -> String {
    side.bundle.map_or_else(
        || "the evaluator, in f32".to_owned(),
        |runner| describe(runner.backend),
    )
}

/// Tables: each model by itself, then both.
pub(super) fn text(sides: &[Side<'_>; 2], comparison: &Comparison) -> String {
    let perplexities = perplexities(comparison);
    let mut headings = vec!["model", "name", "bytes of weights", "bits per weight"];
    headings.extend(perplexities.map(|_| "perplexity"));
    let mut models = Table::new(&headings);
    for (at, (letter, side)) in ["A", "B"].iter().zip(sides).enumerate() {
        let mut row = vec![
            (*letter).to_owned(),
            side.name.clone(),
            side.weight_bytes().to_string(),
            format!("{:.2}", side.bits_per_weight()),
        ];
        row.extend(perplexities.map(|both| format!("{:.4}", both[at])));
        models.row(row);
    }
    format!("{models}\n{}", differences(comparison))
}

fn differences(comparison: &Comparison) -> Table {
    let inputs = comparison.inputs.to_string();
    let (headings, row): (&[&str], Vec<String>) = match &comparison.outcome {
        Outcome::Distributions(d) => (
            &[
                "tokens read",
                "answers",
                "KL(A || B) mean",
                "99% are below",
                "largest",
                "same likeliest",
            ],
            vec![
                inputs,
                d.count().to_string(),
                nats(d.mean_kl()),
                nats(d.kl_quantile(MOST)),
                nats(d.kl_quantile(1.0)),
                percent(d.agreement()),
            ],
        ),
        Outcome::Vectors(d) => (
            &[
                "tokens read",
                "vectors",
                "cosine mean",
                "least",
                "largest difference",
            ],
            vec![
                inputs,
                d.count().to_string(),
                format!("{:.6}", d.mean_cosine()),
                format!("{:.6}", d.least_cosine()),
                format!("{:.3e}", d.largest()),
            ],
        ),
        Outcome::Predictions(d) => (
            &[
                "images",
                "relative mean squared error",
                "cosine mean",
                "largest difference",
            ],
            vec![
                inputs,
                format!("{:.3e}", d.relative_squares()),
                format!("{:.6}", d.mean_cosine()),
                format!("{:.3e}", d.largest()),
            ],
        ),
    };
    let mut table = Table::new(headings);
    table.row(row);
    table
}

fn nats(kl: f64) -> String {
    if kl != 0.0 && kl < 1e-3 {
        format!("{kl:.2e}")
    } else {
        format!("{kl:.5}")
    }
}

fn perplexities(comparison: &Comparison) -> Option<[f64; 2]> {
    match &comparison.outcome {
        Outcome::Distributions(divergence) => divergence.perplexities(),
        Outcome::Vectors(_) | Outcome::Predictions(_) => None,
    }
}

/// The same as JSON; a KL divergence that is infinite is null.
pub(super) fn json(sides: &[Side<'_>; 2], task: Task, comparison: &Comparison) -> Value {
    let perplexities = perplexities(comparison);
    let model = |at: usize| {
        let side = &sides[at];
        let mut value = json!({
            "name": side.name,
            "graph": side.graph.name,
            "computed_by": side.bundle.map_or("evaluator", |r| r.backend.kind().name()),
            "weight_bytes": side.weight_bytes(),
            "bits_per_weight": side.bits_per_weight(),
        });
        if let Some(both) = perplexities {
            value["perplexity"] = both[at].into();
        }
        value
    };
    let mut value = json!({"task": task, "a": model(0), "b": model(1)});
    let inputs = match &comparison.outcome {
        Outcome::Distributions(_) | Outcome::Vectors(_) => "tokens",
        Outcome::Predictions(_) => "images",
    };
    value[inputs] = comparison.inputs.into();
    match &comparison.outcome {
        Outcome::Distributions(divergence) => {
            value["answers"] = divergence.count().into();
            value["kl"] = kl(divergence);
            value["agreement"] = divergence.agreement().into();
        }
        Outcome::Vectors(d) => {
            value["vectors"] = d.count().into();
            value["cosine"] = json!({"mean": d.mean_cosine(), "least": d.least_cosine()});
            value["largest_difference"] = d.largest().into();
        }
        Outcome::Predictions(d) => {
            value["relative_squared_error"] = d.relative_squares().into();
            value["cosine"] = json!({"mean": d.mean_cosine(), "least": d.least_cosine()});
            value["largest_difference"] = d.largest().into();
        }
    }
    value
}

fn kl(divergence: &Divergence) -> Value {
    json!({
        "mean": divergence.mean_kl(),
        "p99": divergence.kl_quantile(MOST),
        "largest": divergence.kl_quantile(1.0),
    })
}
