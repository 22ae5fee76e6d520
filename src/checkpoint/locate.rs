//! Which files a path stands for: a folder, one `.safetensors` or one `.gguf`, whole or in shards. Reads the
//! shard index, no weights.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::error::{CheckpointError, shown};
use super::files::{open, read_object};
use super::hub_cache::{self, MAIN};

/// The largest shard index that is read: room for some 250 000 tensors.
const INDEX_CAP: u64 = 32 << 20;
const WHOLE: &str = "model.safetensors";
/// How names of GGUF files end.
pub(super) const GGUF: &str = "gguf";
/// What weight files are called, and their index after `.index.json`: by transformers, by
/// diffusers.
const WEIGHTS: [&str; 2] = [WHOLE, "diffusion_pytorch_model.safetensors"];
const DIFFUSERS_PICKLE: &str = "diffusion_pytorch_model.bin";
/// What every bundle has and no checkpoint.
const BUNDLE_MANIFEST: &str = "dlc.yaml";
/// The component of a diffusers pipeline that denoises.
const COMPONENTS: [&str; 2] = ["transformer", "unet"];

/// Where a checkpoint's parts are.
#[derive(Debug)]
pub(super) struct Location {
    /// The folder of `config.json` and the side files.
    pub(super) folder: PathBuf,
    /// The denoising component that the folder is, if the path is that of a pipeline of diffusers.
    pub(super) component: Option<&'static str>,
    /// The weight files.
    pub(super) weights: WeightFiles,
    /// What is to be said of the choice.
    pub(super) notes: Vec<String>,
}

#[derive(Debug, Clone)]
pub(super) enum WeightFiles {
    One(PathBuf),
    Sharded {
        index: PathBuf,
    },
    /// With the configuration and the tokenizer in it.
    Gguf(PathBuf),
}

/// Weight files by their names in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WeightNames {
    One(String),
    Sharded { index: String },
}

impl WeightNames {
    /// The name of the file that is read first.
    pub(super) fn file(&self) -> &str {
        let (Self::One(file) | Self::Sharded { index: file }) = self;
        file
    }

    fn at(self, folder: &Path) -> WeightFiles {
        match self {
            Self::One(name) => WeightFiles::One(folder.join(name)),
            Self::Sharded { index } => WeightFiles::Sharded {
                index: folder.join(index),
            },
        }
    }
}

/// What weights are looked for in: a folder, or a repository of the Hub.
#[derive(Debug, Clone, Copy)]
pub(super) struct Holder<'a> {
    /// What errors call it; of a repository `ORG/NAME@REVISION`, and a folder in it.
    pub(super) path: &'a Path,
    /// `ORG/NAME@REVISION` of a repository.
    pub(super) repository: Option<&'a Path>,
}

impl<'a> Holder<'a> {
    pub(super) fn folder(path: &'a Path) -> Self {
        Self {
            path,
            repository: None,
        }
    }

    /// How the user names one of its files or folders: those of a repository have no names of their
    /// own.
    pub(super) fn part(self, name: &str) -> String {
        let Some(repository) = self.repository else {
            return self.path.join(name).display().to_string();
        };
        let inner = self.path.strip_prefix(repository).unwrap_or(self.path);
        let part = Path::new("DIR").join(inner).join(name);
        let repository = repository.to_string_lossy();
        let (id, revision) = repository.split_once('@').unwrap_or((&repository, MAIN));
        let revision = match revision {
            MAIN => String::new(),
            other => format!(" --revision {other}"),
        };
        format!(
            "{} after `hf download {id}{revision} --local-dir DIR`",
            part.display()
        )
    }
}

/// The files that `path` stands for; a path that stands for none is explained.
pub(super) fn locate(path: &Path) -> Result<Location, CheckpointError> {
    let metadata = fs::metadata(path).map_err(|error| nothing_there(path, error))?;
    if metadata.is_dir() {
        let path = &hub_cache::entered(path)?;
        let component = component(Holder::folder(path), |name| path.join(name).is_file())?;
        let folder = component.map_or_else(|| path.clone(), |name| path.join(name));
        let (weights, notes) = in_folder(&folder)?;
        return Ok(Location {
            folder,
            component,
            weights,
            notes,
        });
    }
    match extension(path).as_str() {
        "safetensors" => Ok(Location {
            folder: folder_of(path),
            component: None,
            weights: WeightFiles::One(path.to_owned()),
            notes: vec![],
        }),
        GGUF => Ok(Location {
            folder: folder_of(path),
            component: None,
            weights: WeightFiles::Gguf(path.to_owned()),
            notes: vec![],
        }),
        "bin" | "onnx" | "yaml" if path.with_file_name(BUNDLE_MANIFEST).exists() => {
            Err(bundle(path, "is part of a bundle that dlc wrote"))
        }
        "bin" | "pt" | "pth" => Err(pickle(path, false)),
        _ => Err(CheckpointError::file(
            path,
            format!(
                "is neither a folder nor a `.safetensors` or `.gguf` file. Name the folder with config.json and {WHOLE}"
            ),
        )),
    }
}

