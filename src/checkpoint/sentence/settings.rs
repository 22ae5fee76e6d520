//! Settings of Sentence Transformers that stand beside `modules.json`: where texts are cut, and
//! what is put before them.

use std::collections::BTreeMap;
use std::path::Path;

use dlc_ir::{Pooling, Sentence, Similarity};
use serde_json::{Map, Value};

use super::{CAP, SentenceModules};
use crate::checkpoint::error::{CheckpointError, shown};
use crate::checkpoint::files::{is_there, read_object};
use crate::checkpoint::{CONFIG_CAP, SideKeys};

/// What is put before texts, and how vectors are compared.
pub(in crate::checkpoint) const SETTINGS: &str = "config_sentence_transformers.json";
/// How the model is run, under the names of all versions; the first one counts.
pub(in crate::checkpoint) const TRANSFORMER_CONFIGS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// The longest limit that says something; tokenizers without one say 1e30.
const LONGEST: u64 = 1 << 28;
/// Prompts that Sentence Transformers has for every model, empty unless the model fills them.
const USUAL_PROMPTS: [&str; 2] = ["query", "document"];

const TASK: &str = "transformer_task";
/// The task of a model without a head.
const BARE_TASK: &str = "feature-extraction";

const TRANSFORMER_KEYS: SideKeys = SideKeys {
    heeded: &["max_seq_length", "do_lower_case", TASK],
    // How batches are laid out in memory.
    harmless: &["unpad_inputs"],
    neutral: &[
        ("module_output_name", &["\"token_embeddings\""]),
        (
            "modality_config",
            &[r#"{"text": {"method": "forward", "method_output_name": "last_hidden_state"}}"#],
        ),
    ],
};

const SETTINGS_KEYS: SideKeys = SideKeys {
    heeded: &[
        "prompts",
        "default_prompt_name",
        "similarity_fn_name",
        "truncate_dim",
        "model_type",
    ],
    // Who wrote the file, and the packages that Sentence Transformers needs.
    harmless: &["__version__", "requirements"],
    neutral: &[],
};

impl SentenceModules {
    /// Reads the settings that `folder` has. With `listed`, there is a `modules.json`.
    pub(super) fn read_settings(
        &mut self,
        folder: &Path,
        listed: bool,
    ) -> Result<(), CheckpointError> {
        for name in TRANSFORMER_CONFIGS {
            let path = folder.join(name);
            if is_there(&path) && self.read_transformer(name, &path)? {
                break;
            }
        }
        let path = folder.join(SETTINGS);
        if is_there(&path) {
            let (object, _) = read_object(&path, CAP)?;
            self.warnings
                .extend(SETTINGS_KEYS.warning(SETTINGS, &object));
            let sentence = self.sentence.get_or_insert_default();
            read_prompts(&path, &object, sentence)?;
            sentence.truncate_dim = size(&path, &object, "truncate_dim")?;
            self.warnings.extend(read_similarity(&object, sentence));
            if let Some(kind) = object
                .get("model_type")
                .filter(|kind| !kind.is_null() && *kind != "SentenceTransformer")
            {
                sentence.pooling.push(Pooling::Other(format!(
                    "the `model_type` {} of {SETTINGS}",
                    shown(&kind.to_string())
                )));
                self.headed = true;
            }
        }
        let path = folder.join(TOKENIZER_CONFIG);
        if let Some(sentence) = self.sentence.as_mut().filter(|_| is_there(&path)) {
            let (object, _) = read_object(&path, CONFIG_CAP)?;
            sentence.cut_start =
                object.get("truncation_side").and_then(Value::as_str) == Some("left");
            let limit = object
                .get("model_max_length")
                .and_then(Value::as_u64)
                .filter(|n| listed && (1..LONGEST).contains(n));
            sentence.max_tokens = sentence
                .max_tokens
                .or(limit.and_then(|n| usize::try_from(n).ok()));
        }
        Ok(())
    }

    /// Whether the file says anything of how the model is run; an empty one leaves the word to the
    /// next.
    fn read_transformer(&mut self, name: &str, path: &Path) -> Result<bool, CheckpointError> {
        let (object, _) = read_object(path, CAP)?;
        if object.is_empty() {
            return Ok(false);
        }
        self.warnings
            .extend(TRANSFORMER_KEYS.warning(name, &object));
        self.headed = object
            .get(TASK)
            .is_some_and(|task| !task.is_null() && *task != BARE_TASK);
        let sentence = self.sentence.get_or_insert_default();
        sentence.max_tokens = size(path, &object, "max_seq_length")?;
        sentence.lower_case = flag(path, &object, "do_lower_case")?;
        Ok(true)
    }
}

fn read_prompts(
    path: &Path,
    object: &Map<String, Value>,
    sentence: &mut Sentence,
) -> Result<(), CheckpointError> {
    let mut prompts = BTreeMap::new();
    let bad = |problem: String| Err(CheckpointError::file(path, problem));
    match object.get("prompts") {
        None | Some(Value::Null) => {}
        Some(Value::Object(named)) => {
            for (name, prompt) in named {
                match prompt {
                    Value::String(text) => _ = prompts.insert(name.clone(), text.clone()),
                    Value::Null => _ = prompts.insert(name.clone(), String::new()),
                    _ => {
                        return bad(format!(
                            "the prompt `{}` is no text. Write one, or remove the prompt",
                            shown(name)
                        ));
                    }
                }
            }
        }
        Some(_) => return bad("`prompts` is no object `{...}`. Download the file again".into()),
    }
    sentence.default_prompt = match object.get("default_prompt_name") {
        None | Some(Value::Null) => None,
        Some(Value::String(name)) if prompts.contains_key(name) => Some(name.clone()),
        Some(Value::String(name)) if USUAL_PROMPTS.contains(&name.as_str()) => {
            prompts.insert(name.clone(), String::new());
            Some(name.clone())
        }
        Some(other) => {
            let names: Vec<String> = prompts.keys().map(|name| shown(name)).collect();
            let there = if names.is_empty() {
                "there are none".to_owned()
            } else {
                format!("there are {}", names.join(", "))
            };
            return bad(format!(
                "`default_prompt_name` is {}, which is none of `prompts`: {there}. Name one, or null",
                shown(&other.to_string())
            ));
        }
    };
    sentence.prompts = prompts;
    Ok(())
}

/// Takes over how vectors are compared; one that dlc doesn't know is named.
fn read_similarity(object: &Map<String, Value>, sentence: &mut Sentence) -> Option<String> {
    let named = object
        .get("similarity_fn_name")
        .filter(|value| !value.is_null())?;
    let known = Similarity::ALL
        .into_iter()
        .find(|known| named == known.name());
    sentence.similarity = known.unwrap_or_default();
    let unknown = || {
        format!(
            "{SETTINGS}: not heeded: `similarity_fn_name` {}; vectors are compared by cosine",
            shown(&named.to_string())
        )
    };
    known.is_none().then(unknown)
}

/// A whole number from 1 on, if the key is there.
fn size(
    path: &Path,
    object: &Map<String, Value>,
    key: &str,
) -> Result<Option<usize>, CheckpointError> {
    let Some(value) = object.get(key).filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let size = value
        .as_u64()
        .filter(|n| (1..LONGEST).contains(n))
        .and_then(|n| usize::try_from(n).ok());
    size.map(Some).ok_or_else(|| {
        let problem = format!(
            "`{key}` is {}; it must be a whole number from 1 to {LONGEST}, or null",
            shown(&value.to_string())
        );
        CheckpointError::file(path, problem)
    })
}

/// A flag, false where the key isn't there.
fn flag(path: &Path, object: &Map<String, Value>, key: &str) -> Result<bool, CheckpointError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => Err(CheckpointError::file(
            path,
            format!(
                "`{key}` is {}; it must be true or false",
                shown(&other.to_string())
            ),
        )),
    }
}
