//! Hugging Face checkpoints: finds the files, maps the weights, checks everything that a stranger
//! may have put there. A GGUF file is opened as the checkpoint that it stands for.
//!
//! Knows nothing of architectures, and never reads a tensor's data or leaves the checkpoint's
//! folder, but for the scheduler's configuration, which diffusers keeps beside a model's. It writes
//! nothing but what stands in a GGUF file, and a tokenizer that it makes of a vocabulary, to a
//! temporary folder, when it is asked to.

mod adapter;
mod beside;
mod error;
mod files;
mod gguf;
mod header;
mod hub_cache;
mod locate;
mod model_index;
mod pipeline;
mod quantized;
mod repeated;
mod repository;
mod sentence;
mod side_keys;
mod tensors;
mod tokenizer_keys;
mod vocabulary;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use dlc_files::{FileStamp, IoError};
use dlc_ir::{Sentence, SideFile, Task};
use serde_json::{Map, Value, json};

pub use adapter::AdapterFiles;
pub(crate) use beside::WEIGHT_EXTENSIONS;
pub use error::CheckpointError;
pub(crate) use error::shown;
pub(crate) use hub_cache::{MAIN, RepositoryFolder, is_commit, snapshot_name};
pub use pipeline::{Part, PartGraph, PartRow, Role, TextRole, TokenizerPlace};
pub(crate) use quantized::METHODS;
pub(crate) use repository::{Kind, Repository, is_inside};
pub(crate) use side_keys::SideKeys;
pub use tensors::{FileMetadata, StoredType, TensorRecord};

use locate::{Location, WeightFiles};
use model_index::MODEL_INDEX;
use pipeline::{Pipeline, Plan};
use sentence::SentenceModules;
use vocabulary::{MadeTokenizer, MakeError};

/// The largest JSON file that is read.
const CONFIG_CAP: u64 = 16 << 20;
const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const SCHEDULER_CONFIG: &str = "scheduler_config.json";

/// An opened checkpoint. Its weights are mapped, so its files must stay as they are for as long as
/// a [`Blob`](dlc_ir::Blob) of it lives.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    config: Map<String, Value>,
    generation_config: Option<Map<String, Value>>,
    scheduler: Option<PathBuf>,
    /// The folder of the pipeline around a model of diffusers.
    pipeline: Option<PathBuf>,
    /// What else of that pipeline is compiled.
    whole: Pipeline,
    sentence: SentenceModules,
    tensors: BTreeMap<String, TensorRecord>,
    /// Shards by the names of tensors that the index says they hold, and that no shard holds.
    absent: BTreeMap<String, String>,
    /// Whether the configuration isn't the file's.
    overlaid: bool,
    files: Vec<CheckpointFile>,
    /// What else is to be said of the files.
    notes: Vec<String>,
    /// What a GGUF file has instead of files beside the weights.
    derived: Option<gguf::Derived>,
    /// What folders without a tokenizer were given.
    made: Vec<(TokenizerPlace, MadeTokenizer)>,
    /// Why they were given none, though they have a vocabulary.
    not_made: Vec<(TokenizerPlace, String)>,
    /// The architecture that was asked for in the place of the configuration's.
    retargeted: Option<&'static str>,
    /// What came of layers that are quantised in the files.
    unpacked: quantized::Unpacked,
}

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// What it was before it was read.
    pub stamp: FileStamp,
}

impl CheckpointFile {
    /// Reads a file with `read`, which also tells its size.
    fn read<T>(
        path: PathBuf,
        read: impl FnOnce(&Path) -> Result<(T, u64), CheckpointError>,
    ) -> Result<(T, Self), CheckpointError> {
        let stamp = FileStamp::of(&path);
        let (content, size) = read(&path)?;
        let stamp = stamp.map_err(|e| CheckpointError::read(&path, e))?;
        Ok((content, Self { path, size, stamp }))
    }
}

