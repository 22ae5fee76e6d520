//! A bundle's folder: the manifest, checked, and the files it names.
//!
//! A bundle may come from anyone: sizes are capped, names stay inside the folder, and what the
//! manifest says about files is compared with what is there. Never writes.

mod contents;
mod model;
mod sampling;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use dlc_bundle::{
    FORMAT, FileRecord, GraphRecord, MANIFEST_CAP, MANIFEST_FILE, Manifest, WeightRecord,
    check_graph,
};
use dlc_files::guard::contain_panics;
use dlc_files::{read_document, yaml};
use serde::Deserialize;

use super::{Result, RuntimeError};

/// Largest vocabulary and longest context that a manifest may name.
const LARGEST: usize = 1 << 28;

/// The longest name of a file, folders before it included.
const LONGEST_NAME: usize = 1024;

/// An opened bundle: everything its manifest names is there and holds what was recorded.
#[derive(Debug, Clone)]
pub struct Bundle {
    folder: PathBuf,
    manifest: Manifest,
}

impl Bundle {
    /// Opens the folder and checks its manifest against its files, their contents included.
    ///
    /// # Errors
    /// [`RuntimeError::File`] for a manifest that can't be read or contradicts itself, and for
    /// files that are missing or aren't what it says.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::open_cached(folder, None)
    }

    /// As [`Self::open`], but weights aren't read that the folder `cache` has the hash of, unless
    /// they changed since.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_cached(folder: &Path, cache: Option<&Path>) -> Result<Self> {
        let path = folder.join(MANIFEST_FILE);
        let text = read_document(&path, MANIFEST_CAP)?;
        let manifest = parse(&path, &text)?;
        let bundle = Self {
            folder: folder.to_path_buf(),
            manifest,
        };
        let problems = bundle.problems();
        if !problems.is_empty() {
            return Err(RuntimeError::file(&path, shown(problems).join("; ")));
        }
        let changed = contents::changed(folder, &bundle.manifest, cache)?;
        if changed.is_empty() {
            return Ok(bundle);
        }
        Err(RuntimeError::file(
            folder,
            format!(
                "changed since it was written: {}. Compile it again, or copy it again",
                shown(changed).join(", ")
            ),
        ))
    }

    /// The bundle that was just written to `folder`, unchecked.
    pub fn of_written(folder: &Path, manifest: Manifest) -> Self {
        Self {
            folder: folder.to_path_buf(),
            manifest,
        }
    }

    /// The bundle's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The graph of this name.
    ///
    /// # Errors
    /// [`RuntimeError::File`], which lists the names there are.
    pub fn graph(&self, name: &str) -> Result<&GraphRecord> {
        self.manifest
            .graphs
            .iter()
            .find(|graph| graph.name == name)
            .ok_or_else(|| {
                let names: Vec<&str> = self
                    .manifest
                    .graphs
                    .iter()
                    .map(|graph| graph.name.as_str())
                    .collect();
                RuntimeError::file(
                    &self.folder.join(MANIFEST_FILE),
                    format!("there is no graph `{name}`, but {}", names.join(", ")),
                )
            })
    }

    /// Whether there is a graph of this name.
    pub fn has_graph(&self, name: &str) -> bool {
        self.manifest.graphs.iter().any(|graph| graph.name == name)
    }

    /// The ONNX file of a graph.
    pub fn graph_path(&self, graph: &GraphRecord) -> PathBuf {
        self.folder.join(&graph.file)
    }

    /// Checks that the ONNX file of a graph has the boundary and the weights that the manifest
    /// lists, and takes nothing from other files.
    ///
    /// # Errors
    /// [`RuntimeError::Check`] for what differs and for a file that can't be read;
    /// [`RuntimeError::File`] for one that the reader fails on.
    pub fn check_graph(&self, graph: &GraphRecord) -> Result<()> {
        let path = self.graph_path(graph);
        let checked = contain_panics("the ONNX reader", || {
            check_graph(&path, graph, &self.manifest)
        });
        Ok(checked.map_err(|problem| RuntimeError::file(&path, problem))??)
    }

    /// The files that hold weights, by their names in the manifest.
    pub fn weights_paths(&self) -> BTreeMap<&str, PathBuf> {
        let files = self.manifest.weights_files().into_iter();
        files.map(|file| (file, self.folder.join(file))).collect()
    }

    /// A file that the manifest lists, such as `tokenizer.json` or `1_Pooling/config.json`. Others
    /// in the folder aren't the bundle's.
    pub fn side_file(&self, name: &str) -> Option<PathBuf> {
        self.manifest
            .files
            .contains_key(name)
            .then(|| self.folder.join(name))
    }

    /// What lies in the folder and isn't listed, see [`Manifest::strays`].
    ///
    /// # Errors
    /// [`RuntimeError::File`] for a folder that can't be read.
    pub fn strays(&self) -> Result<Vec<String>> {
        let unreadable = |error: std::io::Error| {
            RuntimeError::file(&self.folder, format!("can't be read: {error}"))
        };
        self.manifest.strays(&self.folder).map_err(unreadable)
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
            problems.extend(model.prompts.iter().flat_map(sampling::prompt_problems));
        } else {
            for (what, number) in [
                ("vocabulary", model.vocab_size),
                ("context", model.context_length),
            ] {
                if !(1..=LARGEST).contains(&number) {
                    problems.push(format!("a {what} of {number} is absurd"));
                }
            }
        }
        problems.extend(model::problems(manifest));
        problems.extend(sampling::schedule_problems(manifest));
        if let Some(share) = manifest
            .draft_acceptance
            .filter(|share| !(0.0..=1.0).contains(share))
        {
            problems.push(format!(
                "a draft whose guesses are right at a share of {share} is absurd"
            ));
        }
        let mut graphs = BTreeSet::new();
        for graph in &manifest.graphs {
            if !graphs.insert(graph.name.as_str()) {
                problems.push(format!("graph `{}` is named twice", graph.name));
            }
            if !manifest.files.contains_key(&graph.file) {
                problems.push(format!(
                    "graph `{}` is in `{}`, which isn't among the files",
                    graph.name, graph.file
                ));
            } else if folder_of(&graph.file) != folder_of(manifest.weights_of(graph))
                && is_contained(&graph.file)
            {
                problems.push(format!(
                    "graph `{}` is in `{}`, which isn't a file beside the weights",
                    graph.name, graph.file
                ));
            }
        }
        for (name, record) in &manifest.files {
            problems.extend(self.file_problem(name, record));
        }
        problems.extend(weight_problems(manifest, &graphs));
        problems
    }

    fn file_problem(&self, name: &str, record: &FileRecord) -> Option<String> {
        if !is_contained(name) {
            return Some(format!("`{name}` isn't a plain file name"));
        }
        // A link must not lead out of the folder.
        let inside = |path: PathBuf| {
            fs::canonicalize(&self.folder).is_ok_and(|folder| path.starts_with(folder))
        };
        match fs::canonicalize(self.folder.join(name)) {
            Err(error) => Some(format!("`{name}` can't be opened: {error}")),
            Ok(path) => match fs::metadata(&path) {
                Ok(data) if !data.is_file() || !inside(path) => {
                    Some(format!("`{name}` isn't a file of the bundle's folder"))
                }
                Ok(data) if data.len() != record.bytes => Some(format!(
                    "`{name}` has {} bytes instead of {}: it was changed, or not copied to the end",
                    data.len(),
                    record.bytes
                )),
                Ok(_) => None,
                Err(error) => Some(format!("`{name}` can't be opened: {error}")),
            },
        }
    }
}

