//! The files beside the weights: what a bundle takes over, and what else lies there.

use std::path::Path;
use std::{fs, iter};

use dlc_ir::SideFile;
use dlc_tokenizer::VOCABULARIES;

use super::locate::is_plain_name;
use super::sentence::{MODULES, SETTINGS, TRANSFORMER_CONFIGS};
use super::tokenizer_keys::TOKENIZER;
use super::{
    CONFIG, Checkpoint, CheckpointError, GENERATION_CONFIG, SCHEDULER_CONFIG, model_index,
};

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
    /// under names with a slash. Of a whole pipeline, every file of it, those that were read too.
    ///
    /// # Errors
    /// [`CheckpointError::Read`] for a folder that can't be read.
    pub fn companions(&self) -> Result<Vec<SideFile>, CheckpointError> {
        if let Some(pipeline) = self.pipeline.as_ref().filter(|_| !self.parts().is_empty()) {
            return self.pipeline_files(pipeline);
        }
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
            if !name.starts_with('.')
                && !is_weights(name)
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

    /// The files in the pipeline's `folder` and in those of its components, whether they were read
    /// or not; hidden ones, and weights that were not read beside some that were, aside.
    fn pipeline_files(&self, folder: &Path) -> Result<Vec<SideFile>, CheckpointError> {
        let parts = self.parts().iter().map(|part| &part.checkpoint);
        let opened: Vec<&Self> = iter::once(self).chain(parts).collect();
        let is_read = |path: &Path| {
            let mut files = opened.iter().flat_map(|checkpoint| &checkpoint.files);
            files.any(|file| file.path == path)
        };
        let index = model_index::read(folder)?.unwrap_or_default();
        let components = index.iter().filter(|(_, value)| value.is_array());
        let names = components.map(|(name, _)| name.as_str());
        let mut files = Vec::new();
        for name in iter::once("").chain(names.filter(|name| is_plain_name(name))) {
            let inside = folder.join(name);
            let has_weights = name.is_empty() || opened.iter().any(|c| c.folder == inside);
            if !inside.is_dir() {
                continue;
            }
            let entries = fs::read_dir(&inside).map_err(|e| CheckpointError::read(&inside, e))?;
            let paths = entries.flatten().map(|entry| entry.path());
            for path in paths.filter(|path| path.is_file()) {
                let Some(own) = path.file_name().and_then(|own| own.to_str()) else {
                    continue;
                };
                if own.starts_with('.') || has_weights && is_weights(own) && !is_read(&path) {
                    continue;
                }
                let place = if name.is_empty() { "" } else { "/" };
                let name = format!("{name}{place}{own}");
                files.push(SideFile { name, path });
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }
}

/// Whether a file of this name holds weights, or says which files do.
fn is_weights(name: &str) -> bool {
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    WEIGHT_EXTENSIONS.contains(&ending) || name.ends_with(".index.json")
}
