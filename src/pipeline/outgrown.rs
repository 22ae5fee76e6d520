//! Adapters that bring what the base doesn't have: a head for classes, or rows for more tokens. The
//! checkpoint is read as if it had them.
//!
//! PEFT saves a head or an embedding whole where it was trained whole; the base's configuration
//! then says too little.

use std::collections::BTreeMap;

use dlc_ir::{SideFile, Task};
use serde_json::{Map, Value, json};

use crate::checkpoint::{AdapterFiles, Checkpoint, TensorRecord};
use crate::import::FAMILIES;

/// Beginnings of the names of a head for classes.
const HEAD: [&str; 4] = ["classifier.", "pre_classifier.", "pooler.", "qa_outputs."];

/// Files that a tokenizer may be in.
const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

/// What PEFT puts before the names of the model's own modules.
const PEFT: &str = "base_model.model.";

/// What an adapter that outgrows its base brought along.
#[derive(Debug, Default)]
pub(super) struct Adopted {
    /// What was changed in the configuration.
    pub notes: Vec<String>,
    /// Files of the tokenizer that take the place of the base's.
    pub tokenizer: Vec<SideFile>,
}

/// Lets `checkpoint` have what `adapter` brings.
pub(super) fn adopt(checkpoint: &mut Checkpoint, adapter: &AdapterFiles) -> Adopted {
    let mut adopted = Adopted::default();
    let Some(config) = &adapter.config else {
        return adopted;
    };
    let wholes = wholes(adapter);
    adopted
        .notes
        .extend(adopt_head(checkpoint, config, &wholes));
    if let Some(note) = adopt_tokens(checkpoint, &wholes) {
        adopted.tokenizer = TOKENIZER_FILES
            .iter()
            .map(|name| SideFile {
                name: (*name).to_owned(),
                path: adapter.folder.join(name),
            })
            .filter(|file| file.path.is_file())
            .collect();
        let whose = if adopted.tokenizer.is_empty() {
            "; its folder has no tokenizer, and the base's doesn't know them"
        } else {
            ", and its tokenizer"
        };
        adopted.notes.push(note + whose);
    }
    adopted.notes.extend(adopt_own_head(checkpoint, &wholes));
    adopted
}

/// The tensors that take the place of whole ones, under the model's names.
fn wholes(adapter: &AdapterFiles) -> BTreeMap<String, TensorRecord> {
    let plain = |name: &str| {
        let bare = name.strip_prefix(PEFT)?;
        let other = [".lora_", ".original_module.", ".token_adapter."]
            .iter()
            .any(|part| bare.contains(part));
        let bare = bare
            .replace(".modules_to_save.default.", ".")
            .replace(".modules_to_save.", ".")
            .replace(".base_layer.", ".");
        (!other).then_some(bare)
    };
    adapter
        .tensors
        .iter()
        .filter_map(|(name, record)| Some((plain(name)?, record.clone())))
        .collect()
}

/// A head for classes of texts or tokens, or for answers, where the base is for something else or has other
/// classes.
fn adopt_head(
    checkpoint: &mut Checkpoint,
    adapter: &Map<String, Value>,
    wholes: &BTreeMap<String, TensorRecord>,
) -> Option<String> {
    let task = match adapter.get("task_type").and_then(Value::as_str)? {
        "SEQ_CLS" => Task::TextClassification,
        "TOKEN_CLS" => Task::TokenClassification,
        "QUESTION_ANS" => Task::QuestionAnswering,
        _ => return None,
    };
    let mut config = checkpoint.config().clone();
    let family = FAMILIES.iter().find(|family| {
        Some(family.model_type) == config.get("model_type").and_then(Value::as_str)
    })?;
    let (architecture, _) = family.architectures.iter().find(|(_, of)| *of == task)?;
    let last = [
        "classifier.out_proj.weight",
        "classifier.weight",
        "qa_outputs.weight",
    ]
    .iter()
    .find_map(|name| wholes.get(*name))?;
    let labels = *last.shape.first()?;
    let named = config
        .get("id2label")
        .and_then(Value::as_object)
        .is_some_and(|names| names.len() == labels);
    if !named {
        config.remove("id2label");
        config.remove("label2id");
        config.insert("num_labels".into(), json!(labels));
    }
    config.insert("architectures".into(), json!([architecture]));
    let head = wholes
        .iter()
        .filter(|(name, _)| HEAD.iter().any(|start| name.starts_with(start)))
        .map(|(n, t)| (n.clone(), t.clone()));
    let note = format!("read as {architecture} of {labels} labels, as the adapter brings its head");
    let changed = checkpoint.config().get("architectures") != config.get("architectures") || !named;
    if !changed {
        return None;
    }
    checkpoint.overlay(config, head.collect());
    Some(note)
}