/// A later layout is named as such, not as a misspelt field.
fn parse(path: &Path, text: &str) -> Result<Manifest> {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    let invalid =
        |error: String| RuntimeError::file(path, format!("isn't a bundle's manifest: {error}"));
    let manifest = yaml::read::<Manifest>(text);
    let format = match &manifest {
        Ok(manifest) => manifest.format,
        Err(_) => yaml::read::<Head>(text).map_err(invalid)?.format,
    };
    if format != FORMAT {
        let reason = format!("its layout has version {format}, this dlc reads version {FORMAT}");
        return Err(RuntimeError::unsupported(
            path.display().to_string(),
            reason,
            "Compile the bundle again, or use the dlc that wrote it",
        ));
    }
    manifest.map_err(invalid)
}

/// All that is wrong with weights and the files that they are in.
fn weight_problems(manifest: &Manifest, graphs: &BTreeSet<&str>) -> Vec<String> {
    let mut problems = Vec::new();
    let mut weights = BTreeSet::new();
    let files = manifest.weights_files().into_iter();
    let lost = files.filter(|file| !manifest.files.contains_key(*file));
    problems.extend(
        lost.filter(|_| !manifest.weights.is_empty())
            .map(|file| format!("the weights are in `{file}`, which isn't among the files")),
    );
    let by_name = manifest
        .graphs
        .iter()
        .map(|graph| (graph.name.as_str(), graph));
    let by_name: BTreeMap<&str, &GraphRecord> = by_name.collect();
    for weight in &manifest.weights {
        let users = weight.graphs.iter();
        let users = users.filter_map(|name| by_name.get(name.as_str()));
        let mut of_users: Vec<&str> = users.map(|graph| manifest.weights_of(graph)).collect();
        of_users.dedup();
        let file = of_users.first().copied().unwrap_or(&manifest.weights_file);
        if of_users.len() > 1 {
            problems.push(format!(
                "weight `{}` is in several files: {}",
                weight.name,
                of_users.join(", ")
            ));
        }
        if !weights.insert(weight.name.as_str()) {
            problems.push(format!("weight `{}` is named twice", weight.name));
        }
        let room = manifest.files.get(file).map_or(0, |record| record.bytes);
        problems.extend(weight_problem(weight, file, room, graphs));
    }
    problems
}

