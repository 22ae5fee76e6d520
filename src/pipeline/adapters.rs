//! Adapters as passes want them, from their folders.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use dlc_bundle::Source;
use dlc_ir::{Module, Task};
use dlc_passes::{Adapter, AdapterTensor, PassError};
use serde_json::{Map, Value};

use super::error::PipelineError;
use super::lora_names::{self, Translated};
use super::name_map::NameMap;
use super::outgrown::{self, Adopted};
use super::source;
use crate::checkpoint::{AdapterFiles, Checkpoint, CheckpointFile, TensorRecord};
use crate::import::{ImportOptions, Imported, Sources, import_with_sources, retarget};

/// An adapter as a user asks for it.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSpec {
    /// Its folder, or its file.
    pub folder: PathBuf,
    /// What the manifest calls it; the folder's name if absent.
    pub name: Option<String>,
    /// How strongly it is merged; 1 as it was trained.
    pub weight: f64,
}

/// `DIR` or `DIR=WEIGHT`; a path that is there under the whole name is meant first.
///
/// # Errors
/// [`PipelineError::Config`] for a weight that is no number.
pub fn parse_adapter_flag(flag: &str) -> Result<AdapterSpec, PipelineError> {
    let parts = flag.rsplit_once('=').filter(|_| !Path::new(flag).exists());
    let Some((folder, weight)) = parts else {
        return Ok(AdapterSpec {
            folder: flag.into(),
            name: None,
            weight: 1.0,
        });
    };
    match weight.parse::<f64>() {
        Ok(weight) if weight.is_finite() => Ok(AdapterSpec {
            folder: folder.into(),
            name: None,
            weight,
        }),
        _ => Err(PipelineError::Config {
            place: format!("adapter {flag}"),
            problem: format!("`{weight}` is not a number; write DIR=0.7"),
        }),
    }
}

/// Adds the matrices and vectors of the checkpoint that no graph reads to the module's weights, so
/// that adapters may have changed them too: the pooler of an encoder whose task takes the hidden
/// states. Tables of which graphs read a part stay out.
pub(super) fn add_unread(
    checkpoint: &Checkpoint,
    module: &mut Module,
    sources: &mut Sources,
) -> Result<(), PipelineError> {
    let prefix = sources.iter().find_map(|(file_name, &id)| {
        file_name
            .strip_suffix(&module.weights[id].name)
            .filter(|p| !p.is_empty())
    });
    let prefix = prefix.unwrap_or_default().to_owned();
    // The names of weights, and of the tables that some are rows of.
    let names = module.weights.entries().flat_map(|(_, w)| {
        [
            Some(w.name.as_str()),
            w.name.rsplit_once('.').map(|(table, _)| table),
        ]
    });
    let mut taken: BTreeSet<String> = names.flatten().map(str::to_owned).collect();
    for (file_name, record) in checkpoint
        .tensors()
        .filter(|(_, record)| record.shape.len() <= 2)
    {
        let name = file_name.strip_prefix(&prefix).unwrap_or(file_name);
        if sources.contains_key(file_name) || !taken.insert(name.to_owned()) {
            continue;
        }
        if let Some(data) = record.expr() {
            let id = module
                .weights
                .add(name, &record.shape, data.cast(module.model.dtype))?;
            sources.insert(file_name.to_owned(), id);
        }
    }
    Ok(())
}

/// A checkpoint, with the files of its adapters, as it was imported.
pub(super) struct Adapted {
    pub checkpoint: Checkpoint,
    pub adapters: Vec<AdapterFiles>,
    pub adopted: Adopted,
    pub imported: Imported,
}

/// Opens a checkpoint and its adapters, and imports it for a task; without one for its own.
pub(super) fn import_adapted(
    model: &Path,
    specs: &[AdapterSpec],
    names: Option<&Path>,
    task: Option<Task>,
    options: &ImportOptions,
) -> Result<Adapted, PipelineError> {
    let mut checkpoint = Checkpoint::open(model)?;
    let (adapters, adopted) = open(specs, names, &mut checkpoint)?;
    if let Some(task) = task {
        retarget(&mut checkpoint, task)?;
    }
    let imported = import_with_sources(&checkpoint, options)?;
    Ok(Adapted {
        checkpoint,
        adapters,
        adopted,
        imported,
    })
}