/// The name of the folder of the denoising component, if `holder`, in which there `is` a file of
/// each of some names, is a pipeline of diffusers.
pub(super) fn component(
    holder: Holder<'_>,
    is: impl Fn(&str) -> bool,
) -> Result<Option<&'static str>, CheckpointError> {
    if usual_weights(&is).is_some() {
        return Ok(None);
    }
    let found: Vec<&str> = COMPONENTS
        .into_iter()
        .filter(|name| is(&format!("{name}/config.json")))
        .collect();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        [one, ..] => {
            let problem = format!(
                "holds several models: {}. Name the folder of one, such as {}",
                COMPONENTS.join(" and "),
                holder.part(one)
            );
            Err(CheckpointError::file(holder.path, problem))
        }
    }
}

/// The weight files with one of the names that libraries give them, where there `is` a file of each
/// of some names.
fn usual_weights(is: impl Fn(&str) -> bool) -> Option<WeightNames> {
    WEIGHTS.iter().find_map(|name| {
        let index = format!("{name}.index.json");
        if is(name) {
            return Some(WeightNames::One((*name).to_owned()));
        }
        is(&index).then_some(WeightNames::Sharded { index })
    })
}

/// The weight files of a folder, and what is to be said of the choice.
fn in_folder(folder: &Path) -> Result<(WeightFiles, Vec<String>), CheckpointError> {
    // A folder may hold millions of files, which the usual names spare.
    if let Some(weights) = usual_weights(|name| folder.join(name).is_file()) {
        return Ok((weights.at(folder), vec![]));
    }
    let mut names: Vec<String> = fs::read_dir(folder)
        .map_err(|e| CheckpointError::read(folder, e))?
        .flatten()
        .filter(|entry| entry.path().is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    let (weights, notes) = among(Holder::folder(folder), &names)?;
    Ok((weights.at(folder), notes))
}

/// The weight files among the files with these names directly in `holder`, and what is to be said
/// of the choice.
pub(super) fn among(
    holder: Holder<'_>,
    names: &[String],
) -> Result<(WeightNames, Vec<String>), CheckpointError> {
    let folder = holder.path;
    let is = |wanted: &str| names.iter().any(|name| name == wanted);
    if let Some(weights) = usual_weights(is) {
        return Ok((weights, vec![]));
    }
    if is(BUNDLE_MANIFEST) {
        return Err(bundle(folder, "is a bundle that dlc wrote"));
    }
    if is("adapter_config.json") {
        let problem = "is an adapter, not a model. Name the model that it was trained on, and this folder with `--adapter`";
        return Err(CheckpointError::file(folder, problem));
    }
    if let [variant] = variants(names).as_slice() {
        let note = format!(
            "the weights are those of {}: there are no others",
            shown(variant.file())
        );
        return Ok((variant.clone(), vec![note]));
    }
    let with = |wanted: &str| {
        let mut names = names.iter();
        let file = names.find(|name| extension(Path::new(name)) == wanted)?;
        Some(holder.part(file))
    };
    if let Some(file) = with("safetensors") {
        let problem = format!(
            "holds no {WHOLE} and no {WHOLE}.index.json. Name one file, such as {file}, or download the index too"
        );
        return Err(CheckpointError::file(folder, problem));
    }
    if with("bin").is_some() || with("pt").is_some() || with("pth").is_some() {
        return Err(pickle(folder, is(DIFFUSERS_PICKLE)));
    }
    if let Some(file) = with(GGUF) {
        let problem = format!("holds no {WHOLE}, but GGUF. Name that file: {file}");
        return Err(CheckpointError::file(folder, problem));
    }
    if holder.repository.is_some() {
        let problem = format!("holds no {WHOLE} and no other weights. Name another repository");
        return Err(CheckpointError::file(folder, problem));
    }
    let problem = format!(
        "holds no {WHOLE}. Download the whole checkpoint, for instance with `hf download ID --local-dir DIR`"
    );
    Err(CheckpointError::file(folder, problem))
}

/// Weights in another precision or of another kind than the usual ones, under the names that
/// libraries give them: `model.fp16.safetensors`, `model.safetensors.index.fp16.json`,
/// `model.fp16.safetensors.index.json`.
fn variants(names: &[String]) -> Vec<WeightNames> {
    let word = |variant: &str| {
        !variant.is_empty()
            && variant
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let of = |name: &String| {
        let stem = WEIGHTS.iter().find_map(|usual| {
            usual
                .strip_suffix("safetensors")
                .filter(|stem| name.starts_with(stem))
        })?;
        let rest = &name[stem.len()..];
        if rest.strip_suffix(".safetensors").is_some_and(word) {
            return Some(WeightNames::One(name.clone()));
        }
        let new = rest
            .strip_prefix("safetensors.index.")
            .and_then(|rest| rest.strip_suffix(".json"));
        let old = rest.strip_suffix(".safetensors.index.json");
        new.or(old).is_some_and(word).then(|| WeightNames::Sharded {
            index: name.clone(),
        })
    };
    names.iter().filter_map(of).collect()
}

/// The shard of each tensor, as the index has it. Every shard is a plain file name.
pub(super) fn read_index(index: &Path) -> Result<(BTreeMap<String, String>, u64), CheckpointError> {
    let (mut object, size) = read_object(index, INDEX_CAP)?;
    let Some(Value::Object(map)) = object.remove("weight_map") else {
        return Err(CheckpointError::file(
            index,
            "has no object `weight_map`. Download the index again",
        ));
    };
    if map.is_empty() {
        return Err(CheckpointError::file(
            index,
            "names no tensors in `weight_map`. Download the index again",
        ));
    }
    let mut shards = BTreeMap::new();
    for (tensor, shard) in map {
        let Value::String(shard) = shard else {
            return Err(CheckpointError::tensor(
                index,
                &tensor,
                "its shard is not a file name. Download the index again",
            ));
        };
        if !is_plain_name(&shard) {
            let problem = format!(
                "its shard `{}` is not a plain file name; dlc reads no file outside of the checkpoint's folder",
                shown(&shard)
            );
            return Err(CheckpointError::tensor(index, &tensor, problem));
        }
        shards.insert(tensor, shard);
    }
    Ok((shards, size))
}

/// Whether `name` is that of a file in a folder, on any system.
pub(super) fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == name);
    plain && !name.contains(['\\', ':']) && !name.contains(char::is_control)
}

