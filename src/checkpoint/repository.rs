//! Which files of a repository of the Hub a checkpoint or an adapter is made of: those that the
//! opener reads or a bundle takes over, and nothing else.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

use super::beside::{DEFAULT_TEMPLATE, WEIGHT_EXTENSIONS, side_file_names};
use super::locate::{self, Holder, WeightNames};
use super::model_index::{self, MODEL_INDEX};
use super::pipeline::{self, Plan};
use super::sentence::{self, MODULES, POOLING, SETTINGS, TRANSFORMER_CONFIGS};
use super::{CONFIG, CheckpointError, GENERATION_CONFIG, SCHEDULER_CONFIG, adapter, quantized};

/// Most files that are taken of a repository.
const MOST_FILES: usize = 2000;

/// What is looked for in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Checkpoint,
    Adapter,
}

/// The files of a repository, by their names.
#[derive(Debug)]
pub(crate) struct Repository<'a> {
    /// What errors call it.
    pub name: &'a Path,
    pub kind: Kind,
    /// Names with slashes, sorted.
    pub files: &'a BTreeSet<String>,
}

/// A checkpoint's own folder in a repository, with a slash after it, and its weights there.
struct Place {
    prefix: String,
    weights: WeightNames,
}

impl Repository<'_> {
    /// The small files that say which others are needed.
    ///
    /// # Errors
    /// [`CheckpointError`] where nothing can be read of what there is: weights in other formats, an
    /// adapter instead of a checkpoint, several models.
    pub fn signposts(&self) -> Result<Vec<String>, CheckpointError> {
        if self.kind == Kind::Adapter {
            return self.adapter_weights().map(|_| vec![]);
        }
        let place = self.place()?;
        let modules = place.prefix.clone() + MODULES;
        // Which parts a pipeline has is known once its index is there.
        let is_pipeline = !place.prefix.is_empty();
        let parts = pipeline::all_folders().filter(|_| is_pipeline);
        let parts = parts.filter_map(|folder| self.place_in(folder).ok());
        let indices: Vec<String> = [place]
            .into_iter()
            .chain(parts)
            .filter_map(|Place { prefix, weights }| match weights {
                WeightNames::Sharded { index } => Some(prefix + &index),
                WeightNames::One(_) => None,
            })
            .collect();
        let names = [modules, MODEL_INDEX.to_owned()].into_iter().chain(indices);
        Ok(names.filter(|name| self.files.contains(name)).collect())
    }

    /// All files that are needed; the signposts lie in `snapshot`.
    ///
    /// # Errors
    /// See [`signposts`](Self::signposts); also for a shard index that can't be read.
    pub fn needed(&self, snapshot: &Path) -> Result<BTreeSet<String>, CheckpointError> {
        let mut needed: BTreeSet<String> = self
            .side_files(snapshot)?
            .into_iter()
            .filter(|name| self.files.contains(name))
            .collect();
        if self.kind == Kind::Adapter {
            needed.insert(self.adapter_weights()?);
            return Ok(needed);
        }
        let index = index(snapshot).unwrap_or_default();
        let parts = Plan::folders(&index).into_iter();
        let parts = parts.map(|folder| self.place_in(folder));
        for place in [self.place()].into_iter().chain(parts) {
            let Place { prefix, weights } = place?;
            needed.insert(prefix.clone() + CONFIG);
            needed.insert(prefix.clone() + weights.file());
            if let WeightNames::Sharded { index } = &weights {
                let (shards, _) = locate::read_index(&snapshot.join(&prefix).join(index))?;
                needed.extend(shards.into_values().map(|shard| prefix.clone() + &shard));
            }
        }
        needed.extend(self.step_files(snapshot));
        if needed.len() > MOST_FILES {
            let problem = format!("needs {} files, more than {MOST_FILES}", needed.len());
            return Err(CheckpointError::file(self.name, problem));
        }
        Ok(needed)
    }

    /// The files that are taken over where they are there, whether they are or not.
    ///
    /// # Errors
    /// See [`signposts`](Self::signposts).
    pub fn side_files(&self, snapshot: &Path) -> Result<Vec<String>, CheckpointError> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        if self.kind == Kind::Adapter {
            let of_model = [CONFIG, GENERATION_CONFIG];
            let names = side_file_names().filter(|name| !of_model.contains(name));
            let mut names: Vec<String> = names.map(str::to_owned).collect();
            names.push(adapter::CONFIG.to_owned());
            return Ok(names);
        }
        let prefix = self.place()?.prefix;
        if !prefix.is_empty() {
            let scheduler = format!("scheduler/{SCHEDULER_CONFIG}");
            let mut names: Vec<String> = owned(&[MODEL_INDEX, &scheduler]);
            if let Some(index) = index(snapshot) {
                names.extend(Plan::tokenizer_files(&index));
            }
            return Ok(names);
        }
        let mut names: Vec<String> = side_file_names().map(str::to_owned).collect();
        names.extend(owned(&[MODULES, SETTINGS, DEFAULT_TEMPLATE]));
        names.extend(owned(&TRANSFORMER_CONFIGS));
        names.extend(owned(&quantized::file_names()));
        let steps = self.step_folders(snapshot);
        names.extend(steps.iter().map(|folder| format!("{folder}/{CONFIG}")));
        Ok(names)
    }

    fn adapter_weights(&self) -> Result<String, CheckpointError> {
        adapter::among(self.holder(self.name), &self.names_in(""))
    }

    /// The repository, or a folder in it.
    fn holder<'a>(&'a self, path: &'a Path) -> Holder<'a> {
        Holder {
            path,
            repository: Some(self.name),
        }
    }

    fn place(&self) -> Result<Place, CheckpointError> {
        let component =
            locate::component(self.holder(self.name), |name| self.files.contains(name))?;
        self.place_in(component.unwrap_or_default())
    }

    /// The weights of a folder, which may be the whole repository's.
    fn place_in(&self, folder: &str) -> Result<Place, CheckpointError> {
        let (prefix, path) = if folder.is_empty() {
            (String::new(), self.name.to_owned())
        } else {
            (format!("{folder}/"), self.name.join(folder))
        };
        let (weights, _) = locate::among(self.holder(&path), &self.names_in(&prefix))?;
        Ok(Place { prefix, weights })
    }

    /// The names of the files directly in a folder, which ends in a slash.
    fn names_in(&self, prefix: &str) -> Vec<String> {
        let inside = self
            .files
            .iter()
            .filter_map(|name| name.strip_prefix(prefix));
        inside
            .filter(|name| !name.contains('/'))
            .map(str::to_owned)
            .collect()
    }

    /// The folders of the steps of Sentence Transformers.
    fn step_folders(&self, snapshot: &Path) -> Vec<String> {
        if self.files.contains(MODULES) {
            sentence::step_folders(snapshot)
        } else {
            vec![POOLING.to_owned()]
        }
    }

    /// The files in the folders of the steps, but for weights in other formats.
    fn step_files(&self, snapshot: &Path) -> Vec<String> {
        let of = |folder: String| {
            let prefix = folder + "/";
            let names = self.names_in(&prefix);
            names.into_iter().map(move |name| prefix.clone() + &name)
        };
        let all = self.step_folders(snapshot).into_iter().flat_map(of);
        all.filter(|name| {
            let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
            ending == "safetensors" || !WEIGHT_EXTENSIONS.contains(&ending)
        })
        .collect()
    }
}

/// The index of a pipeline in `snapshot`, if it can be read.
fn index(snapshot: &Path) -> Option<Map<String, Value>> {
    model_index::read(snapshot).ok().flatten()
}

/// Whether a name with slashes is that of a file inside of a folder, on any system.
pub(crate) fn is_inside(name: &str) -> bool {
    /// Longest name, and most folders around it.
    const LONGEST: usize = 512;
    const DEEPEST: usize = 8;
    name.len() <= LONGEST
        && name.split('/').count() <= DEEPEST
        && name.split('/').all(locate::is_plain_name)
}