/// Opens the adapters, and lets `checkpoint` have what they bring beside changes, unless a name map
/// says what they call things.
fn open(
    specs: &[AdapterSpec],
    names: Option<&Path>,
    checkpoint: &mut Checkpoint,
) -> Result<(Vec<AdapterFiles>, Adopted), PipelineError> {
    let (mut files, mut all) = (Vec::new(), Adopted::default());
    for spec in specs {
        let mut adapter = AdapterFiles::open(&spec.folder)?;
        if let Some(name) = &spec.name {
            adapter.name.clone_from(name);
        }
        let mut notes = adapter.notes.clone();
        if names.is_none() {
            let adopted = outgrown::adopt(checkpoint, &adapter);
            notes.extend(adopted.notes);
            all.tokenizer.extend(adopted.tokenizer);
        }
        let named = notes
            .iter()
            .map(|n| format!("adapter {}: {n}", adapter.name));
        all.notes.extend(named);
        files.push(adapter);
    }
    Ok((files, all))
}

/// Adds the adapters' files to those that `into` names.
pub(super) fn record(
    specs: &[AdapterSpec],
    opened: &[AdapterFiles],
    into: &mut Source,
) -> Result<(), PipelineError> {
    for (i, (spec, adapter)) in specs.iter().zip(opened).enumerate() {
        for file in &adapter.files {
            let (name, record) = source::record(file)?;
            into.files.insert(
                format!("adapter {i}, {} x {}: {name}", spec.weight, adapter.name),
                record,
            );
        }
    }
    Ok(())
}

/// The opened adapters of `model` as passes want them, with what the user should know of them.
/// Their names are those of the name map `names` where there is one.
pub(super) fn read(
    specs: &[AdapterSpec],
    opened: Vec<AdapterFiles>,
    names: Option<&Path>,
    model: &Module,
) -> Result<(Vec<Adapter>, Vec<String>), PipelineError> {
    let names = names.map(NameMap::read).transpose()?;
    let (mut adapters, mut warnings) = (Vec::new(), Vec::new());
    for (spec, files) in specs.iter().zip(opened) {
        let AdapterFiles {
            name: adapter,
            config,
            tensors,
            metadata,
            files,
            ..
        } = files;
        // The configuration, where there is one, is read first.
        let file_name = |file: Option<&CheckpointFile>| {
            file.map_or_else(String::new, |file| file.path.display().to_string())
        };
        let (config_file, tensors_file) = (file_name(files.first()), file_name(files.last()));
        let (translated, notes) = match (config, &names) {
            (Some(config), None) => (vec![of_peft(config, tensors, model)], vec![]),
            (config, Some(names)) => {
                let config = names.config(config.unwrap_or_default());
                let tensors = names.tensors(tensors)?;
                (vec![of_peft(config, tensors, model)], vec![])
            }
            (None, None) if model.model.diffusion.is_some() => {
                let fail = |problems| PassError::adapter(&tensors_file, problems, false);
                lora_names::translate(tensors, &metadata, model).map_err(fail)?
            }
            (None, None) => {
                let problem = "has no adapter_config.json, and its file doesn't say how strong it is; name a folder that PEFT saved";
                return Err(PipelineError::Config {
                    place: spec.folder.display().to_string(),
                    problem: problem.into(),
                });
            }
        };
        let of_adapter = |note: &String| format!("adapter {adapter}: {note}");
        warnings.extend(notes.iter().map(of_adapter));
        for Translated {
            part,
            config,
            alphas,
            tensors,
        } in translated
        {
            let name = part.as_ref().map_or_else(
                || adapter.clone(),
                |part| format!("{adapter} in {}", part.graph),
            );
            adapters.push(Adapter {
                name,
                config_file: config_file.clone(),
                weight: spec.weight,
                config,
                alphas,
                tensors: numbers(&tensors_file, tensors)?,
                tensors_file: tensors_file.clone(),
                part,
            });
        }
    }
    Ok((adapters, warnings))
}

/// An adapter under PEFT's names, of the part of a diffusion model that it was trained for.
fn of_peft(
    config: Map<String, Value>,
    tensors: BTreeMap<String, TensorRecord>,
    model: &Module,
) -> Translated {
    let pipeline = model.model.diffusion.as_ref().map(|_| model);
    Translated {
        part: pipeline.and_then(|model| lora_names::part(tensors.keys(), model)),
        config,
        alphas: None,
        tensors,
    }
}

/// The numbers of the tensors of a file.
fn numbers(
    file: &str,
    tensors: BTreeMap<String, TensorRecord>,
) -> Result<BTreeMap<String, AdapterTensor>, PipelineError> {
    let read = |(name, record): (String, TensorRecord)| {
        let data = record.expr().ok_or_else(|| PipelineError::Config {
            place: file.to_owned(),
            problem: format!("tensor {name} is {}, not f32, f16 or bf16", record.dtype),
        })?;
        let shape = record.shape;
        Ok((name, AdapterTensor { shape, data }))
    };
    tensors.into_iter().map(read).collect()
}
