//! `dlc inspect`.

use std::path::PathBuf;
use std::process::ExitCode;

use dlc_ir::cost::{cost, quantized_matrices};
use dlc_ir::{Module, Task};
use serde_json::{Value, json};

use super::failure::Result;
use super::open::{KeyArgs, Opened, open_with, task_parser};
use super::output::Output;
use crate::import::non_finite_weights;
use crate::pipeline::PipelineError;
use crate::report::{bundle_summary, module_summary, onnx_summary};

/// Show what a checkpoint, bundle or ONNX file is
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A checkpoint (also `ORG/NAME` of the Hub), a bundle or an .onnx file
    path: PathBuf,
    #[command(flatten)]
    keys: KeyArgs,
    /// What to read a checkpoint for, whatever head it was saved with
    #[arg(long, value_name = "TASK", value_parser = task_parser())]
    task: Option<Task>,
    /// Print the graphs in text form too
    #[arg(long)]
    graph: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let output = Output::new(args.json);
    match open_with(&args.path, &args.keys, args.task)? {
        Opened::Checkpoint(module) => {
            let suspects = non_finite_weights(&module).map_err(PipelineError::from)?;
            output.result(&module_summary(&module))?;
            for (name, index) in &suspects {
                output.result(&format!(
                    "warning: weight {name} is not finite, first at element {index}"
                ))?;
            }
            output.json(&json!({"kind": "checkpoint", "model": module_json(&module), "non_finite": suspects}))?;
            graphs(args, output, &module)?;
        }
        Opened::Bundle(opened) => {
            let (bundle, module) = *opened;
            output.result(&format!(
                "{}\n{}",
                bundle_summary(bundle.manifest()),
                module_summary(&module)
            ))?;
            output.json(&json!({"kind": "bundle", "manifest": bundle.manifest(), "model": module_json(&module)}))?;
            graphs(args, output, &module)?;
        }
        Opened::Onnx(onnx) => {
            output.result(&onnx_summary(&onnx.summary))?;
            let operators: Value = onnx
                .summary
                .operators()
                .into_iter()
                .map(|(op, n)| (op.to_owned(), Value::from(n)))
                .collect();
            output
                .json(&json!({"kind": "onnx", "producer": onnx.summary.producer, "ir_version": onnx.summary.ir_version, "operators": operators}))?;
            if args.graph {
                output.result(
                    &onnx
                        .graph
                        .map_or_else(|| onnx.summary.listing(), |(g, w)| g.to_text(&w)),
                )?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn graphs(args: &Args, output: Output, module: &Module) -> Result<()> {
    if args.graph {
        for graph in &module.graphs {
            output.result(&graph.to_text(&module.weights))?;
        }
    }
    Ok(())
}

fn module_json(module: &Module) -> Value {
    let graphs = module.graphs.iter().map(|g| {
        let blocks: Vec<&str> = g.blocks().map(|(_, b)| b.name.as_str()).collect();
        let quantized: Vec<Value> = quantized_matrices(g, &module.weights)
            .map(|m| json!({"codes": module.weights[m.codes].name, "bits": m.format.bits, "group_size": m.format.group_size, "bytes": m.bytes}))
            .collect();
        json!({"name": g.name, "blocks": blocks, "cost": cost(g, &module.weights), "quantized": quantized})
    });
    json!({
        "family": module.model.family,
        "dtype": module.model.dtype,
        "vocab_size": module.model.vocab_size,
        "context_length": module.model.context_length,
        "graphs": graphs.collect::<Vec<_>>(),
    })
}
