//! A bundle's folder: the manifest, checked, and the files it names.
//!
//! A bundle may come from anyone: sizes are capped, names stay inside the folder, and what the manifest says about files is
//! compared with what is there. Never writes.

mod sampling;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use dlc_exporters::manifest::{FORMAT, FileRecord, GraphRecord, MANIFEST_CAP, MANIFEST_FILE, Manifest, WEIGHTS_FILE, WeightRecord};
use serde::Deserialize;

use super::{Result, RuntimeError};
use crate::files::read_input;

/// Largest vocabulary and longest context that a manifest may name.
const LARGEST: usize = 1 << 28;

/// An opened bundle: everything its manifest names is there and has the recorded size.
#[derive(Debug, Clone)]
pub struct Bundle {
    folder: PathBuf,
    manifest: Manifest,
}

impl Bundle {
    /// Opens the folder and checks its manifest against its files, sizes only; [`Self::verify_hashes`] compares contents.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST_FILE);
        let text = read_input(&path, MANIFEST_CAP)?;
        let manifest = parse(&path, &text)?;
        let bundle = Self { folder: folder.to_path_buf(), manifest };
        let problems = bundle.problems();
        if problems.is_empty() { Ok(bundle) } else { Err(RuntimeError::file(&path, problems.join("; "))) }
    }

    /// The bundle's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The graph of this name; the error lists the names there are.
    pub fn graph(&self, name: &str) -> Result<&GraphRecord> {
        self.manifest.graphs.iter().find(|graph| graph.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.manifest.graphs.iter().map(|graph| graph.name.as_str()).collect();
            RuntimeError::file(&self.folder.join(MANIFEST_FILE), format!("there is no graph `{name}`, but {}", names.join(", ")))
        })
    }

    /// The ONNX file of a graph.
    pub fn graph_path(&self, graph: &GraphRecord) -> PathBuf {
        self.folder.join(&graph.file)
    }

    /// The file that holds the weights.
    pub fn weights_path(&self) -> PathBuf {
        self.folder.join(WEIGHTS_FILE)
    }

    /// A file that lies in the bundle's folder, such as `tokenizer.json`. None if it isn't there.
    pub fn side_file(&self, name: &str) -> Option<PathBuf> {
        let path = self.folder.join(name);
        (is_contained(name) && path.is_file()).then_some(path)
    }

    /// Compares the content of every file with the manifest's hashes, and names all that differ.
    pub fn verify_hashes(&self) -> Result<()> {
        let mut wrong = Vec::new();
        for (name, record) in &self.manifest.files {
            let path = self.folder.join(name);
            let found = FileRecord::of_file(&path)?;
            if found != *record {
                wrong.push(name.as_str());
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        Err(RuntimeError::file(&self.folder, format!("changed since it was written: {}. Compile it again, or copy it again", wrong.join(", "))))
    }

    /// All that is wrong with the manifest, on its own and against the folder.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let manifest = &self.manifest;
        if manifest.graphs.is_empty() {
            problems.push("it names no graph".to_owned());
        }
        let model = &manifest.model;
        if let Some(diffusion) = &model.diffusion {
            problems.extend(sampling::model_problems(diffusion));
        } else {
            for (what, number) in [("vocabulary", model.vocab_size), ("context", model.context_length)] {
                if !(1..=LARGEST).contains(&number) {
                    problems.push(format!("a {what} of {number} is absurd"));
                }
            }
        }
        problems.extend(sampling::schedule_problems(manifest));
        if let Some(share) = manifest.draft_acceptance.filter(|share| !(0.0..=1.0).contains(share)) {
            problems.push(format!("a draft whose guesses are right at a share of {share} is absurd"));
        }
        let mut graphs = BTreeSet::new();
        for graph in &manifest.graphs {
            if !graphs.insert(graph.name.as_str()) {
                problems.push(format!("graph `{}` is named twice", graph.name));
            }
            if !manifest.files.contains_key(&graph.file) {
                problems.push(format!("graph `{}` is in `{}`, which isn't among the files", graph.name, graph.file));
            }
        }
        for (name, record) in &manifest.files {
            problems.extend(self.file_problem(name, record));
        }
        let mut weights = BTreeSet::new();
        let room = manifest.files.get(WEIGHTS_FILE).map_or(0, |record| record.bytes);
        for weight in &manifest.weights {
            if !weights.insert(weight.name.as_str()) {
                problems.push(format!("weight `{}` is named twice", weight.name));
            }
            problems.extend(weight_problem(weight, room, &graphs));
        }
        problems
    }

    fn file_problem(&self, name: &str, record: &FileRecord) -> Option<String> {
        if !is_contained(name) {
            return Some(format!("`{name}` isn't a plain file name"));
        }
        // A link must not lead out of the folder.
        let inside = |path: PathBuf| fs::canonicalize(&self.folder).is_ok_and(|folder| path.starts_with(folder));
        match fs::canonicalize(self.folder.join(name)) {
            Err(error) => Some(format!("`{name}` can't be opened: {error}")),
            Ok(path) => match fs::metadata(&path) {
                Ok(data) if !data.is_file() || !inside(path) => Some(format!("`{name}` isn't a file of the bundle's folder")),
                Ok(data) if data.len() != record.bytes => {
                    Some(format!("`{name}` has {} bytes instead of {}: it was changed, or not copied to the end", data.len(), record.bytes))
                }
                Ok(_) => None,
                Err(error) => Some(format!("`{name}` can't be opened: {error}")),
            },
        }
    }
}

/// The version is read first: a later layout is named as such, not as a misspelt field.
fn parse(path: &Path, text: &[u8]) -> Result<Manifest> {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    let invalid = |error: serde_yaml::Error| RuntimeError::file(path, format!("isn't a bundle's manifest: {error}"));
    let head: Head = serde_yaml::from_slice(text).map_err(invalid)?;
    if head.format != FORMAT {
        let reason = format!("its layout has version {}, this dlc reads version {FORMAT}", head.format);
        return Err(RuntimeError::unsupported(path.display().to_string(), reason, "Compile the bundle again, or use the dlc that wrote it"));
    }
    serde_yaml::from_slice(text).map_err(invalid)
}

fn weight_problem(weight: &WeightRecord, room: u64, graphs: &BTreeSet<&str>) -> Option<String> {
    let name = &weight.name;
    if weight.offset.checked_add(weight.bytes).is_none_or(|end| end > room) {
        return Some(format!("weight `{name}` ends after the {room} bytes of {WEIGHTS_FILE}"));
    }
    let unknown = weight.graphs.iter().find(|graph| !graphs.contains(graph.as_str()));
    unknown.map(|graph| format!("weight `{name}` is used by `{graph}`, which isn't a graph of the bundle"))
}

/// Whether the name is that of a file in the folder, or in a folder there.
fn is_contained(name: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part.len() <= 255 && part != "." && part != ".." && !part.contains(['\\', '\0']);
    name.split('/').count() <= 2 && name.split('/').all(plain)
}

#[cfg(test)]
mod tests;
