//! What Sentence Transformers puts beside a model: `modules.json`, which lists the steps from
//! tokens to a vector, a folder for each step, and settings in `sentence_bert_config.json` and
//! `config_sentence_transformers.json`.
//!
//! Where there is no `modules.json`, the other files count as if it listed a pooling and a
//! normalisation.

mod pooling;
mod settings;

use std::fs;
use std::path::Path;

use dlc_ir::{Pooling, Sentence, SideFile, Task};
use serde_json::Value;

use super::error::{CheckpointError, shown};
use super::files::{is_there, read_json, read_object};
use super::locate::is_plain_name;
use super::{CONFIG, SideKeys};

pub(super) use settings::{SETTINGS, TRANSFORMER_CONFIGS};

pub(super) const MODULES: &str = "modules.json";
/// The folder of the pooling where nothing lists another.
pub(super) const POOLING: &str = "1_Pooling";
/// Largest file of JSON.
const CAP: u64 = 1 << 20;
/// Most steps, and most files in the folder of one.
const MOST: usize = 64;
/// Largest file in the folder of a step: weights of a layer after the pooling.
const STEP_FILE_CAP: u64 = 1 << 30;

/// Keys of an entry of `modules.json`.
const MODULE_KEYS: SideKeys = SideKeys {
    heeded: &["path", "type"],
    // The order is that of the list.
    harmless: &["idx", "name"],
    neutral: &[],
};

/// Keys of a `Normalize` step.
const NORMALIZE_KEYS: SideKeys = SideKeys {
    heeded: &["module_input_name", "module_output_name"],
    // Written for every module by some versions.
    harmless: &["__version__"],
    neutral: &[],
};

/// The folders that the `modules.json` in `folder` names, as far as it can be read.
pub(super) fn step_folders(folder: &Path) -> Vec<String> {
    let list = read_json(&folder.join(MODULES), CAP).map(|(list, _)| list);
    let modules = list.ok().and_then(|list| list.as_array().cloned());
    modules
        .into_iter()
        .flatten()
        .take(MOST)
        .filter_map(|module| module.get("path")?.as_str().map(str::to_owned))
        .filter(|name| is_plain_name(name))
        .collect()
}

/// The steps after the model.
#[derive(Debug, Default)]
pub(super) struct SentenceModules {
    sentence: Option<Sentence>,
    /// The files in the steps' folders.
    files: Vec<SideFile>,
    warnings: Vec<String>,
    /// Whether `modules.json` lists a pooling.
    pools: bool,
    /// Whether the model is run with its head.
    headed: bool,
}

