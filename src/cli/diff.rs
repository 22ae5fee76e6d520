//! `dlc diff`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use dlc_ir::diff::{GraphDiff, diff_of_images};
use dlc_ir::{Diffusion, Graph, Module, WeightTable};
use serde_json::json;
use similar::TextDiff;

use super::exit::CHECK_FAILED;
use super::failure::{Context, Result, bail};
use super::open::{Opened, open};
use super::output::Output;
use crate::pipeline::{
    ConstantDifference, Constants, Transposed, WeightDifference, compare_weights,
};
use crate::report::{Table, percent};

/// Compare two checkpoints, bundles or ONNX files
///
/// Graphs and weights are compared. One bundle alone: its target with its draft.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A checkpoint (also `ORG/NAME` of the Hub), a bundle or an .onnx file
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

/// What differs.
#[derive(Debug, Default)]
struct Differences {
    graphs: Vec<GraphDiff>,
    /// Line by line, where the graphs can't tell: the nodes of ONNX files.
    nodes: Option<String>,
    unpaired: Vec<String>,
    weights: Vec<WeightDifference>,
    constants: Vec<ConstantDifference>,
    /// Whether the values of weights were looked at.
    by_value: bool,
}

impl Differences {
    fn graphs_differ(&self) -> bool {
        !self.unpaired.is_empty()
            || self.nodes.as_ref().is_some_and(|text| !text.is_empty())
            || self.graphs.iter().any(|d| !d.is_empty())
    }

    fn any(&self) -> bool {
        self.graphs_differ() || !self.weights.is_empty() || !self.constants.is_empty()
    }

    fn show(&self, args: &Args, output: Output) -> Result<()> {
        for difference in &self.graphs {
            output.result(&if args.summary && !difference.is_empty() {
                difference.summary()
            } else {
                difference.to_string()
            })?;
        }
        match &self.nodes {
            Some(text) if text.is_empty() => output.result("the graphs are the same")?,
            Some(_) if args.summary => output.result("the nodes differ")?,
            Some(text) => output.result(text)?,
            None => {}
        }
        for line in &self.unpaired {
            output.result(line)?;
        }
        if !self.weights.is_empty() {
            output.result(&weights_table(&self.weights))?;
        }
        if !self.constants.is_empty() {
            output.result(&constants_table(&self.constants))?;
        }
        if self.by_value && !self.any() {
            output.result("the weights are the same")?;
        }
        let mut value =
            json!({"graphs": self.graphs, "unpaired": self.unpaired, "weights": self.weights});
        if !self.constants.is_empty() {
            value["weights"] = json!(self.constants);
        }
        if let Some(text) = &self.nodes {
            value["nodes"] = json!(text);
        }
        output.json(&value)
    }
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let output = Output::new(args.json);
    let a = open(&args.a)?;
    let differences = match &args.b {
        None => Differences {
            graphs: vec![target_and_draft(&a)?],
            ..Differences::default()
        },
        Some(path) => between(args, &a, path)?,
    };
    differences.show(args, output)?;
    Ok(if args.exit_code && differences.any() {
        CHECK_FAILED.into()
    } else {
        ExitCode::SUCCESS
    })
}

fn between(args: &Args, a: &Opened, path: &Path) -> Result<Differences> {
    let b = &open(path)?;
    let mut found = Differences {
        by_value: !args.graphs_only,
        ..Differences::default()
    };
    let listings = match (a, b) {
        (Opened::Onnx(x), Opened::Onnx(y)) => Some([x, y].map(|onnx| onnx.summary.listing())),
        _ => None,
    };
    if listings.is_none() || graphs(a).len() + graphs(b).len() == 2 {
        found.graphs = by_name(a, b, &mut found.unpaired)?;
    }
    if let Some([x, y]) = listings
        && !found.graphs_differ()
    {
        // The graphs that dlc noted in its files say nothing about what others did to the nodes
        // since.
        let text = TextDiff::from_lines(&x, &y)
            .unified_diff()
            .header(&args.a.to_string_lossy(), &path.to_string_lossy())
            .to_string();
        found.nodes = Some(text).filter(|text| found.graphs.is_empty() || !text.is_empty());
    }
    match (a, b) {
        _ if args.graphs_only => {}
        (Opened::Checkpoint(_) | Opened::Bundle(_), Opened::Checkpoint(_) | Opened::Bundle(_)) => {
            if let (Some(x), Some(y)) = (module(a), module(b)) {
                found.weights = compare_weights(&x.weights, &y.weights)?;
            }
        }
        _ => {
            let transposed = [a, b].map(transposed).concat().into_iter().collect();
            let [a, b] = [(a, args.a.as_path()), (b, path)];
            let [a, b] = [constants(a, &transposed)?, constants(b, &transposed)?];
            found.constants = a.differences(&b);
        }
    }
    Ok(found)
}

