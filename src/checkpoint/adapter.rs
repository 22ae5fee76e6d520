//! An adapter's files, mapped and untrusted like a checkpoint: PEFT's folder, `adapter_config.json`
//! and `adapter_model.safetensors`, or one safetensors file of another trainer, by itself or in a
//! folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::CheckpointError;
use super::locate::Holder;
use super::tensors::{self, FileMetadata, TensorFile, TensorRecord};
use super::{CheckpointFile, files, hub_cache, repeated};

pub(super) const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What diffusers calls the adapters that it saves.
const DIFFUSERS_WEIGHTS: &str = "pytorch_lora_weights.safetensors";
/// Weights that can run code.
const PICKLES: [&str; 2] = ["adapter_model.bin", "pytorch_lora_weights.bin"];
/// Largest `adapter_config.json`.
const CONFIG_CAP: u64 = 1 << 20;

/// An opened adapter.
#[derive(Debug)]
pub struct AdapterFiles {
    /// Name of the folder, or of the file without its extension.
    pub name: String,
    /// The folder that it lies in.
    pub folder: PathBuf,
    /// `adapter_config.json`, where there is one.
    pub config: Option<Map<String, Value>>,
    /// Its tensors by name.
    pub tensors: BTreeMap<String, TensorRecord>,
    /// What the file with the tensors says of itself.
    pub metadata: FileMetadata,
    /// The files that were read.
    pub files: Vec<CheckpointFile>,
    /// What is to be said of them.
    pub notes: Vec<String>,
}

impl AdapterFiles {
    /// Opens an adapter: its folder, or its `.safetensors` file.
    ///
    /// # Errors
    /// [`CheckpointError`] with the file, and the tensor in it, that is missing or damaged.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let path = &hub_cache::entered(path)?;
        let folder = if path.is_dir() {
            path.as_path()
        } else {
            path.parent().unwrap_or(path)
        };
        let weights = weights(path)?;
        let config_path = folder.join(CONFIG);
        let of_peft = weights.file_name().is_some_and(|name| name == WEIGHTS);
        if of_peft && !config_path.exists() {
            return Err(CheckpointError::file(
                path,
                format!(
                    "is no adapter: it lacks {CONFIG}, which says how strong it is. Name the folder that holds both"
                ),
            ));
        }
        let mut files = Vec::new();
        let config = if of_peft {
            let (config, file) = CheckpointFile::read(config_path.clone(), |path| {
                files::read_object(path, CONFIG_CAP)
            })?;
            files.push(file);
            Some(config)
        } else {
            None
        };
        let (TensorFile { tensors, metadata }, file) =
            CheckpointFile::read(weights, tensors::read_file)?;
        files.push(file);
        Ok(Self {
            name: name(path),
            folder: folder.to_owned(),
            config,
            tensors: tensors.into_iter().collect(),
            metadata,
            files,
            notes: repeated::warning(CONFIG, &config_path)
                .into_iter()
                .collect(),
        })
    }
}

/// The file with the tensors.
fn weights(path: &Path) -> Result<PathBuf, CheckpointError> {
    if !path.is_dir() {
        if !path.exists() {
            let problem = format!(
                "doesn't exist. Name an adapter's folder, which holds {CONFIG} and {WEIGHTS}, or its .safetensors file"
            );
            return Err(CheckpointError::file(path, problem));
        }
        if is_safetensors(path) {
            return Ok(path.to_owned());
        }
        let problem = format!(
            "is no adapter. Name the adapter's folder, which holds {CONFIG} and {WEIGHTS}, or its .safetensors file"
        );
        return Err(CheckpointError::file(path, problem));
    }
    let entries = fs::read_dir(path).map_err(|e| CheckpointError::read(path, e))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    among(Holder::folder(path), &names).map(|name| path.join(name))
}

/// The name of the file with the tensors among the files with these names directly in `holder`.
pub(super) fn among(holder: Holder<'_>, names: &[String]) -> Result<String, CheckpointError> {
    let folder = holder.path;
    let is = |wanted: &str| names.iter().any(|name| name == wanted);
    if let Some(name) = [WEIGHTS, DIFFUSERS_WEIGHTS].iter().find(|name| is(name)) {
        return Ok((*name).to_owned());
    }
    if PICKLES.iter().any(|name| is(name)) {
        let problem = format!(
            "holds its weights as pickle, which can run code. Save the adapter again as {WEIGHTS}"
        );
        return Err(CheckpointError::file(folder, problem));
    }
    let mut found = names.iter().filter(|name| is_safetensors(Path::new(name)));
    match (found.next(), found.next()) {
        (Some(one), None) if !is(CONFIG) && !is("config.json") => Ok(one.clone()),
        (Some(one), _) if !is(CONFIG) => Err(CheckpointError::file(
            folder,
            format!(
                "holds several files, or a model. Name the adapter's own, such as {}",
                holder.part(one)
            ),
        )),
        _ => Err(CheckpointError::file(
            folder,
            format!(
                "is no adapter: it lacks {CONFIG} or {WEIGHTS}. Name the folder that holds both"
            ),
        )),
    }
}

fn is_safetensors(path: &Path) -> bool {
    path.extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("safetensors"))
}

fn name(path: &Path) -> String {
    if let Some(name) = hub_cache::snapshot_name(path) {
        return name;
    }
    let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = if path.is_dir() {
        full.file_name()
    } else {
        full.file_stem()
    };
    name.map_or_else(|| "adapter".into(), |n| n.to_string_lossy().into_owned())
}
