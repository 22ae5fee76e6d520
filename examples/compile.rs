//! Compiles a checkpoint into a bundle with a draft.
//!
//!   cargo run --example compile -- MODEL OUT
#![allow(clippy::print_stdout, reason = "it is what an example is for")]

use std::error::Error;
use std::path::Path;

use dlc::pipeline::{CompileRequest, compile, parse_pass_flag};
use dlc_bundle::{Manifest, Profile};

/// Compiles a decoder with a draft.
///
/// # Errors
/// What is wrong with the model or the output.
pub fn with_draft(model: &Path, out: &Path) -> Result<Manifest, Box<dyn Error>> {
    let request = CompileRequest {
        passes: vec![parse_pass_flag("fit-prune:drop=6")?],
        profile: Profile::Onnx,
        ..CompileRequest::new(model, out)
    };
    Ok(compile(&request, None, &())?.manifest)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, out] = &arguments[..] else {
        return Err("give a checkpoint, and the bundle's folder".into());
    };
    for graph in with_draft(Path::new(model), Path::new(out))?.graphs {
        println!(
            "{}: {} parameters in {}",
            graph.name, graph.parameters, graph.file
        );
    }
    Ok(())
}
