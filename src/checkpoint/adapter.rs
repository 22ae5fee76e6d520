//! An adapter's files, mapped and untrusted like a checkpoint: PEFT's folder, `adapter_config.json`
//! and `adapter_model.safetensors`, or one safetensors file of another trainer, by itself or in a
//! folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::CheckpointError;
use super::tensors::{self, FileMetadata, TensorFile, TensorRecord};
use super::{CheckpointFile, files, repeated};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What diffusers calls the adapters that it saves.
const DIFFUSERS_WEIGHTS: &str = "pytorch_lora_weights.safetensors";
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
        let folder = if path.is_dir() {
            path
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
    let is_safetensors = |path: &Path| {
        path.extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("safetensors"))
    };
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
    if let Some(name) = [WEIGHTS, DIFFUSERS_WEIGHTS]
        .iter()
        .find(|name| path.join(name).exists())
    {
        return Ok(path.join(name));
    }
    if path.join("adapter_model.bin").exists() || path.join("pytorch_lora_weights.bin").exists() {
        let problem = format!(
            "holds its weights as pickle, which can run code. Save the adapter again as {WEIGHTS}"
        );
        return Err(CheckpointError::file(path, problem));
    }
    let entries = fs::read_dir(path).map_err(|e| CheckpointError::read(path, e))?;
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| is_safetensors(path))
        .collect();
    found.sort();
    match found.as_slice() {
        [one] if !path.join(CONFIG).exists() && !path.join("config.json").exists() => {
            Ok(one.clone())
        }
        [one, ..] if !path.join(CONFIG).exists() => Err(CheckpointError::file(
            path,
            format!(
                "holds several files, or a model. Name the adapter's own, such as {}",
                one.display()
            ),
        )),
        _ => Err(CheckpointError::file(
            path,
            format!(
                "is no adapter: it lacks {CONFIG} or {WEIGHTS}. Name the folder that holds both"
            ),
        )),
    }
}

fn name(path: &Path) -> String {
    let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = if path.is_dir() {
        full.file_name()
    } else {
        full.file_stem()
    };
    name.map_or_else(|| "adapter".into(), |n| n.to_string_lossy().into_owned())
}
