//! Adapters as passes want them, from their folders.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use dlc_exporters::FileStamp;
use dlc_exporters::manifest::Source;
use dlc_ir::Module;
use dlc_passes::merge_adapter::{Adapter, AdapterTensor};

use super::error::PipelineError;
use super::name_map::NameMap;
use super::source;
use crate::checkpoint::{AdapterFolder, Checkpoint};
use crate::import::Sources;

/// An adapter as a user asks for it.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSpec {
    /// Its folder.
    pub folder: PathBuf,
    /// How strongly it is merged; 1 as it was trained.
    pub weight: f64,
}

/// `DIR` or `DIR=WEIGHT`; a folder that is there under the whole name is meant first.
///
/// # Errors
/// [`PipelineError::Config`] for a weight that is no number.
pub fn parse_adapter_flag(flag: &str) -> Result<AdapterSpec, PipelineError> {
    let parts = flag.rsplit_once('=').filter(|_| !Path::new(flag).is_dir());
    let Some((folder, weight)) = parts else { return Ok(AdapterSpec { folder: flag.into(), weight: 1.0 }) };
    match weight.parse::<f64>() {
        Ok(weight) if weight.is_finite() => Ok(AdapterSpec { folder: folder.into(), weight }),
        _ => Err(PipelineError::Config { place: format!("adapter {flag}"), problem: format!("`{weight}` is not a number; write DIR=0.7") }),
    }
}

/// Adds the matrices and vectors of the checkpoint that no graph reads to the module's weights, so that adapters may have changed them too: the
/// pooler of an encoder whose task takes the hidden states. Tables of which graphs read a part stay out.
pub(super) fn add_unread(checkpoint: &Checkpoint, module: &mut Module, sources: &mut Sources) -> Result<(), PipelineError> {
    let prefix = sources.iter().find_map(|(file_name, &id)| file_name.strip_suffix(&module.weights[id].name).filter(|p| !p.is_empty()));
    let prefix = prefix.unwrap_or_default().to_owned();
    // The names of weights, and of the tables that some are rows of.
    let names = module.weights.entries().flat_map(|(_, w)| [Some(w.name.as_str()), w.name.rsplit_once('.').map(|(table, _)| table)]);
    let mut taken: BTreeSet<String> = names.flatten().map(str::to_owned).collect();
    for (file_name, record) in checkpoint.tensors().filter(|(_, record)| record.shape.len() <= 2) {
        let name = file_name.strip_prefix(&prefix).unwrap_or(file_name);
        if sources.contains_key(file_name) || !taken.insert(name.to_owned()) {
            continue;
        }
        if let Some(data) = record.expr() {
            let id = module.weights.add(name, &record.shape, data.cast(module.model.dtype))?;
            sources.insert(file_name.to_owned(), id);
        }
    }
    Ok(())
}

/// Opens the adapters, whose names are those of the name map `names` where there is one, and adds their files to those `into` names and to
/// `inputs`.
pub(super) fn open(
    specs: &[AdapterSpec],
    names: Option<&Path>,
    into: &mut Source,
    inputs: &mut Vec<FileStamp>,
) -> Result<Vec<Adapter>, PipelineError> {
    let names = names.map(NameMap::read).transpose()?;
    let mut adapters = Vec::new();
    for (i, spec) in specs.iter().enumerate() {
        let mut folder = AdapterFolder::open(&spec.folder)?;
        for file in &folder.files {
            let (name, record) = source::record(file)?;
            inputs.push(file.stamp.clone());
            into.files.insert(format!("adapter {i}, {} x {}: {name}", spec.weight, folder.name), record);
        }
        if let Some(names) = &names {
            folder.config = names.config(folder.config);
            folder.tensors = names.tensors(folder.tensors)?;
        }
        let mut tensors = std::collections::BTreeMap::new();
        for (name, record) in folder.tensors {
            let data = record.expr().ok_or_else(|| PipelineError::Config {
                place: spec.folder.display().to_string(),
                problem: format!("tensor {name} is {}, not f32, f16 or bf16", record.dtype),
            })?;
            tensors.insert(name, AdapterTensor { shape: record.shape, data });
        }
        adapters.push(Adapter { name: folder.name, weight: spec.weight, config: folder.config, tensors });
    }
    Ok(adapters)
}
