//! The files beside the weights: what a bundle takes over, and what else lies there.

use std::fs;

use dlc_ir::SideFile;
use dlc_tokenizer::VOCABULARIES;

use super::sentence::{MODULES, SETTINGS, TRANSFORMER_CONFIGS};
use super::vocabulary::TOKENIZER;
use super::{CONFIG, Checkpoint, CheckpointError, GENERATION_CONFIG, SCHEDULER_CONFIG};

const TEMPLATE: &str = "chat_template.jinja";
pub(super) const DEFAULT_TEMPLATE: &str = "additional_chat_templates/default.jinja";

/// What a bundle takes over where it is there, vocabularies aside.
const SIDE_FILES: [&str; 8] = [
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    TEMPLATE,
    "chat_template.json",
];

/// The names of the files that a bundle takes over where they are there.
pub(super) fn side_file_names() -> impl Iterator<Item = &'static str> {
    SIDE_FILES.into_iter().chain(VOCABULARIES)
}

/// How files end that hold weights.
pub(crate) const WEIGHT_EXTENSIONS: [&str; 9] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "gguf",
    "h5",
    "msgpack",
    "onnx",
];

impl Checkpoint {
    /// The files beside the weights that a bundle takes over.
    pub fn side_files(&self) -> Vec<SideFile> {
        if self.beside().is_none() {
            return vec![];
        }
        let names = side_file_names()
            .chain([MODULES, SETTINGS])
            .chain(TRANSFORMER_CONFIGS);
        let all = names.map(|name| SideFile {
            name: name.to_owned(),
            path: self.folder.join(name),
        });
        let scheduler = self.scheduler.iter().map(|s| SideFile {
            name: SCHEDULER_CONFIG.to_owned(),
            path: s.clone(),
        });
        let named = all
            .filter(|file| file.path.exists())
            .chain(self.made_files())
            .chain(self.default_template())
            .chain(self.tokenizer_files())
            .chain(scheduler);
        named.chain(self.sentence.files().iter().cloned()).collect()
    }

    /// The chat template in the folder of templates, where there is none of its own.
    fn default_template(&self) -> Option<SideFile> {
        let path = self.folder.join(DEFAULT_TEMPLATE);
        (path.is_file() && !self.folder.join(TEMPLATE).is_file()).then(|| SideFile {
            name: TEMPLATE.to_owned(),
            path,
        })
    }

    /// The files beside those that were read, hidden ones and weights in other formats aside:
    /// tokenizer, model card, licence ..., and what is in the folders of Sentence Transformers,
    /// under names with a slash.
    ///
    /// # Errors
    /// [`CheckpointError::Read`] for a folder that can't be read.
    pub fn companions(&self) -> Result<Vec<SideFile>, CheckpointError> {
        let entries =
            fs::read_dir(&self.folder).map_err(|e| CheckpointError::read(&self.folder, e))?;
        let mut companions = Vec::new();
        for path in entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_file())
        {
            let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
                continue;
            };
            let weights = path
                .extension()
                .and_then(|e| e.to_str())
                .is_some_and(|e| WEIGHT_EXTENSIONS.contains(&e));
            let shard_index = name.ends_with(".index.json");
            if !name.starts_with('.')
                && !weights
                && !shard_index
                && !self
                    .files
                    .iter()
                    .any(|f| f.path.file_name() == path.file_name())
            {
                companions.push(SideFile {
                    name: name.to_owned(),
                    path,
                });
            }
        }
        companions.extend(self.sentence.files().iter().cloned());
        companions.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(companions)
    }
}
