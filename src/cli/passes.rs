//! `dlc passes`.

use std::process::ExitCode;

use dlc_passes::registry::PASSES;
use serde_json::json;

use super::failure::Result;
use super::output::Output;

/// List the passes and their options
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let output = Output::new(args.json);
    for pass in PASSES {
        output.result(&format!("{}\n  {}", pass.name, pass.summary))?;
        for option in (pass.options)() {
            output.result(&format!("    {:<14} {option}", option.name))?;
        }
    }
    let passes = PASSES.iter().map(|p| {
        let options: Vec<_> = (p.options)()
            .iter()
            .map(|option| {
                json!({
                    "name": option.name,
                    "meaning": option.meaning,
                    "range": option.range.as_ref().map(ToString::to_string),
                    "default": option.default,
                })
            })
            .collect();
        json!({"name": p.name, "summary": p.summary, "options": options, "then": p.then})
    });
    output.json(&passes.collect::<Vec<_>>())?;
    Ok(ExitCode::SUCCESS)
}