impl Checkpoint {
    /// Opens a folder with `config.json` and `model.safetensors` (or its shards and their index),
    /// or one `.safetensors` file with `config.json` beside it, of which then only that file is
    /// read, or one `.gguf` file. Of diffusers, a folder with `config.json` and `diffusion_pytorch_model.safetensors`,
    /// or a pipeline's with such a folder in it, called `transformer` or `unet`, and the further
    /// [`parts`](Self::parts) that its class has.
    ///
    /// # Errors
    /// [`CheckpointError`] with the first file, and the tensor in it, that is missing, damaged or
    /// of another format.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let location = locate::locate(path)?;
        if let WeightFiles::Gguf(file) = location.weights {
            return gguf::open(location.folder, file);
        }
        let around = above(&location.folder);
        let whole = match (location.component, model_index::read(&around)?) {
            (Some(denoiser), Some(index)) => Plan::of(&around.join(MODEL_INDEX), &index, denoiser)?,
            _ => None,
        };
        let mut checkpoint = Self::open_at(location, Some(around.clone()))?;
        if let Some(plan) = whole {
            checkpoint.whole = plan.open(&around)?;
        }
        Ok(checkpoint)
    }

    /// Opens what is at `location`; `around` is the folder of the pipeline that a model of
    /// diffusers may be of.
    fn open_at(location: Location, around: Option<PathBuf>) -> Result<Self, CheckpointError> {
        let mut files = Vec::new();
        let mut read = |path: PathBuf| {
            let (object, file) =
                CheckpointFile::read(path, |path| files::read_object(path, CONFIG_CAP))?;
            files.push(file);
            Ok::<_, CheckpointError>(object)
        };
        let config = read(location.folder.join(CONFIG))?;
        let generation = location.folder.join(GENERATION_CONFIG);
        let generation_config = if generation.exists() {
            Some(read(generation)?)
        } else {
            None
        };
        let is_pipeline = |folder: &PathBuf| {
            folder.join("scheduler").is_dir() || folder.join(MODEL_INDEX).is_file()
        };
        let pipeline = around
            .filter(|_| config.contains_key("_class_name"))
            .filter(is_pipeline);
        let scheduler = pipeline
            .as_ref()
            .map(|pipeline| pipeline.join("scheduler").join(SCHEDULER_CONFIG))
            .filter(|path| path.exists());
        if let Some(path) = &scheduler {
            let (file, read) = CheckpointFile::read(path.clone(), files::open)?;
            drop(file);
            files::check_size(path, read.size, CONFIG_CAP)?;
            files.push(read);
        }
        let (sentence, tensors) = (SentenceModules::read(&location.folder)?, BTreeMap::new());
        let (absent, overlaid) = (BTreeMap::new(), false);
        let mut notes = location.notes;
        if let Some(pipeline) = &pipeline {
            notes.extend(model_index::warnings(pipeline, scheduler.as_deref())?);
        }
        let mut checkpoint = Self {
            folder: location.folder,
            config,
            generation_config,
            scheduler,
            pipeline,
            whole: Pipeline::default(),
            sentence,
            tensors,
            absent,
            overlaid,
            files,
            notes,
            derived: None,
            made: Vec::new(),
            not_made: Vec::new(),
            retargeted: None,
            unpacked: quantized::Unpacked::default(),
        };
        match location.weights {
            WeightFiles::One(path) | WeightFiles::Gguf(path) => checkpoint.add_file(path)?,
            WeightFiles::Sharded { index } => checkpoint.add_shards(&index)?,
        }
        checkpoint.unpack()?;
        Ok(checkpoint)
    }

    /// The configuration.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Whether the configuration was changed by [`overlay`](Self::overlay).
    pub fn is_overlaid(&self) -> bool {
        self.overlaid
    }

    /// Takes `config` for the configuration, and `tensors` for those of the same names, or of the
    /// same names but for a prefix.
    pub fn overlay(&mut self, config: Map<String, Value>, tensors: BTreeMap<String, TensorRecord>) {
        let same = |a: &str, b: &str| {
            a.strip_suffix(b)
                .is_some_and(|start| start.is_empty() || start.ends_with('.'))
        };
        self.tensors
            .retain(|old, _| !tensors.keys().any(|new| same(old, new) || same(new, old)));
        self.tensors.extend(tensors);
        self.overlaid |= self.config != config;
        self.config = config;
    }

    /// Takes `architecture` for the configuration's.
    pub fn retarget(&mut self, architecture: &'static str) {
        let mut config = self.config.clone();
        config.insert("architectures".into(), json!([architecture]));
        self.overlay(config, BTreeMap::new());
        self.retargeted = Some(architecture);
    }

    /// The architecture that was taken for the configuration's.
    pub fn retargeted(&self) -> Option<&'static str> {
        self.retargeted
    }

    /// Where the configuration is.
    pub fn config_path(&self) -> PathBuf {
        match (&self.derived, self.files.first()) {
            (Some(_), Some(file)) => file.path.clone(),
            _ => self.folder.join(CONFIG),
        }
    }

    /// The defaults for generating text, where the checkpoint has them.
    pub fn generation_config(&self) -> Option<&Map<String, Value>> {
        self.generation_config.as_ref()
    }

    /// The configuration of the scheduler, where there is a pipeline of diffusers that has one.
    /// Only schedulers read it: diffusers writes `Infinity` there, which is no JSON.
    pub fn scheduler(&self) -> Option<&Path> {
        self.scheduler.as_deref()
    }

    /// How Sentence Transformers makes the vector of a text, where the checkpoint says it.
    pub fn sentence(&self) -> Option<&Sentence> {
        self.sentence.sentence()
    }

    /// Whether the checkpoint says that the model without its head makes vectors of texts, whatever
    /// head its configuration names.
    pub fn makes_vectors(&self) -> bool {
        self.sentence.makes_vectors()
    }

    /// What side files say and a model for `task` doesn't heed, a line each.
    pub fn warnings(&self, task: Task) -> Vec<String> {
        self.notes
            .iter()
            .cloned()
            .chain(self.made_notes())
            .chain(self.whole.notes.iter().cloned())
            .chain(repeated::warnings(self.named_files()))
            .chain(
                self.tokenizer_places()
                    .iter()
                    .flat_map(TokenizerPlace::unheeded),
            )
            .chain(self.sentence.warnings(task))
            .collect()
    }

    /// What tokenizers were made of, and what was left out; of several each with its folder.
    fn made_notes(&self) -> impl Iterator<Item = String> {
        self.made.iter().flat_map(|(place, made)| {
            let notes = made.notes.iter();
            notes.map(|note| place.said(note))
        })
    }

    /// All files but weights that something is read from, each once.
    fn named_files(&self) -> impl Iterator<Item = SideFile> {
        let index = self.pipeline.iter().map(|folder| folder.join(MODEL_INDEX));
        let opened = self.files.iter().map(|file| file.path.clone());
        let named = opened.chain(index).filter_map(|path| {
            let name = path.file_name()?.to_str()?.to_owned();
            Some(SideFile { name, path })
        });
        let mut seen = BTreeSet::new();
        let all: Vec<SideFile> = named.chain(self.side_files()).collect();
        all.into_iter()
            .filter(move |file| seen.insert(file.path.clone()))
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorRecord> {
        self.tensors.get(name)
    }

    /// The shard that the index says holds the tensor `name`, if no shard does.
    pub fn absent_shard(&self, name: &str) -> Option<&str> {
        self.absent.get(name).map(String::as_str)
    }

    /// All tensors by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorRecord)> {
        self.tensors
            .iter()
            .map(|(name, record)| (name.as_str(), record))
    }

    /// The names of all tensors, sorted.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The folder of `config.json`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of the files beside the weights; nothing for a GGUF file whose weren't written.
    fn beside(&self) -> Option<&Path> {
        let derived = self.derived.as_ref();
        derived
            .is_none_or(gguf::Derived::is_written)
            .then_some(self.folder.as_path())
    }

    /// Whether everything is in one GGUF file.
    pub fn is_gguf(&self) -> bool {
        self.derived.is_some()
    }

    /// The files that a checkpoint of a GGUF file has beside its weights, by name; none of another
    /// one.
    pub fn derived_files(&self) -> &[(&'static str, Vec<u8>)] {
        let files = self.derived.as_ref().map(gguf::Derived::files);
        files.unwrap_or_default()
    }

    /// Writes what a GGUF file has instead of files beside the weights into a temporary folder in
    /// `parent`, which then is the checkpoint's folder and goes with it. Of a folder with a
    /// vocabulary and no `tokenizer.json`, makes one in such a folder.
    ///
    /// # Errors
    /// [`IoError`] where it can't be written.
    pub fn write_derived(&mut self, parent: &Path) -> Result<(), IoError> {
        if let Some(derived) = &mut self.derived {
            self.folder = derived.write(parent)?;
            return Ok(());
        }
        for place in self.tokenizer_places() {
            match MadeTokenizer::of(&place, parent) {
                Ok(made) => self.made.extend(made.map(|made| (place, made))),
                Err(MakeError::Files(problem)) => self.not_made.push((place, problem)),
                Err(MakeError::Write(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// The path of `tokenizer.json`, where there is one: the folder's, or the one that was made. Of
    /// a pipeline that of its first tokenizer.
    pub fn tokenizer(&self) -> Option<PathBuf> {
        self.tokenizer_at(self.tokenizer_places().first()?)
    }

    /// The name of the checkpoint's folder, or of the pipeline's around it, or of the GGUF file
    /// without its ending; `ORG/NAME@REVISION` in Hugging Face's cache.
    pub fn name(&self) -> String {
        let last = |path: &Path| {
            path.file_name()
                .map(|name| name.to_string_lossy().into_owned())
        };
        if let Some(name) = self.gguf_name() {
            return name;
        }
        let folder = self.pipeline.as_ref().unwrap_or(&self.folder);
        hub_cache::snapshot_name(folder)
            .or_else(|| last(folder))
            .or_else(|| last(&folder.canonicalize().ok()?))
            .unwrap_or_else(|| "model".into())
    }

    /// The files that were read, in the order in which they were read: configurations, the shard
    /// index, weights by name.
    pub fn files(&self) -> &[CheckpointFile] {
        &self.files
    }

    /// Bytes of the files with its weights, those of its parts aside.
    pub fn weight_bytes(&self) -> u64 {
        let is_weights = |file: &&CheckpointFile| file.path.extension().is_none_or(|e| e != "json");
        self.files.iter().filter(is_weights).map(|f| f.size).sum()
    }

    fn gguf_name(&self) -> Option<String> {
        let path = &self.files.first().filter(|_| self.is_gguf())?.path;
        Some(path.file_stem()?.to_string_lossy().into_owned())
    }

    fn add_file(&mut self, path: PathBuf) -> Result<(), CheckpointError> {
        let (tensors, file) = CheckpointFile::read(path, tensors::read_tensors)?;
        for (name, record) in tensors {
            if let Some(other) = self.tensors.get(&name) {
                let problem = format!(
                    "is in {} as well. Keep it in one shard",
                    other.file.display()
                );
                return Err(CheckpointError::tensor(&file.path, &name, problem));
            }
            self.tensors.insert(name, record);
        }
        self.files.push(file);
        Ok(())
    }

    fn add_shards(&mut self, index: &Path) -> Result<(), CheckpointError> {
        let (shards, file) = CheckpointFile::read(index.to_owned(), locate::read_index)?;
        let named: BTreeSet<&String> = shards.values().collect();
        self.files.push(file);
        for shard in named {
            self.add_file(self.folder.join(shard))?;
        }
        // Conversions drop buffers and keep the index: what no model asks for isn't missed.
        self.absent = shards
            .into_iter()
            .filter(|(tensor, _)| !self.tensors.contains_key(tensor))
            .collect();
        Ok(())
    }
}

/// The folder that `folder` lies in.
fn above(folder: &Path) -> PathBuf {
    match (folder.file_name(), folder.parent()) {
        (Some(_), Some(parent)) if parent.as_os_str().is_empty() => PathBuf::from("."),
        (Some(_), Some(parent)) => parent.to_owned(),
        _ => folder.join(".."),
    }
}