impl SentenceModules {
    /// Reads what `folder` has of them; nothing is no error.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let mut modules = Self::default();
        let listed = is_there(&folder.join(MODULES));
        if listed {
            modules.read_list(folder)?;
        } else if is_there(&folder.join(POOLING).join(CONFIG)) {
            let mut sentence = Sentence::default();
            modules.read_pooling(folder, POOLING, &mut sentence)?;
            modules.sentence = Some(sentence);
        }
        modules.pools &= listed;
        modules.read_settings(folder, listed)?;
        Ok(modules)
    }

    /// Reads `modules.json` and the folders that it names.
    fn read_list(&mut self, folder: &Path) -> Result<(), CheckpointError> {
        let path = folder.join(MODULES);
        let bad = |problem: &str| {
            CheckpointError::file(&path, format!("{problem}. Download the file again"))
        };
        let (list, _) = read_json(&path, CAP)?;
        let list = list
            .as_array()
            .ok_or_else(|| bad("is no list of modules"))?;
        if list.len() > MOST {
            return Err(bad(&format!(
                "lists {} modules, more than {MOST}",
                list.len()
            )));
        }
        let mut sentence = Sentence {
            pooling: vec![],
            normalize: false,
            ..Sentence::default()
        };
        for (number, module) in (1..).zip(list) {
            let place = format!("{MODULES}, module {number}");
            let unheeded = module
                .as_object()
                .and_then(|m| MODULE_KEYS.warning(&place, m));
            self.warnings.extend(unheeded);
            let text = |key: &str| {
                module
                    .get(key)
                    .and_then(Value::as_str)
                    .ok_or_else(|| bad(&format!("has a module without `{key}`")))
            };
            let (name, kind) = (text("path")?, text("type")?);
            if !name.is_empty() && (!is_plain_name(name) || name.starts_with('.')) {
                return Err(bad(&format!(
                    "names the folder `{}`, which isn't one beside it",
                    shown(name)
                )));
            }
            self.read_step(folder, name, kind, &mut sentence)?;
        }
        if sentence.pooling.is_empty() {
            sentence.pooling.push(Pooling::Other(
                "a Pooling that modules.json doesn't list".into(),
            ));
        }
        self.sentence = Some(sentence);
        Ok(())
    }

    /// Adds one step to `sentence`.
    fn read_step(
        &mut self,
        folder: &Path,
        name: &str,
        kind: &str,
        sentence: &mut Sentence,
    ) -> Result<(), CheckpointError> {
        let own = kind.starts_with("sentence_transformers.");
        let pooled = !sentence.pooling.is_empty();
        match kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" if own && name.is_empty() && !pooled => return Ok(()),
            "Pooling" if own && !pooled && !name.is_empty() => {
                return self.read_pooling(folder, name, sentence);
            }
            "Normalize" if own && pooled => {
                sentence.normalize = self.normalizes(folder, name, sentence)?;
            }
            // It drops nothing but while training.
            "Dropout" if own => {}
            other => sentence.pooling.push(Pooling::Other(format!(
                "the step {} of modules.json",
                shown(if own { other } else { kind })
            ))),
        }
        if name.is_empty() {
            Ok(())
        } else {
            self.add_files(folder, name)
        }
    }

    fn read_pooling(
        &mut self,
        folder: &Path,
        name: &str,
        sentence: &mut Sentence,
    ) -> Result<(), CheckpointError> {
        let config = folder.join(name).join(CONFIG);
        let (object, _) = read_object(&config, CAP)?;
        pooling::read(&object, sentence);
        self.pools = true;
        self.warnings
            .extend(pooling::KEYS.warning(&format!("{name}/config.json"), &object));
        self.add_files(folder, name)
    }

    /// Whether the step scales the pooled vector; one that scales something else is none that dlc
    /// can do.
    fn normalizes(
        &mut self,
        folder: &Path,
        name: &str,
        sentence: &mut Sentence,
    ) -> Result<bool, CheckpointError> {
        let config = folder.join(name).join(CONFIG);
        if name.is_empty() || !is_there(&config) {
            return Ok(true);
        }
        let (object, _) = read_object(&config, CAP)?;
        self.warnings
            .extend(NORMALIZE_KEYS.warning(&format!("{name}/config.json"), &object));
        let other = NORMALIZE_KEYS
            .heeded
            .iter()
            .filter_map(|key| object.get(*key))
            .find(|value| !value.is_null() && *value != "sentence_embedding");
        sentence.pooling.extend(other.map(|what| {
            Pooling::Other(format!("a Normalize step for {}", shown(&what.to_string())))
        }));
        Ok(other.is_none() || sentence.normalize)
    }

    /// Adds the files of a step's folder, if it has one.
    fn add_files(&mut self, folder: &Path, name: &str) -> Result<(), CheckpointError> {
        let inner = folder.join(name);
        if !is_there(&inner) {
            return Ok(());
        }
        let before = self.files.len();
        for path in fs::read_dir(&inner)
            .map_err(|e| CheckpointError::read(&inner, e))?
            .flatten()
            .map(|entry| entry.path())
        {
            let Some(file) = path
                .file_name()
                .and_then(|n| n.to_str())
                .filter(|n| is_plain_name(n) && !n.starts_with('.'))
            else {
                continue;
            };
            let kind = fs::metadata(&path).map_err(|e| CheckpointError::read(&path, e))?;
            if !kind.is_file() {
                continue;
            }
            super::files::check_size(&path, kind.len(), STEP_FILE_CAP)?;
            self.files.push(SideFile {
                name: format!("{name}/{file}"),
                path,
            });
            if self.files.len() - before > MOST {
                return Err(CheckpointError::file(
                    &inner,
                    format!("holds more than {MOST} files. Keep the checkpoint's own files there"),
                ));
            }
        }
        self.files[before..].sort_by(|a, b| a.name.cmp(&b.name));
        Ok(())
    }

    /// How the vector of a text is made, as far as the checkpoint says it.
    pub fn sentence(&self) -> Option<&Sentence> {
        self.sentence.as_ref()
    }

    /// The files in the steps' folders, under names with a slash.
    pub fn files(&self) -> &[SideFile] {
        &self.files
    }

    /// Whether `modules.json` pools what the model without a head says.
    pub fn makes_vectors(&self) -> bool {
        self.pools && !self.headed
    }

    /// What the files say and a model for `task` doesn't heed.
    pub fn warnings(&self, task: Task) -> Vec<String> {
        let Some(sentence) = &self.sentence else {
            return self.warnings.clone();
        };
        if task != Task::FeatureExtraction {
            let files = "the files of Sentence Transformers are not heeded";
            return vec![format!(
                "{files}: the model is compiled for {}, which makes no vectors of texts",
                task.name()
            )];
        }
        let unsupported = sentence.unsupported();
        let unsupported = unsupported.map(|step| format!("`dlc run` won't make vectors: the checkpoint makes them by {step}, which dlc can't do"));
        self.warnings.iter().cloned().chain(unsupported).collect()
    }
}
