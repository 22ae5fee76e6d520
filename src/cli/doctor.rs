//! `dlc doctor`.

use std::process::ExitCode;

use dlc_runtime::telemetry_variable;
use serde_json::json;

use super::backend::{BackendArgs, describe};
use super::failure::Result;
use super::output::Output;
use super::{environment, exit};
use crate::import::FAMILIES;
use crate::report::Table;

/// Show which backend runs here, and why
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    backend: BackendArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let output = Output::new(args.json);
    let mut places = Table::new(&["ONNX Runtime looked for in", "found", "path"]);
    let candidates = args.backend.search().find();
    for c in &candidates {
        places.row([
            c.origin.describe(),
            if c.found { "yes" } else { "no" },
            &c.path.display().to_string(),
        ]);
    }
    output.result(&format!("{places}\n"))?;
    let backend = match args.backend.start() {
        Ok(backend) => backend,
        Err(error) => {
            output.json(&json!({"error": error.message()}))?;
            return Ok(exit::report(&error));
        }
    };
    for (candidate, reason) in backend.skipped().iter().filter(|(c, _)| c.found) {
        output.result(&format!("skipped {}: {reason}", candidate.path.display()))?;
    }
    let profiles: Vec<&str> = backend.profiles().iter().map(|p| p.name()).collect();
    let providers = backend.providers();
    output.result(&format!(
        "backend    {}\nprofiles   {}\nproviders  {}\nthreads    {}\ntelemetry  {}\n\n",
        describe(&backend),
        profiles.join(", "),
        providers.join(", "),
        environment::cores(),
        telemetry()
    ))?;
    let mut families = Table::new(&["model_type", "architectures", "models"]);
    for family in FAMILIES {
        families.row([
            family.model_type,
            &family.names().join(", "),
            family.summary,
        ]);
    }
    output.result(&families.to_string())?;
    output.json(&json!({
        "backend": backend.kind().name(),
        "version": backend.version(),
        "library": backend.library(),
        "profiles": profiles,
        "providers": providers,
        "threads": environment::cores(),
        "telemetry": telemetry(),
        "families": FAMILIES.iter().map(|f| f.model_type).collect::<Vec<_>>(),
    }))?;
    Ok(ExitCode::SUCCESS)
}

/// `off`, or what the user set: dlc itself has none, ONNX Runtime's is switched by a variable.
fn telemetry() -> String {
    match telemetry_variable() {
        Some(variable) if variable.ends_with("=1") => format!("off ({variable})"),
        Some(variable) => format!("ONNX Runtime's is as {variable} says, which you set"),
        None => "off".into(),
    }
}