/// The folder that a file lies in.
fn folder_of(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    folder.unwrap_or(Path::new(".")).to_owned()
}

fn extension(path: &Path) -> String {
    path.extension()
        .unwrap_or_default()
        .to_string_lossy()
        .to_ascii_lowercase()
}

fn nothing_there(path: &Path, error: io::Error) -> CheckpointError {
    if error.kind() == io::ErrorKind::NotFound {
        if extension(path) == GGUF {
            let problem = "doesn't exist. Check the path; `hf download ORG/NAME FILE --local-dir DIR` brings GGUF files of the Hugging Face Hub";
            return CheckpointError::file(path, problem);
        }
        let problem = "doesn't exist. Name a folder with config.json and safetensors files; \
                       the command also takes a repository of the Hugging Face Hub, ORG/NAME";
        return CheckpointError::file(path, problem);
    }
    CheckpointError::read(path, error)
}

/// A bundle where a checkpoint was to be; `what` goes on from its path.
fn bundle(path: &Path, what: &str) -> CheckpointError {
    let folder = if path.is_dir() {
        path
    } else {
        path.parent().unwrap_or(path)
    };
    // The manifest names its source in its first lines; a name that isn't found there isn't worth a
    // parser.
    let mut head = Vec::new();
    let _ = open(&folder.join(BUNDLE_MANIFEST))
        .map(|(file, _)| file.take(1 << 12).read_to_end(&mut head));
    let head = String::from_utf8_lossy(&head);
    let source = head
        .lines()
        .skip_while(|line| *line != "source:")
        .find_map(|line| line.strip_prefix("  name: "));
    let source = source.map_or_else(String::new, |name| {
        format!(": {}", shown(name.trim_matches(['"', '\''])))
    });
    CheckpointError::file(
        path,
        format!("{what}; name the checkpoint that it came from{source}"),
    )
}

/// Weights in pickles, perhaps `of_diffusers`.
fn pickle(path: &Path, of_diffusers: bool) -> CheckpointError {
    let problem = "has its weights in PyTorch's pickle format only; dlc reads safetensors. Convert it in Python: \
                   `AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT)`, and the same with AutoTokenizer";
    let diffusers = "has its weights in PyTorch's pickle format only; dlc reads safetensors. Convert it in Python: \
                     `DiffusionPipeline.from_pretrained(DIR).save_pretrained(OUT)`, DIR being the folder above";
    CheckpointError::Format {
        path: path.to_owned(),
        problem: if of_diffusers { diffusers } else { problem }.into(),
    }
}
