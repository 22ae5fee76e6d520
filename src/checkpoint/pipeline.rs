//! Pipelines of diffusers that are compiled as a whole: the parts beside the denoiser, opened as
//! checkpoints of their own, and the folders of the tokenizers.

mod classes;

use std::path::{Path, PathBuf};

use dlc_ir::SideFile;
use dlc_tokenizer::VOCABULARIES;
use serde_json::{Map, Value};

use super::error::{CheckpointError, shown};
use super::model_index::{AESTHETICS, CLASS, MODEL_INDEX, ZEROS};
use super::tokenizer_keys::TOKENIZER;
use super::{CONFIG, Checkpoint, locate, tokenizer_keys};
use classes::{CLASSES, Class};
pub use classes::{PartGraph, PartRow, Role, TextRole};

/// What stands for a component's library and class where there is none.
const NONE: [Value; 2] = [Value::Null, Value::Null];
/// The tokenizer's files that a bundle takes over, vocabularies aside.
const TOKENIZER_FILES: [&str; 4] = [
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

/// What is compiled beside the denoiser.
#[derive(Debug, Default)]
pub(super) struct Pipeline {
    /// The class, where `model_index.json` names one.
    class: Option<&'static Class>,
    parts: Vec<Part>,
    tokenizers: Vec<TokenizerPlace>,
    zeros_without_negative: bool,
    /// What is to be said of components that are left out.
    pub(super) notes: Vec<String>,
}

/// Where a tokenizer's files are.
#[derive(Debug, Clone)]
pub struct TokenizerPlace {
    /// The component of the pipeline; `tokenizer` for that of a model of text too.
    pub component: &'static str,
    pub(super) folder: PathBuf,
    /// What stands for `config.json` beside it.
    pub(super) model: Map<String, Value>,
}

impl TokenizerPlace {
    /// What is said of this tokenizer: with its name, unless it is the first one.
    pub fn said(&self, note: &str) -> String {
        if self.component == classes::TOKENIZER {
            note.to_owned()
        } else {
            format!("{}: {note}", self.component)
        }
    }

    /// A line that names the tokens of `added_tokens.json` that the tokenizer, which tells the id
    /// of a token, doesn't have under their ids.
    pub fn foreign_tokens(&self, id: impl Fn(&str) -> Option<u32>) -> Option<String> {
        let line = tokenizer_keys::foreign_tokens(&self.folder, id)?;
        Some(self.said(&line))
    }

    /// What the files beside it say and dlc doesn't heed, a line each.
    pub(super) fn unheeded(&self) -> Vec<String> {
        let lines = tokenizer_keys::warnings(&self.folder).into_iter();
        lines.map(|line| self.said(&line)).collect()
    }

    /// What a bundle calls one of its files.
    pub(super) fn bundled(&self, name: &str) -> String {
        if self.component == classes::TOKENIZER {
            name.to_owned()
        } else {
            format!("{}/{name}", self.component)
        }
    }
}

/// A component beside the denoiser.
#[derive(Debug)]
pub struct Part {
    /// What the pipeline does with it.
    pub row: &'static PartRow,
    /// Its class, as `model_index.json` has it.
    pub class: String,
    /// Its files.
    pub checkpoint: Checkpoint,
}

/// Which components `model_index.json` asks for.
#[derive(Debug)]
pub(super) struct Plan {
    class: &'static Class,
    /// The parts, with their classes.
    parts: Vec<(&'static PartRow, String)>,
    /// The components and the classes of the tokenizers.
    tokenizers: Vec<(&'static str, String)>,
    zeros_without_negative: bool,
    notes: Vec<String>,
}

impl Plan {
    /// What the index at `path` asks for, of a pipeline whose denoiser is `denoiser`.
    pub(super) fn of(
        path: &Path,
        index: &Map<String, Value>,
        denoiser: &str,
    ) -> Result<Option<Self>, CheckpointError> {
        let alone = |problem: String| {
            let folder = path.with_file_name(denoiser);
            let way = format!("Name {} to compile the denoiser alone", folder.display());
            CheckpointError::file(path, format!("{problem}. {way}"))
        };
        let Some(name) = index.get(CLASS).and_then(Value::as_str) else {
            return Ok(None);
        };
        let Some(class) = Class::named(name) else {
            return Err(alone(format!(
                "is of a {}, which dlc doesn't know; it knows {}",
                shown(name),
                Class::names().join(", ")
            )));
        };
        if index.get(AESTHETICS) == Some(&Value::Bool(true)) {
            return Err(alone(format!(
                "has `{AESTHETICS}`, as a refiner of images has, which dlc doesn't compile as a whole"
            )));
        }
        let is_there = |component: &str| path.with_file_name(component).is_dir();
        let parts = wanted(index, class);
        let tokenizers = class.tokenizers().filter(|_| !parts.is_empty());
        let needed = parts.iter().map(|row| row.component);
        let missing: Vec<&str> = needed
            .chain(tokenizers.clone())
            .filter(|component| class_of(index, component).is_none() || !is_there(component))
            .collect();
        if !missing.is_empty() {
            let (list, is) = (
                missing.join(", "),
                if missing.len() > 1 { "are" } else { "is" },
            );
            return Err(alone(format!(
                "is of a {name}, of which {list} {is} missing: download the whole pipeline"
            )));
        }
        let named = |component| class_of(index, component).unwrap_or_default().to_owned();
        let tokenizers: Vec<(&'static str, String)> = tokenizers
            .map(|component| (component, named(component)))
            .collect();
        Ok(Some(Self {
            class,
            notes: left_out(index, class, &parts, denoiser)
                .into_iter()
                .chain(class.note.map(str::to_owned))
                .collect(),
            parts: parts
                .into_iter()
                .map(|row| (row, named(row.component)))
                .collect(),
            tokenizers,
            zeros_without_negative: zeros(path, index, class)?,
        }))
    }

    /// The folders with weights that are read beside the denoiser's, of a pipeline with this index.
    pub(super) fn folders(index: &Map<String, Value>) -> Vec<&'static str> {
        let parts = of_index(index).map(|class| wanted(index, class));
        let parts = parts.unwrap_or_default().into_iter();
        parts.map(|row| row.component).collect()
    }

    /// The files of the tokenizers of such a pipeline, which are read where they are there.
    pub(super) fn tokenizer_files(index: &Map<String, Value>) -> Vec<String> {
        let names = || TOKENIZER_FILES.into_iter().chain(VOCABULARIES);
        let tokenizers = of_index(index).into_iter().flat_map(Class::tokenizers);
        let of = |folder| names().map(move |name| format!("{folder}/{name}"));
        tokenizers.flat_map(of).collect()
    }

    /// Opens the parts in the pipeline's `folder`.
    pub(super) fn open(self, folder: &Path) -> Result<Pipeline, CheckpointError> {
        let place = |(component, class): (&'static str, String)| TokenizerPlace {
            component,
            folder: folder.join(component),
            model: Map::from_iter([("tokenizer_class".to_owned(), class.into())]),
        };
        let part = |(row, class): (&'static PartRow, String)| {
            let location = locate::locate(&folder.join(row.component))?;
            Ok::<_, CheckpointError>(Part {
                row,
                class,
                checkpoint: Checkpoint::open_at(location, None)?,
            })
        };
        Ok(Pipeline {
            class: Some(self.class),
            parts: self.parts.into_iter().map(part).collect::<Result<_, _>>()?,
            tokenizers: self.tokenizers.into_iter().map(place).collect(),
            zeros_without_negative: self.zeros_without_negative,
            notes: self.notes,
        })
    }
}

/// The class that an index names, if it is known.
fn of_index(index: &Map<String, Value>) -> Option<&'static Class> {
    Class::named(index.get(CLASS)?.as_str()?)
}

/// The parts of a pipeline: none where one that it can do without is of a class that isn't known.
fn wanted(index: &Map<String, Value>, class: &'static Class) -> Vec<&'static PartRow> {
    let is_known = |row: &PartRow| {
        class_of(index, row.component).is_some_and(|class| row.classes.contains(&class))
    };
    let lacks = |row: &&PartRow| row.optional && !is_known(row);
    if class.parts.iter().any(|row| lacks(&row)) {
        return Vec::new();
    }
    class.parts.iter().collect()
}

/// Whether images are led away from zeros where no negative prompt is given.
fn zeros(path: &Path, index: &Map<String, Value>, class: &Class) -> Result<bool, CheckpointError> {
    match (class.zeros_without_negative, index.get(ZEROS)) {
        (None, _) | (_, Some(Value::Null)) => Ok(false),
        (Some(usual), None) => Ok(usual),
        (_, Some(Value::Bool(zeros))) => Ok(*zeros),
        (_, Some(other)) => {
            let found = shown(&other.to_string());
            let problem = format!("`{ZEROS}` is {found}; it must be true or false");
            Err(CheckpointError::file(path, problem))
        }
    }
}

/// The class of a component, where there is one.
fn class_of<'i>(index: &'i Map<String, Value>, component: &str) -> Option<&'i str> {
    index.get(component)?.get(1)?.as_str()
}

/// A line that names the components that are there and that nothing is made of.
fn left_out(
    index: &Map<String, Value>,
    class: &Class,
    parts: &[&PartRow],
    denoiser: &str,
) -> Option<String> {
    let used = |name: &str| {
        let mut tokenizers = class.tokenizers().filter(|_| !parts.is_empty());
        name == denoiser
            || name == "scheduler"
            || parts.iter().any(|row| row.component == name)
            || tokenizers.any(|tokenizer| tokenizer == name)
    };
    let is_there = |value: &Value| value.as_array().is_some_and(|list| *list != NONE);
    let mut names: Vec<String> = index
        .iter()
        .filter(|(name, value)| is_there(value) && !used(name))
        .map(|(name, _)| match class_of(index, name) {
            // What else would be compiled of it is worth knowing.
            Some(own) if class.parts.iter().any(|row| row.component == name) => {
                format!("{} ({})", shown(name), shown(own))
            }
            _ => shown(name),
        })
        .collect();
    names.sort();
    let what = if parts.is_empty() {
        format!(
            "of a {} dlc compiles the denoiser alone; left out: ",
            class.name
        )
    } else {
        "components that no image is made with are left out: ".to_owned()
    };
    (!names.is_empty()).then(|| format!("{MODEL_INDEX}: {what}{}", names.join(", ")))
}

impl Checkpoint {
    /// The class of the pipeline that was opened as a whole.
    pub fn pipeline_class(&self) -> Option<&'static str> {
        self.whole.class.map(|class| class.name)
    }

    /// What is compiled beside the denoiser, if the checkpoint is a whole pipeline.
    pub fn parts(&self) -> &[Part] {
        &self.whole.parts
    }

    /// Whether the pipeline leads images away from zeros where no negative prompt is given.
    pub fn zeros_without_negative(&self) -> bool {
        self.whole.zeros_without_negative
    }

    /// Where the tokenizers are: that of the checkpoint, or those of its pipeline.
    pub fn tokenizer_places(&self) -> Vec<TokenizerPlace> {
        if self.beside().is_none() {
            return Vec::new();
        }
        if !self.whole.tokenizers.is_empty() {
            return self.whole.tokenizers.clone();
        }
        vec![TokenizerPlace {
            component: classes::TOKENIZER,
            folder: self.folder.clone(),
            model: self.config.clone(),
        }]
    }

    /// The index of a whole pipeline and the configurations of its parts, under the names that they
    /// have in a bundle whose graphs lie as the components do.
    pub fn component_files(&self) -> Vec<SideFile> {
        let Some(folder) = self.pipeline.as_ref().filter(|_| !self.parts().is_empty()) else {
            return Vec::new();
        };
        let index = SideFile {
            name: MODEL_INDEX.to_owned(),
            path: folder.join(MODEL_INDEX),
        };
        let configs = self.parts().iter().flat_map(|part| {
            part.row.graphs.iter().map(|graph| SideFile {
                name: format!("{}/{CONFIG}", graph.name),
                path: part.checkpoint.config_path(),
            })
        });
        std::iter::once(index).chain(configs).collect()
    }

    /// The files of a whole pipeline's tokenizers, under the names that they have in a bundle.
    pub(super) fn tokenizer_files(&self) -> impl Iterator<Item = SideFile> {
        let names = || TOKENIZER_FILES.into_iter().chain(VOCABULARIES);
        let own = self.whole.tokenizers.iter().flat_map(move |place| {
            names().map(|name| SideFile {
                name: place.bundled(name),
                path: place.folder.join(name),
            })
        });
        own.filter(|file| file.path.is_file())
    }

    /// The tokenizers that were made, likewise.
    pub(super) fn made_files(&self) -> impl Iterator<Item = SideFile> {
        self.made.iter().map(|(place, made)| SideFile {
            name: place.bundled(TOKENIZER),
            path: made.path(),
        })
    }

    /// The path of `tokenizer.json` at `place`, where there is one: the folder's, or the one that
    /// was made.
    pub fn tokenizer_at(&self, place: &TokenizerPlace) -> Option<PathBuf> {
        let own = || Some(place.folder.join(TOKENIZER)).filter(|path| path.exists());
        let mut made = self.made.iter();
        let made = made.find(|(other, _)| other.component == place.component);
        made.map(|(_, made)| made.path()).or_else(own)
    }

    /// Why no `tokenizer.json` could be made of the vocabulary at `place`.
    pub fn lost_vocabulary(&self, place: &TokenizerPlace) -> Option<&str> {
        let mut lost = self.not_made.iter();
        let lost = lost.find(|(other, _)| other.component == place.component);
        lost.map(|(_, problem)| problem.as_str())
    }
}

