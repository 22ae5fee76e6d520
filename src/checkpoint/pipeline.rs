//! Pipelines of diffusers that are compiled as a whole: the parts beside the denoiser, opened as
//! checkpoints of their own, and the folder of the tokenizer.

use std::path::{Path, PathBuf};

use dlc_ir::SideFile;
use dlc_tokenizer::VOCABULARIES;
use serde_json::{Map, Value};

use super::error::{CheckpointError, shown};
use super::model_index::{CLASS, MODEL_INDEX};
use super::vocabulary::TOKENIZER;
use super::{Checkpoint, locate};

/// What stands for a component's library and class where there is none.
const NONE: [Value; 2] = [Value::Null, Value::Null];
/// The component with the tokenizer's files, and its folder.
const TOKENIZER_FOLDER: &str = "tokenizer";
/// The tokenizer's files that a bundle takes over, vocabularies aside.
const TOKENIZER_FILES: [&str; 4] = [
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

/// A class of pipelines.
struct Class {
    name: &'static str,
    /// The components beside the denoiser that are compiled with it.
    parts: &'static [&'static str],
}

const fn denoiser_alone(name: &'static str) -> Class {
    Class { name, parts: &[] }
}

const CLASSES: [Class; 9] = [
    Class {
        name: "StableDiffusionPipeline",
        parts: &["text_encoder", "vae"],
    },
    denoiser_alone("StableDiffusionXLPipeline"),
    denoiser_alone("PixArtAlphaPipeline"),
    denoiser_alone("PixArtSigmaPipeline"),
    denoiser_alone("DiTPipeline"),
    denoiser_alone("DDPMPipeline"),
    denoiser_alone("DDIMPipeline"),
    denoiser_alone("PNDMPipeline"),
    denoiser_alone("LDMPipeline"),
];

/// What is compiled beside the denoiser.
#[derive(Debug, Default)]
pub(super) struct Pipeline {
    /// The class, where `model_index.json` names one.
    class: Option<&'static str>,
    parts: Vec<Part>,
    tokenizer: Option<TokenizerFolder>,
    /// What is to be said of components that are left out.
    pub(super) notes: Vec<String>,
}

/// Where the tokenizer's files are, and its class.
#[derive(Debug)]
struct TokenizerFolder {
    path: PathBuf,
    class: String,
}

/// A component beside the denoiser.
#[derive(Debug)]
pub struct Part {
    /// Its name in `model_index.json`, which is that of its folder.
    pub component: &'static str,
    /// Its class, as `model_index.json` has it.
    pub class: String,
    /// Its files.
    pub checkpoint: Checkpoint,
}

/// Which components `model_index.json` asks for.
pub(super) struct Plan {
    class: &'static Class,
    /// Names and classes of the parts.
    parts: Vec<(&'static str, String)>,
    /// The class of the tokenizer, where there are parts.
    tokenizer: Option<String>,
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
        let Some(class) = CLASSES.iter().find(|class| class.name == name) else {
            let known: Vec<&str> = CLASSES.iter().map(|class| class.name).collect();
            return Err(alone(format!(
                "is of a {}, which dlc doesn't know; it knows {}",
                shown(name),
                known.join(", ")
            )));
        };
        let needed = class.parts.iter().copied();
        let needed = needed.chain((!class.parts.is_empty()).then_some(TOKENIZER_FOLDER));
        let missing: Vec<&str> = needed
            .clone()
            .filter(|component| {
                class_of(index, component).is_none() || !path.with_file_name(component).is_dir()
            })
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
        let classed = |part| Some((part, class_of(index, part)?.to_owned()));
        Ok(Some(Self {
            parts: class.parts.iter().copied().filter_map(classed).collect(),
            tokenizer: class_of(index, TOKENIZER_FOLDER)
                .filter(|_| !class.parts.is_empty())
                .map(str::to_owned),
            notes: left_out(index, class, denoiser).into_iter().collect(),
            class,
        }))
    }

