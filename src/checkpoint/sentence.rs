//! What Sentence Transformers puts beside a model: `modules.json`, which lists the steps from tokens to a vector, and a folder for each step.

use std::fs;
use std::path::{Component, Path};

use dlc_ir::{Pooling, SideFile};
use serde_json::{Map, Value};

use super::error::{CheckpointError, shown};
use super::files::{read_json, read_object};

const MODULES: &str = "modules.json";
const POOLING: &str = "1_Pooling";
/// Largest file of JSON.
const CAP: u64 = 1 << 20;

/// The steps behind the model.
#[derive(Debug, Default)]
pub(super) struct SentenceModules {
    /// Their folders.
    folders: Vec<String>,
    pooling: Option<Pooling>,
}

impl SentenceModules {
    /// Reads what `folder` has of them; nothing is no error.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let path = folder.join(MODULES);
        let mut modules = Self::default();
        if !path.exists() {
            return modules.add(folder, POOLING, "Pooling").map(|()| modules);
        }
        let bad = |problem: &str| CheckpointError::file(&path, format!("{problem}. Download the file again"));
        let (list, _) = read_json(&path, CAP)?;
        for module in list.as_array().ok_or_else(|| bad("is no list of modules"))? {
            let text = |key: &str| module.get(key).and_then(Value::as_str).ok_or_else(|| bad(&format!("has a module without `{key}`")));
            let (name, kind) = (text("path")?, text("type")?.rsplit('.').next().unwrap_or_default());
            if name.is_empty() {
                continue;
            }
            if !matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]) {
                return Err(bad(&format!("names the folder `{}`, which isn't one beside it", shown(name))));
            }
            modules.add(folder, name, kind)?;
        }
        Ok(modules)
    }

    fn add(&mut self, folder: &Path, name: &str, kind: &str) -> Result<(), CheckpointError> {
        let config = folder.join(name).join("config.json");
        match kind {
            "Pooling" if config.exists() => self.pooling = Some(pooling(&read_object(&config, CAP)?.0)),
            "Pooling" | "Transformer" | "Normalize" => {}
            // A step that makes another vector of the pooled one.
            other => self.pooling = Some(Pooling::Other(shown(other))),
        }
        if folder.join(name).exists() {
            self.folders.push(name.to_owned());
        }
        Ok(())
    }

    /// How the vector of a text is made.
    pub fn pooling(&self) -> Option<&Pooling> {
        self.pooling.as_ref()
    }

    /// The files in the steps' folders.
    pub fn files(&self, folder: &Path) -> Result<Vec<SideFile>, CheckpointError> {
        let mut files = Vec::new();
        for name in &self.folders {
            let inner = folder.join(name);
            let real = |path: &Path| fs::symlink_metadata(path).map_err(|e| CheckpointError::read(path, e));
            if !real(&inner)?.is_dir() {
                return Err(CheckpointError::file(&inner, "is a link or no folder. Put the checkpoint's own folder there"));
            }
            for path in fs::read_dir(&inner).map_err(|e| CheckpointError::read(&inner, e))?.flatten().map(|entry| entry.path()) {
                let Some(file) = path.file_name().and_then(|n| n.to_str()).filter(|n| !n.starts_with('.')) else { continue };
                let kind = real(&path)?;
                if kind.is_symlink() {
                    return Err(CheckpointError::file(&path, "is a link. Copy the checkpoint with the files that its links mean (cp -rL)"));
                }
                if kind.is_file() {
                    files.push(SideFile { name: format!("{name}/{file}"), path });
                }
            }
        }
        Ok(files)
    }
}

/// The pooling that a configuration asks for: `pooling_mode_*` that are true or, in newer ones, `pooling_mode`.
fn pooling(config: &Map<String, Value>) -> Pooling {
    let flags = config.iter().filter(|(_, on)| **on == Value::Bool(true)).filter_map(|(key, _)| key.strip_prefix("pooling_mode_"));
    let named = config.get("pooling_mode").into_iter().flat_map(|mode| mode.as_array().map_or(vec![mode], |list| list.iter().collect()));
    let modes: Vec<&str> = flags.chain(named.filter_map(Value::as_str)).collect();
    match modes[..] {
        [] if config.get("pooling_mode_mean_tokens") != Some(&Value::Bool(false)) => Pooling::Mean,
        ["mean" | "mean_tokens"] => Pooling::Mean,
        ["cls" | "cls_token"] => Pooling::Cls,
        [] => Pooling::Other("nothing".into()),
        _ => Pooling::Other(shown(&modes.join(" and "))),
    }
}
