//! A PEFT adapter's folder: `adapter_config.json` and `adapter_model.safetensors`, mapped and untrusted like a checkpoint.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::CheckpointFile;
use super::error::CheckpointError;
use super::files;
use super::tensors::{self, TensorRecord};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// Largest `adapter_config.json`.
const CONFIG_CAP: u64 = 1 << 20;

/// An opened adapter.
#[derive(Debug)]
pub struct AdapterFolder {
    /// Name of the folder.
    pub name: String,
    /// `adapter_config.json`.
    pub config: Map<String, Value>,
    /// Its tensors by name.
    pub tensors: BTreeMap<String, TensorRecord>,
    /// The files that were read.
    pub files: Vec<CheckpointFile>,
}

impl AdapterFolder {
    /// Opens an adapter. Errors name the file, and the tensor in it, that is missing or damaged.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        if !folder.is_dir() {
            return Err(CheckpointError::file(folder, format!("is no folder. Name the adapter's folder, which holds {CONFIG} and {WEIGHTS}")));
        }
        let (config_path, weights_path) = (folder.join(CONFIG), folder.join(WEIGHTS));
        if !weights_path.exists() && folder.join("adapter_model.bin").exists() {
            let problem = format!("holds its weights as pickle, which can run code. Save the adapter again as {WEIGHTS}");
            return Err(CheckpointError::file(folder, problem));
        }
        if !config_path.exists() || !weights_path.exists() {
            return Err(CheckpointError::file(folder, format!("is no adapter: it lacks {CONFIG} or {WEIGHTS}. Name the folder that holds both")));
        }
        let (config, config_file) = CheckpointFile::read(config_path, |path| files::read_object(path, CONFIG_CAP))?;
        let (tensors, weights_file) = CheckpointFile::read(weights_path, tensors::read_tensors)?;
        let full = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let name = full.file_name().map_or_else(|| "adapter".into(), |n| n.to_string_lossy().into_owned());
        let files = vec![config_file, weights_file];
        Ok(Self { name, config, tensors: tensors.into_iter().collect(), files })
    }
}