fn weight_problem(
    weight: &WeightRecord,
    file: &str,
    room: u64,
    graphs: &BTreeSet<&str>,
) -> Option<String> {
    let name = &weight.name;
    if weight
        .offset
        .checked_add(weight.bytes)
        .is_none_or(|end| end > room)
    {
        return Some(format!(
            "weight `{name}` ends after the {room} bytes of {file}"
        ));
    }
    let elements = weight
        .shape
        .iter()
        .try_fold(1u64, |n, &dim| n.checked_mul(dim as u64));
    let size = weight.dtype.size() as u64;
    if elements.and_then(|n| n.checked_mul(size)) != Some(weight.bytes) {
        return Some(format!(
            "weight `{name}` of {}{:?} can't have {} bytes",
            weight.dtype, weight.shape, weight.bytes
        ));
    }
    let unknown = weight
        .graphs
        .iter()
        .find(|graph| !graphs.contains(graph.as_str()));
    unknown.map(|graph| {
        format!("weight `{name}` is used by `{graph}`, which isn't a graph of the bundle")
    })
}

/// The folders before a file's name.
fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Whether `name` stays inside of its folder, and in folders inside it.
fn is_contained(name: &str) -> bool {
    let plain = |part: &str| {
        !matches!(part, "" | "." | "..") && part.len() <= 255 && !part.contains(['\\', '\0', ':'])
    };
    name.len() <= LONGEST_NAME && name.split('/').all(plain)
}

/// The first of many problems.
fn shown(mut problems: Vec<String>) -> Vec<String> {
    const SHOWN: usize = 20;
    let more = problems.len().saturating_sub(SHOWN);
    problems.truncate(SHOWN);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    problems
}

#[cfg(test)]
mod tests;
