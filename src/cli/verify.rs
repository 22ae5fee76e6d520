//! `dlc verify`.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::backend::{BackendArgs, describe};
use super::exit::CHECK_FAILED;
use super::failure::Result;
use super::output::{Output, note};
use super::{open, phases};
use crate::pipeline::{Check, Tolerance, compare_with_source, module_of_bundle, verify_bundle};
use crate::report::checks_table;

/// Check a bundle's graphs against the evaluator, its files against their hashes
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The bundle
    bundle: PathBuf,
    /// The checkpoint that it was compiled from (also `ORG/NAME` of the Hub): compares graph and
    /// weights too
    #[arg(long, value_name = "MODEL")]
    source: Option<PathBuf>,
    #[command(flatten)]
    keys: open::KeyArgs,
    /// Largest absolute error allowed [default: by element type, 1e-4 for f32; 20% of the largest
    /// output where ONNX Runtime multiplies with quantised matrices]
    #[arg(long, value_name = "X", value_parser = tolerance, allow_negative_numbers = true)]
    tolerance: Option<f32>,
    #[command(flatten)]
    backend: BackendArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

fn tolerance(text: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|x| *x >= 0.0)
        .ok_or_else(|| "it must be a number, 0 or more".into())
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let output = Output::new(args.json);
    if args.source.is_none() {
        args.keys
            .check_unused("none is read without --source MODEL")?;
    }
    let bundle = open::bundle_hashed_anew(&args.bundle)?;
    phases::begin("reading graphs");
    let (documents, strays): (Vec<_>, Vec<_>) = bundle
        .strays()?
        .into_iter()
        .partition(|name| is_document(name));
    let module = module_of_bundle(&bundle)?;
    let differences = match &args.source {
        Some(source) => {
            // A bundle may be for another task than its checkpoint says.
            let (dtype, task) = (module.model.dtype, Some(module.model.task));
            let read = open::checkpoint(source, dtype, &args.keys, task)
                .or_else(|_| open::checkpoint(source, dtype, &args.keys, None))?;
            compare_with_source(&module, &read)?
        }
        None => vec![],
    };
    let (backend, session) = (args.backend.start()?, args.backend.session());
    backend.check(bundle.manifest(), session.provider)?;
    note(&format!(
        "files match their hashes; running on {}",
        describe(&backend)
    ))?;
    if !documents.is_empty() {
        note(&format!(
            "not of the bundle, and not checked: {}",
            documents.join(", ")
        ))?;
    }
    let tolerance = args.tolerance.map(|absolute| Tolerance {
        absolute,
        relative: 0.0,
    });
    phases::begin("running graphs");
    let checks = verify_bundle(&bundle, &module, &backend, &session, tolerance)?;
    output.result(&checks_table(&checks).to_string())?;
    if args.source.is_some() && differences.is_empty() {
        output.result("graph and weights are those of the checkpoint")?;
    }
    for difference in &differences {
        output.result(&format!("against the checkpoint: {difference}"))?;
    }
    for stray in &strays {
        output.result(&format!(
            "{stray} is no file of the bundle: dlc doesn't read it, other programs may; take it away, or compile the bundle again"
        ))?;
    }
    output.json(&json!({"checks": checks.iter().map(check_json).collect::<Vec<_>>(), "source": differences, "strays": strays}))?;
    let passed = checks.iter().all(Check::passed) && differences.is_empty() && strays.is_empty();
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        CHECK_FAILED.into()
    })
}

/// Whether a file that isn't the bundle's is for people: no program that runs models reads it.
fn is_document(name: &str) -> bool {
    const STARTS: [&str; 5] = [".", "readme", "license", "licence", "notice"];
    const ENDINGS: [&str; 5] = ["md", "html", "pdf", "png", "jpg"];
    let lower = name.to_lowercase();
    STARTS.iter().any(|start| lower.starts_with(start))
        || lower
            .rsplit_once('.')
            .is_some_and(|(_, ending)| ENDINGS.contains(&ending))
}

fn check_json(check: &Check) -> serde_json::Value {
    let d = &check.outcome;
    json!({"graph": check.graph, "case": check.case.name(), "error": d.error, "allowed": d.allowed, "at": d.place, "passed": check.passed()})
}
