//! What a path on the command line is: a checkpoint, a bundle, or an ONNX file.

use std::path::Path;

use anyhow::Result;
use dlc_exporters::manifest::MANIFEST_FILE;
use dlc_ir::Module;

use crate::checkpoint::Checkpoint;
use crate::import::{ImportOptions, import};
use crate::pipeline::{self, OnnxModule, module_of_bundle};
use crate::runtime::Bundle;

/// Something that holds graphs.
#[derive(Debug)]
pub(super) enum Opened {
    Checkpoint(Box<Module>),
    Bundle(Box<(Bundle, Module)>),
    Onnx(Box<OnnxModule>),
}

/// Opens whatever `path` is: `*.onnx`, a folder with a manifest, else a checkpoint.
pub(super) fn open(path: &Path) -> Result<Opened> {
    if path.extension().is_some_and(|e| e == "onnx") {
        return Ok(Opened::Onnx(Box::new(pipeline::read_onnx(path)?)));
    }
    if path.join(MANIFEST_FILE).exists() {
        let bundle = Bundle::open(path)?;
        let module = module_of_bundle(&bundle)?;
        return Ok(Opened::Bundle(Box::new((bundle, module))));
    }
    Ok(Opened::Checkpoint(Box::new(checkpoint(path)?)))
}

/// The module of a checkpoint, in f32.
pub(super) fn checkpoint(path: &Path) -> Result<Module> {
    let checkpoint = Checkpoint::open(path).map_err(crate::pipeline::PipelineError::from)?;
    Ok(import(&checkpoint, &ImportOptions::default()).map_err(crate::pipeline::PipelineError::from)?)
}

/// The name of the folder that a checkpoint lies in.
pub(super) fn checkpoint_name(path: &Path) -> String {
    let folder = if path.is_dir() { Some(path) } else { path.parent() };
    let folder = folder.map(|f| if f.as_os_str().is_empty() { Path::new(".") } else { f });
    let full = folder.and_then(|f| f.canonicalize().ok());
    full.as_deref().and_then(Path::file_name).map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned())
}