/// An embedding and a head of more tokens.
fn adopt_tokens(
    checkpoint: &mut Checkpoint,
    wholes: &BTreeMap<String, TensorRecord>,
) -> Option<String> {
    let mut config = checkpoint.config().clone();
    let tokens = usize::try_from(config.get("vocab_size")?.as_u64()?).ok()?;
    let grown = |record: &TensorRecord| record.shape.first().is_some_and(|rows| *rows > tokens);
    let larger: BTreeMap<String, TensorRecord> = wholes
        .iter()
        .filter(|(name, record)| grown(record) && base(checkpoint, name, tokens))
        .map(|(n, t)| (n.clone(), t.clone()))
        .collect();
    let rows = larger
        .values()
        .next()
        .and_then(|record| record.shape.first().copied())?;
    // Every table of the vocabulary has to come along, or some wouldn't fit.
    let tables: Vec<&str> = checkpoint
        .tensors()
        .filter(|(_, record)| record.shape.first() == Some(&tokens) && record.shape.len() == 2)
        .map(|(name, _)| name)
        .collect();
    let covered = tables
        .iter()
        .all(|table| larger.keys().any(|name| same_tensor(name, table)));
    if !covered
        || larger
            .values()
            .any(|record| record.shape.first() != Some(&rows))
    {
        return None;
    }
    config.insert("vocab_size".into(), json!(rows));
    if larger.len() > 1 {
        // PEFT keeps each module that was trained as a whole by itself.
        config.insert("tie_word_embeddings".into(), json!(false));
    }
    checkpoint.overlay(config, larger);
    Some(format!(
        "read with {rows} tokens instead of {tokens}, as the adapter brings its embedding and its head"
    ))
}

/// A head that was trained beside the embedding that it is tied to: PEFT keeps each module that was
/// trained as a whole by itself.
fn adopt_own_head(
    checkpoint: &mut Checkpoint,
    wholes: &BTreeMap<String, TensorRecord>,
) -> Option<String> {
    let is_head = |name: &str| name == "lm_head.weight" || name == "embed_out.weight";
    let is_there = |name: &str| {
        checkpoint
            .tensors()
            .any(|(other, _)| same_tensor(name, other))
    };
    let (name, head) = wholes
        .iter()
        .find(|(name, _)| is_head(name) && !is_there(name))?;
    wholes
        .iter()
        .find(|(other, record)| *other != name && record.shape == head.shape && is_there(other))?;
    let mut config = checkpoint.config().clone();
    config.insert("tie_word_embeddings".into(), json!(false));
    let head = BTreeMap::from([(name.clone(), head.clone())]);
    checkpoint.overlay(config, head);
    Some("read with a head of its own, as the adapter brings both embedding and head".to_owned())
}

/// Whether `name` is a table of the vocabulary in the checkpoint, or the head of one whose head is
/// its embedding.
fn base(checkpoint: &Checkpoint, name: &str, tokens: usize) -> bool {
    let of_vocabulary = |record: &TensorRecord| record.shape.first() == Some(&tokens);
    let found = checkpoint
        .tensors()
        .find(|(other, _)| same_tensor(name, other));
    found.map_or_else(
        || name.starts_with("lm_head.") || name.starts_with("embed_out."),
        |(_, record)| of_vocabulary(record),
    )
}

/// Whether two names mean one tensor, one perhaps without the prefix of the model's body.
fn same_tensor(a: &str, b: &str) -> bool {
    let ends = |long: &str, short: &str| {
        long.strip_suffix(short)
            .is_some_and(|start| start.is_empty() || start.ends_with('.'))
    };
    ends(a, b) || ends(b, a)
}
