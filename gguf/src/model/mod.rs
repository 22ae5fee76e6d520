//! The Hugging Face checkpoint that a GGUF file stands for: configuration, tokenizer, tensors.
//!
//! Everything is refused that can't be followed, all at once. No tensor's data is read, but for the
//! factors of the rotation.

mod architecture;
mod config;
mod names;
mod rope;
mod tensors;

use dlc_ir::{Blob, Expr};
use serde_json::{Map, Value as Json, json};

use crate::error::GgufError;
use crate::file::Gguf;
use crate::keys::Keys;
use crate::kind::TensorKind;
use crate::tokenizer::{self, TokenizerFiles};
use architecture::{ARCHITECTURES, Architecture};

/// What a GGUF file holds, in the terms of transformers.
#[derive(Debug)]
pub struct Model {
    /// `config.json`.
    pub config: Map<String, Json>,
    /// `generation_config.json`.
    pub generation_config: Map<String, Json>,
    /// The tokenizer's files, if the file has a tokenizer.
    pub tokenizer: Option<TokenizerFiles>,
    /// The tensors, by name.
    pub tensors: Vec<ModelTensor>,
    /// What the file says and the checkpoint doesn't follow, a line each.
    pub notes: Vec<String>,
}

/// A tensor of the checkpoint.
#[derive(Debug, Clone)]
pub struct ModelTensor {
    /// Its name in transformers.
    pub name: String,
    /// Axes, outermost first.
    pub shape: Vec<usize>,
    /// How the file stores it.
    pub kind: TensorKind,
    /// Its bytes as they lie in the file.
    pub blob: Blob,
    /// Its elements, read when they are asked for.
    pub data: Expr,
}

impl Model {
    /// The checkpoint that `gguf` stands for.
    ///
    /// # Errors
    /// [`GgufError::Unsupported`] with everything that dlc can't follow: another architecture,
    /// types of tensors, tensors and keys that change the function, tokenizers; and with what is
    /// missing.
    pub fn of(gguf: &Gguf) -> Result<Self, GgufError> {
        let mut keys = Keys::new(gguf.metadata());
        let unsupported = |problems: Vec<String>| GgufError::Unsupported {
            path: gguf.path().to_owned(),
            problems,
        };
        refuse_parts(&mut keys);
        let Some(architecture) = Architecture::find(keys.architecture()) else {
            keys.problems.push(unknown_architecture(&keys));
            return Err(unsupported(keys.problems));
        };
        let shape = config::Shape::read(&mut keys);
        let mut config = Map::from_iter([
            ("architectures".to_owned(), json!([architecture.class])),
            ("model_type".to_owned(), architecture.model_type.into()),
        ]);
        config.extend(config::configuration(&mut keys, &shape));
        (architecture.configure)(&mut keys, &shape, &mut config);
        let found = tensors::find(gguf, architecture, &shape, &mut keys);
        let (theta, scaling) = rope::read(&mut keys, &shape, found.divisors.as_deref());
        config.insert("rope_theta".into(), theta);
        config.insert("rope_scaling".into(), scaling);
        config.extend(found.config);
        let tokenizer = tokenizer::read(&mut keys);
        if let Some(tokens) = tokenizer.as_ref().map(|t| t.tokens)
            && found.vocabulary.is_some_and(|rows| rows < tokens)
        {
            keys.problems.push(format!(
                "the tokenizer has {tokens} tokens, more than the model's embedding"
            ));
        }
        keys.note_unread();
        if !keys.problems.is_empty() {
            return Err(unsupported(keys.problems));
        }
        let ids = special_ids(tokenizer.as_ref());
        config.extend(ids.clone());
        Ok(Self {
            config,
            generation_config: generation_config(ids, tokenizer.as_ref()),
            tokenizer,
            tensors: found.tensors,
            notes: keys.notes,
        })
    }
}

/// Refuses one of several files of a model.
fn refuse_parts(keys: &mut Keys<'_>) {
    if let Some(count) = keys.size("split.count").filter(|n| *n > 1) {
        keys.problems.push(format!(
            "is one of {count} files of a model. Join them with llama.cpp's `llama-gguf-split --merge`"
        ));
    }
}

fn unknown_architecture(keys: &Keys<'_>) -> String {
    let known: Vec<&str> = ARCHITECTURES.iter().map(|a| a.name).collect();
    format!(
        "holds a model of architecture \"{}\"; dlc reads {} from GGUF. Take the model's original checkpoint",
        dlc_errors::printable::shown(keys.architecture()),
        known.join(", ")
    )
}

/// Ids of special tokens; null says that there is none, where a class would have a default.
fn special_ids(tokenizer: Option<&TokenizerFiles>) -> Map<String, Json> {
    let id = |of: fn(&TokenizerFiles) -> Option<u32>| {
        tokenizer.and_then(of).map_or(Json::Null, Json::from)
    };
    Map::from_iter([
        ("bos_token_id".to_owned(), id(|t| t.bos)),
        ("eos_token_id".to_owned(), id(|t| t.ends.first().copied())),
        ("pad_token_id".to_owned(), id(|t| t.pad)),
    ])
}

fn generation_config(
    ids: Map<String, Json>,
    tokenizer: Option<&TokenizerFiles>,
) -> Map<String, Json> {
    let mut config = Map::from_iter([("_from_model_config".to_owned(), true.into())]);
    config.extend(ids.into_iter().filter(|(_, id)| !id.is_null()));
    if let Some(ends) = tokenizer.map(|t| &t.ends).filter(|ends| ends.len() > 1) {
        config.insert("eos_token_id".into(), json!(ends));
    }
    config
}
