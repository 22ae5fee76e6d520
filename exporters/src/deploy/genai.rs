//! `genai_config.json`, by which onnxruntime-genai runs a decoder's bundle; with a draft it decodes
//! speculatively.

use dlc_bundle::{CacheLayout, GraphRecord, Profile};
use dlc_ir::{ModelInfo, Module, Task};
use serde_json::{Value, json};

use super::{DeploymentTarget, WrittenBundle, plain};
use crate::search::SearchDefaults;

/// The families that onnxruntime-genai knows by name; any other graph of this boundary is a
/// `decoder` to it.
const KNOWN: [&str; 8] = [
    "gemma2",
    "gemma3_text",
    "llama",
    "mistral",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
];

/// How many tokens a draft guesses where no pass measured what is best: what onnxruntime-genai
/// uses.
const DRAFT_TOKENS: usize = 4;

const FILE: &str = "genai_config.json";

/// Its file stands in every decoder's bundle: it names no operator.
pub(super) const TARGET: DeploymentTarget = DeploymentTarget {
    always: true,
    writes: &[FILE],
    files: |bundle| {
        configuration(bundle)
            .map(|config| (FILE, config.into_bytes()))
            .into_iter()
            .collect()
    },
    ..plain("genai", "onnxruntime-genai", Profile::Ort)
};

/// The configuration, for decoders.
fn configuration(bundle: &WrittenBundle<'_>) -> Option<String> {
    let WrittenBundle {
        module,
        caches,
        search,
        ..
    } = bundle;
    let model = &module.model;
    if model.task != Task::TextGeneration {
        return None;
    }
    let target = bundle.graph("target")?;
    let mut config = json!({ "model": model_block(model, target), "search": search_block(model, *caches, search) });
    if let Some(draft) = bundle
        .graph("draft")
        .filter(|_| search.allows_speculation())
    {
        config["model"]["draft"] = decoder_block(model, draft);
        config["speculative"] = json!({
            "max_draft_tokens": draft_tokens(module),
            "min_adaptive_k": 0,
            "ngram_size": 0,
            "cooldown": false,
        });
    }
    Some(format!("{config:#}\n"))
}

/// How many tokens the draft guesses at a time.
fn draft_tokens(module: &Module) -> usize {
    let drafting = module.drafting;
    drafting
        .and_then(|drafting| drafting.draft_tokens)
        .unwrap_or(DRAFT_TOKENS)
}

/// Tokens that onnxruntime-genai takes: it refuses ids outside the vocabulary.
fn known(model: &ModelInfo, ids: impl IntoIterator<Item = u32>) -> Vec<u32> {
    ids.into_iter()
        .filter(|&id| (id as usize) < model.vocab_size)
        .collect()
}

fn model_block(model: &ModelInfo, target: &GraphRecord) -> Value {
    let eos = known(model, model.eos_token_ids.iter().copied());
    let or_end = |id: Option<u32>| known(model, id).first().or(eos.first()).copied();
    let mut block = json!({
        "type": if KNOWN.contains(&model.family.as_str()) { model.family.as_str() } else { "decoder" },
        "bos_token_id": or_end(model.bos_token_id),
        "eos_token_id": if let [one] = eos[..] { json!(one) } else { json!(eos) },
        "pad_token_id": or_end(model.pad_token_id),
        "context_length": model.context_length,
        "vocab_size": model.vocab_size,
        "decoder": decoder_block(model, target),
    });
    if let Value::Object(entries) = &mut block {
        entries.retain(|_, value| !value.is_null() && *value != json!([]));
    }
    block
}

fn decoder_block(model: &ModelInfo, graph: &GraphRecord) -> Value {
    let mut inputs = serde_json::Map::new();
    for name in ["input_ids", "attention_mask", "position_ids"] {
        if graph.inputs.iter().any(|input| input.name == name) {
            inputs.insert(name.to_owned(), json!(name));
        }
    }
    inputs.insert("past_key_names".to_owned(), json!("past_key_values.%d.key"));
    inputs.insert(
        "past_value_names".to_owned(),
        json!("past_key_values.%d.value"),
    );
    json!({
        "session_options": { "log_id": "onnxruntime-genai", "provider_options": [] },
        "filename": graph.file,
        "head_size": model.head_dim,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.heads,
        "num_hidden_layers": graph.caches.len(),
        "num_key_value_heads": model.kv_heads,
        "inputs": inputs,
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    })
}

fn search_block(model: &ModelInfo, caches: CacheLayout, search: &SearchDefaults) -> Value {
    json!({
        "diversity_penalty": 0.0,
        "do_sample": search.do_sample && search.temperature > 0.0,
        "early_stopping": true,
        "length_penalty": 1.0,
        "max_length": model.context_length,
        "min_length": search.min_length,
        "no_repeat_ngram_size": search.no_repeat_ngram_size,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": caches == CacheLayout::InPlace,
        "repetition_penalty": decimal(search.repetition_penalty),
        "temperature": decimal(search.temperature),
        "top_k": search.top_k,
        "top_p": decimal(search.top_p),
    })
}

/// The shortest number that reads as `x`.
fn decimal(x: f32) -> Value {
    x.to_string()
        .parse::<f64>()
        .map_or_else(|_| json!(x), |x| json!(x))
}