/// The weights that an ONNX file has with rows and columns exchanged.
fn transposed(opened: &Opened) -> Vec<String> {
    match opened {
        Opened::Onnx(onnx) => onnx.summary.transposed.iter().cloned().collect(),
        Opened::Checkpoint(_) | Opened::Bundle(_) => vec![],
    }
}

fn constants((opened, path): (&Opened, &Path), transposed: &Transposed) -> Result<Constants> {
    Ok(match opened {
        Opened::Onnx(onnx) => Constants::of_onnx(path, onnx)
            .context("the weights can't be compared; --graphs-only leaves them out")?,
        Opened::Checkpoint(module) => Constants::of_module(module, transposed)?,
        Opened::Bundle(bundle) => Constants::of_module(&bundle.1, transposed)?,
    })
}

fn graphs(opened: &Opened) -> Vec<(&Graph, &WeightTable)> {
    match opened {
        Opened::Checkpoint(module) => module.graphs.iter().map(|g| (g, &module.weights)).collect(),
        Opened::Bundle(bundle) => bundle
            .1
            .graphs
            .iter()
            .map(|g| (g, &bundle.1.weights))
            .collect(),
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

fn diffusion(opened: &Opened) -> Option<&Diffusion> {
    module(opened)?.model.diffusion.as_ref()
}

fn weights_table(weights: &[WeightDifference]) -> String {
    let mut table = Table::new(&["weight", "norm of the difference", "share of its norm"]);
    for w in weights {
        table.row([
            w.weight.clone(),
            format!("{:.4e}", w.norm),
            percent(w.relative),
        ]);
    }
    format!("\nweights with other values: {}\n{table}", weights.len())
}

fn constants_table(constants: &[ConstantDifference]) -> String {
    let mut table = Table::new(&["weight", "first", "second"]);
    for c in constants {
        let side = |ty: &Option<String>| ty.clone().unwrap_or_else(|| "none".into());
        let second = if c.before == c.after {
            "other values".to_owned()
        } else {
            side(&c.after)
        };
        table.row([c.weight.clone(), side(&c.before), second]);
    }
    format!("\nweights that differ: {}\n{table}", constants.len())
}

fn target_and_draft(opened: &Opened) -> Result<GraphDiff> {
    match graphs(opened)[..] {
        [target, draft] => Ok(diff_of_images(target, draft, diffusion(opened))),
        _ => bail!(
            "there are not two graphs in it to compare; name a second checkpoint, bundle or ONNX file"
        ),
    }
}

/// Graphs of one name are compared; where each side has one graph, whatever their names. Graphs
/// without a partner are named in `unpaired`.
fn by_name(a: &Opened, b: &Opened, unpaired: &mut Vec<String>) -> Result<Vec<GraphDiff>> {
    let model = diffusion(a).or_else(|| diffusion(b));
    let (a, b) = (graphs(a), graphs(b));
    if let ([x], [y]) = (&a[..], &b[..]) {
        return Ok(vec![diff_of_images(*x, *y, model)]);
    }
    let alone =
        |these: &[(&Graph, &WeightTable)], those: &[(&Graph, &WeightTable)]| -> Vec<String> {
            these
                .iter()
                .map(|x| x.0.name.clone())
                .filter(|name| !those.iter().any(|y| y.0.name == *name))
                .collect()
        };
    for (side, names) in [("first", alone(&a, &b)), ("second", alone(&b, &a))] {
        if !names.is_empty() {
            unpaired.push(format!("only the {side} has {}", names.join(", ")));
        }
    }
    let pairs: Vec<GraphDiff> = a
        .iter()
        .filter_map(|x| {
            b.iter()
                .find(|y| y.0.name == x.0.name)
                .map(|y| diff_of_images(*x, *y, model))
        })
        .collect();
    if pairs.is_empty() {
        bail!(
            "the two have no graphs of the same name to compare; one of them was not written by dlc"
        );
    }
    Ok(pairs)
}
