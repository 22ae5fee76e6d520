//! `dlc diff`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use dlc_ir::diff::{GraphDiff, diff};
use dlc_ir::{Graph, Module, WeightTable};
use similar::TextDiff;

use super::exit::CHECK_FAILED;
use super::open::{Opened, open};
use super::output::Output;
use crate::pipeline::{WeightDifference, compare_weights};
use crate::report::{Table, percent};

/// Compare the graphs and weights of two checkpoints, bundles or ONNX files (of these the graphs alone); or a bundle's target with its draft
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A checkpoint, a bundle or an .onnx file
    a: PathBuf,
    /// What to compare it with [default: the target of bundle A with its draft]
    b: Option<PathBuf>,
    /// Exit with 1 if there is a difference
    #[arg(long)]
    exit_code: bool,
    /// Leave out the line-by-line part
    #[arg(long)]
    summary: bool,
    /// Compare graphs only, not the values of weights
    #[arg(long)]
    graphs_only: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let output = Output::new(args.json);
    let a = open(&args.a)?;
    let (mut unpaired, mut weights) = (Vec::new(), Vec::new());
    let differences = match &args.b {
        None => vec![target_and_draft(&a)?],
        Some(path) => {
            let b = open(path)?;
            if let (Some(x), Some(y)) = (listing(&a), listing(&b)) {
                let text = TextDiff::from_lines(&x, &y).unified_diff().header(&args.a.to_string_lossy(), &path.to_string_lossy()).to_string();
                output.result(if text.is_empty() { "the graphs are the same" } else { &text })?;
                output.json(&serde_json::json!([{ "text": text }]))?;
                return Ok(exit(args, !text.is_empty()));
            }
            if let (Some(x), Some(y), false) = (module(&a), module(&b), args.graphs_only) {
                weights = compare_weights(&x.weights, &y.weights)?;
            }
            by_name(&a, &b, &mut unpaired)?
        }
    };
    for difference in &differences {
        output.result(&if args.summary && !difference.is_empty() { difference.summary() } else { difference.to_string() })?;
    }
    for line in &unpaired {
        output.result(line)?;
    }
    if !weights.is_empty() {
        output.result(&weights_table(&weights))?;
    }
    output.json(&serde_json::json!({"graphs": differences, "unpaired": unpaired, "weights": weights}))?;
    Ok(exit(args, !unpaired.is_empty() || !weights.is_empty() || differences.iter().any(|d| !d.is_empty())))
}

fn exit(args: &Args, differs: bool) -> ExitCode {
    if args.exit_code && differs { CHECK_FAILED.into() } else { ExitCode::SUCCESS }
}

fn graphs(opened: &Opened) -> Vec<(&Graph, &WeightTable)> {
    match opened {
        Opened::Checkpoint(module) => module.graphs.iter().map(|g| (g, &module.weights)).collect(),
        Opened::Bundle(bundle) => bundle.1.graphs.iter().map(|g| (g, &bundle.1.weights)).collect(),
        Opened::Onnx(onnx) => onnx.graph.iter().map(|(g, w)| (g, w)).collect(),
    }
}

/// What holds weights with their values.
fn module(opened: &Opened) -> Option<&Module> {
    match opened {
        Opened::Checkpoint(module) => Some(module),
        Opened::Bundle(bundle) => Some(&bundle.1),
        Opened::Onnx(_) => None,
    }
}

fn weights_table(weights: &[WeightDifference]) -> String {
    let mut table = Table::new(&["weight", "norm of the difference", "share of its norm"]);
    for w in weights {
        table.row([w.weight.clone(), format!("{:.4e}", w.norm), percent(w.relative)]);
    }
    format!("\nweights with other values: {}\n{table}", weights.len())
}

/// The nodes of a file that dlc didn't write.
fn listing(opened: &Opened) -> Option<String> {
    match opened {
        Opened::Onnx(onnx) if onnx.graph.is_none() => Some(onnx.summary.listing()),
        _ => None,
    }
}

fn target_and_draft(opened: &Opened) -> Result<GraphDiff> {
    match graphs(opened)[..] {
        [target, draft] => Ok(diff(target, draft)),
        _ => bail!("there are not two graphs in it to compare; name a second checkpoint, bundle or ONNX file"),
    }
}

/// Graphs of one name are compared; where each side has one graph, whatever their names. Graphs without a partner are named in `unpaired`.
fn by_name(a: &Opened, b: &Opened, unpaired: &mut Vec<String>) -> Result<Vec<GraphDiff>> {
    let (a, b) = (graphs(a), graphs(b));
    if let ([x], [y]) = (&a[..], &b[..]) {
        return Ok(vec![diff(*x, *y)]);
    }
    let alone = |these: &[(&Graph, &WeightTable)], those: &[(&Graph, &WeightTable)]| -> Vec<String> {
        these.iter().map(|x| x.0.name.clone()).filter(|name| !those.iter().any(|y| y.0.name == *name)).collect()
    };
    for (side, names) in [("first", alone(&a, &b)), ("second", alone(&b, &a))] {
        if !names.is_empty() {
            unpaired.push(format!("only the {side} has {}", names.join(", ")));
        }
    }
    let pairs: Vec<GraphDiff> = a.iter().filter_map(|x| b.iter().find(|y| y.0.name == x.0.name).map(|y| diff(*x, *y))).collect();
    if pairs.is_empty() {
        bail!("the two have no graphs of the same name to compare; one of them was not written by dlc");
    }
    Ok(pairs)
}