/// The folders of weights that pipelines may have beside that of the denoiser.
pub(super) fn all_folders() -> impl Iterator<Item = &'static str> {
    let rows = CLASSES.iter().flat_map(|class| class.parts);
    let folders: std::collections::BTreeSet<&str> = rows.map(|row| row.component).collect();
    folders.into_iter()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn index(more: Value) -> Map<String, Value> {
        let mut index = json!({
            "_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "PNDMScheduler"],
            "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
            "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
            "safety_checker": [null, null],
        });
        let Value::Object(more) = more else {
            panic!("no object")
        };
        let index = index.as_object_mut().unwrap();
        index.extend(more);
        index.clone()
    }

    fn plan(more: Value, folders: &[&str]) -> Result<Option<Plan>, String> {
        let folder = tempfile::tempdir().unwrap();
        for name in folders {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let path = folder.path().join(MODEL_INDEX);
        Plan::of(&path, &index(more), "unet").map_err(|error| error.to_string())
    }

    const ALL: [&str; 3] = ["text_encoder", "vae", "tokenizer"];

    #[test]
    fn components_that_nothing_is_made_of_are_named() {
        let found = plan(json!({}), &ALL).unwrap().unwrap();
        assert_eq!(found.notes, [""; 0]);
        assert_eq!(found.parts.len(), 2);
        assert_eq!(
            found.tokenizers,
            [("tokenizer", "CLIPTokenizer".to_owned())]
        );
        let checked = json!({"safety_checker": ["stable_diffusion", "SafetyChecker"], "feature_extractor": ["transformers", "X"]});
        let notes = plan(checked, &ALL).unwrap().unwrap().notes;
        assert_eq!(
            notes,
            [
                "model_index.json: components that no image is made with are left out: feature_extractor, safety_checker"
            ]
        );
        let ddpm = plan(json!({"_class_name": "DDPMPipeline"}), &[]);
        let ddpm = ddpm.unwrap().unwrap();
        assert_eq!(
            ddpm.notes,
            [
                "model_index.json: of a DDPMPipeline dlc compiles the denoiser alone; left out: text_encoder, tokenizer, vae"
            ]
        );
        assert!(ddpm.parts.is_empty() && ddpm.tokenizers.is_empty());
    }

    #[test]
    fn a_decoder_of_a_class_that_is_not_known_is_left_out_by_name_where_pipelines_can_do_without() {
        let none = json!([null, null]);
        let index = |class: &str| json!({"_class_name": "LDMPipeline", "vqvae": ["diffusers", class], "vae": none, "text_encoder": none, "tokenizer": none});
        let found = plan(index("AutoencoderKL"), &["vqvae"]).unwrap().unwrap();
        assert_eq!((found.parts.len(), found.notes), (1, vec![]));
        let found = plan(index("VQModel"), &["vqvae"]).unwrap().unwrap();
        assert!(found.parts.is_empty());
        assert_eq!(
            found.notes,
            [
                "model_index.json: of a LDMPipeline dlc compiles the denoiser alone; left out: vqvae (VQModel)"
            ]
        );
    }

    #[test]
    fn missing_components_and_unknown_pipelines_are_refused_with_the_way_out() {
        let way = "unet to compile the denoiser alone";
        for (more, folders, parts) in [
            (
                json!({"vae": [null, null]}),
                &ALL[..],
                "StableDiffusionPipeline, of which vae is missing",
            ),
            (
                json!({}),
                &["vae"],
                "of which text_encoder, tokenizer are missing",
            ),
            (
                json!({"_class_name": "FluxPipeline"}),
                &ALL,
                "FluxPipeline, which dlc doesn't know; it knows StableDiffusionPipeline",
            ),
        ] {
            let error = plan(more, folders).err().unwrap();
            assert!(error.contains(parts) && error.contains(way), "{error}");
        }
        assert!(plan(json!({"_class_name": null}), &[]).unwrap().is_none());
    }
}
