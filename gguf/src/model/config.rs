//! `config.json` of the metadata: names and defaults are those of transformers' classes.

use serde_json::{Map, Value as Json};

use crate::keys::Keys;
use crate::metadata::Value;

/// The sizes that tensors depend on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Shape {
    pub fn read(keys: &mut Keys<'_>) -> Self {
        let layers = keys.required_size("block_count");
        let hidden = keys.required_size("embedding_length");
        let heads = keys.required_size("attention.head_count");
        let key = keys.full("attention.head_count_kv");
        let kv_heads = keys.size(&key).filter(|n| *n > 0).unwrap_or(heads);
        let lengths = ["attention.key_length", "attention.value_length"].map(|key| {
            let key = keys.full(key);
            keys.size(&key)
        });
        let head_dim = lengths[0].unwrap_or(hidden / heads).max(1);
        if lengths[1].is_some_and(|length| length != head_dim) {
            keys.problems.push(format!(
                "keys and values have different widths, {head_dim} and {}",
                lengths[1].unwrap_or_default()
            ));
        }
        // The importer reads what follows from these; a kernel of sizes must not overflow here.
        if !heads.is_multiple_of(kv_heads) {
            keys.problems.push(format!(
                "{heads} heads don't share the keys of {kv_heads} evenly"
            ));
        }
        Self {
            layers,
            hidden,
            heads,
            kv_heads,
            head_dim,
        }
    }
}

/// What every configuration says, but for what the tokenizer and the tensors tell.
pub(super) fn configuration(keys: &mut Keys<'_>, shape: &Shape) -> Map<String, Json> {
    let mut config = Map::new();
    let mut put = |key: &str, value: Json| _ = config.insert(key.to_owned(), value);
    put("hidden_size", shape.hidden.into());
    put(
        "intermediate_size",
        keys.required_size("feed_forward_length").into(),
    );
    put("num_hidden_layers", shape.layers.into());
    put("num_attention_heads", shape.heads.into());
    put("num_key_value_heads", shape.kv_heads.into());
    put("head_dim", shape.head_dim.into());
    put(
        "max_position_embeddings",
        keys.required_size("context_length").into(),
    );
    put(
        "rms_norm_eps",
        keys.required_number("attention.layer_norm_rms_epsilon")
            .into(),
    );
    put("initializer_range", 0.02.into());
    put("attention_dropout", 0.0.into());
    put("use_cache", true.into());
    refuse_other_functions(keys, shape);
    config
}

/// Keys that change the function of any architecture.
fn refuse_other_functions(keys: &mut Keys<'_>, shape: &Shape) {
    let none = |value: Value<'_>| value.number() == Some(0.0);
    for key in [
        "expert_count",
        "expert_used_count",
        "attention.clamp_kqv",
        "attention.max_alibi_bias",
        "logit_scale",
        "residual_scale",
        "embedding_scale",
        "attention.scale",
        "nextn_predict_layers",
    ] {
        keys.refuse_unless(key, none);
    }
    keys.refuse_unless("attention.causal", |value| value.flag() == Some(true));
    keys.refuse_unless("use_parallel_residual", |value| value.flag() == Some(false));
    keys.refuse_unless("tensor_data_layout", |value| {
        value.text() == Some("reference") || value.text() == Some("Meta AI original pth")
    });
    keys.refuse_unless("rope.dimension_count", |value| {
        value.size() == Some(shape.head_dim)
    });
}

fn refuse_windows(keys: &mut Keys<'_>) {
    keys.refuse_unless("attention.sliding_window", |value| value.size() == Some(0));
}

/// llama's own keys.
pub(super) fn llama(keys: &mut Keys<'_>, _: &Shape, config: &mut Map<String, Json>) {
    refuse_windows(keys);
    config.insert("hidden_act".into(), "silu".into());
    config.insert("pretraining_tp".into(), 1.into());
}

/// qwen2's own keys.
pub(super) fn qwen(keys: &mut Keys<'_>, shape: &Shape, config: &mut Map<String, Json>) {
    refuse_windows(keys);
    if shape.head_dim.checked_mul(shape.heads) == Some(shape.hidden) {
        // transformers' class computes it and has no such key.
        config.remove("head_dim");
    }
    config.insert("hidden_act".into(), "silu".into());
    config.insert("use_sliding_window".into(), false.into());
}

/// qwen3's own keys.
pub(super) fn qwen3(keys: &mut Keys<'_>, _: &Shape, config: &mut Map<String, Json>) {
    refuse_windows(keys);
    config.insert("hidden_act".into(), "silu".into());
    config.insert("attention_bias".into(), false.into());
    config.insert("use_sliding_window".into(), false.into());
}

/// The number whose root scores are divided by: the width of a head, and of the 27B model the width
/// of a head's share of the model, which only the number of its layers tells llama.cpp.
fn scalar(shape: &Shape, layers_of_27b: usize) -> usize {
    if shape.layers == layers_of_27b {
        shape.hidden / shape.heads
    } else {
        shape.head_dim
    }
}

/// gemma2's own keys.
pub(super) fn gemma2(keys: &mut Keys<'_>, shape: &Shape, config: &mut Map<String, Json>) {
    let mut put = |key: &str, value: Json| _ = config.insert(key.to_owned(), value);
    put("hidden_activation", "gelu_pytorch_tanh".into());
    put("attention_bias", false.into());
    put("query_pre_attn_scalar", scalar(shape, 46).into());
    for (key, name, default) in [
        ("attn_logit_softcapping", "attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", "final_logit_softcapping", 30.0),
    ] {
        let key = keys.full(key);
        put(name, keys.number(&key).unwrap_or(default).into());
    }
    let key = keys.full("attention.sliding_window");
    put("sliding_window", keys.size(&key).unwrap_or(4096).into());
    keys.refuse_unless("attention.sliding_window_pattern", |value| {
        value.size() == Some(2)
    });
}

/// gemma3's own keys. What they leave out is as llama.cpp has it.
pub(super) fn gemma3(keys: &mut Keys<'_>, shape: &Shape, config: &mut Map<String, Json>) {
    /// One layer of so many has no window.
    const PATTERN: usize = 6;
    /// The base of the rotation in layers with a window.
    const LOCAL_BASE: f64 = 10_000.0;
    let mut put = |key: &str, value: Json| _ = config.insert(key.to_owned(), value);
    put("hidden_activation", "gelu_pytorch_tanh".into());
    put("attention_bias", false.into());
    put("attn_logit_softcapping", Json::Null);
    put("query_pre_attn_scalar", scalar(shape, 62).into());
    keys.refuse_unless("attn_logit_softcapping", |value| {
        value.number() == Some(0.0)
    });
    let key = keys.full("final_logit_softcapping");
    let cap = keys.number(&key).filter(|cap| *cap > 0.0);
    put("final_logit_softcapping", cap.into());
    let key = keys.full("rope.freq_base_swa");
    let local = keys.number(&key).unwrap_or(LOCAL_BASE);
    put("rope_local_base_freq", local.into());
    let key = keys.full("attention.sliding_window_pattern");
    let pattern = keys.size(&key).unwrap_or(PATTERN);
    let key = keys.full("attention.sliding_window");
    let window = keys.size(&key).filter(|window| *window > 0);
    if let Some(window) = window {
        put("sliding_window", window.into());
    }
    let pattern = if window.is_some() { pattern } else { 1 };
    put("sliding_window_pattern", pattern.into());
}