    /// The folders with weights that are read beside the denoiser's.
    pub(super) fn folders(class: &str) -> &'static [&'static str] {
        let class = CLASSES.iter().find(|known| known.name == class);
        class.map_or(&[], |class| class.parts)
    }

    /// Opens the parts in the pipeline's `folder`.
    pub(super) fn open(self, folder: &Path) -> Result<Pipeline, CheckpointError> {
        let tokenizer = self.tokenizer.map(|class| TokenizerFolder {
            path: folder.join(TOKENIZER_FOLDER),
            class,
        });
        let part = |(component, class): (&'static str, String)| {
            let location = locate::locate(&folder.join(component))?;
            Ok::<_, CheckpointError>(Part {
                component,
                class,
                checkpoint: Checkpoint::open_at(location, None)?,
            })
        };
        Ok(Pipeline {
            class: Some(self.class.name),
            parts: self.parts.into_iter().map(part).collect::<Result<_, _>>()?,
            tokenizer,
            notes: self.notes,
        })
    }
}

/// The class of a component, where there is one.
fn class_of<'i>(index: &'i Map<String, Value>, component: &str) -> Option<&'i str> {
    index.get(component)?.get(1)?.as_str()
}

/// A line that names the components that are there and that nothing is made of.
fn left_out(index: &Map<String, Value>, class: &Class, denoiser: &str) -> Option<String> {
    let used = |name: &str| {
        let whole = !class.parts.is_empty() && name == TOKENIZER_FOLDER;
        name == denoiser || name == "scheduler" || class.parts.contains(&name) || whole
    };
    let is_there = |value: &Value| value.as_array().is_some_and(|list| *list != NONE);
    let mut names: Vec<String> = index
        .iter()
        .filter(|(name, value)| is_there(value) && !used(name))
        .map(|(name, _)| shown(name))
        .collect();
    names.sort();
    let what = if class.parts.is_empty() {
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
        self.whole.class
    }

    /// What is compiled beside the denoiser, if the checkpoint is a whole pipeline.
    pub fn parts(&self) -> &[Part] {
        &self.whole.parts
    }

    /// The folder of the tokenizer: the checkpoint's, or that of its pipeline.
    pub(super) fn tokenizer_folder(&self) -> &Path {
        let of_pipeline = self.whole.tokenizer.as_ref();
        of_pipeline.map_or(&self.folder, |tokenizer| &tokenizer.path)
    }

    /// What stands for `config.json` beside the tokenizer.
    pub(super) fn tokenizer_model(&self) -> Map<String, Value> {
        let class = |tokenizer: &TokenizerFolder| {
            Map::from_iter([("tokenizer_class".to_owned(), tokenizer.class.clone().into())])
        };
        let of_pipeline = self.whole.tokenizer.as_ref().map(class);
        of_pipeline.unwrap_or_else(|| self.config.clone())
    }

    /// The files of a whole pipeline's tokenizer.
    pub(super) fn tokenizer_files(&self) -> impl Iterator<Item = SideFile> {
        let names = TOKENIZER_FILES.into_iter().chain(VOCABULARIES);
        let files = self.whole.tokenizer.iter().flat_map(move |tokenizer| {
            names.clone().map(|name| SideFile {
                name: name.to_owned(),
                path: tokenizer.path.join(name),
            })
        });
        files.filter(|file| file.path.is_file())
    }
}

/// The folders of weights that pipelines may have beside that of the denoiser.
pub(super) fn all_folders() -> impl Iterator<Item = &'static str> {
    CLASSES.iter().flat_map(|class| class.parts).copied()
}

/// The files of a tokenizer's folder that are read where they are there.
pub(super) fn tokenizer_file_names() -> impl Iterator<Item = String> {
    let names = TOKENIZER_FILES.into_iter().chain(VOCABULARIES);
    names.map(|name| format!("{TOKENIZER_FOLDER}/{name}"))
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
        assert_eq!(found.tokenizer.as_deref(), Some("CLIPTokenizer"));
        let checked = json!({"safety_checker": ["stable_diffusion", "SafetyChecker"], "feature_extractor": ["transformers", "X"]});
        let notes = plan(checked, &ALL).unwrap().unwrap().notes;
        assert_eq!(
            notes,
            [
                "model_index.json: components that no image is made with are left out: feature_extractor, safety_checker"
            ]
        );
        let xl = plan(json!({"_class_name": "StableDiffusionXLPipeline"}), &[]);
        let xl = xl.unwrap().unwrap();
        assert_eq!(
            xl.notes,
            [
                "model_index.json: of a StableDiffusionXLPipeline dlc compiles the denoiser alone; left out: text_encoder, tokenizer, vae"
            ]
        );
        assert!(xl.parts.is_empty() && xl.tokenizer.is_none());
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
