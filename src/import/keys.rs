//! The keys of `config.json` that no importer asks for: those that can't change a model's function,
//! and those that mustn't be set.

use serde_json::Value;

/// Values under which a key of [`NEUTRAL`] changes nothing. Null always does.
#[derive(Debug, Clone, Copy)]
pub(super) enum Neutral {
    /// `false`, once or for each part; `{}`.
    Off,
    /// `true`.
    True,
    /// `1`.
    One,
}

impl Neutral {
    pub(super) fn accepts(self, value: &Value) -> bool {
        match self {
            Self::Off => is_off(value),
            Self::True => *value == Value::Bool(true),
            Self::One => value.as_f64() == Some(1.0),
        }
    }
}

/// Whether a value says of something that it isn't there.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Object(object) => object.is_empty(),
        Value::Array(list) => list.iter().all(|entry| *entry == Value::Bool(false)),
        _ => false,
    }
}

/// What is to be done about a key that nobody asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Harmless,
    /// The user should hear of it.
    Unknown,
    /// The key may change the model, and is null.
    Null,
    /// It may change the model; goes on from "`key` is ..., ".
    Refused(String),
}

/// Judges a key; `whole` where it stands in the configuration itself.
pub(super) fn judge(key: &str, value: &Value, whole: bool) -> Verdict {
    let neutral = NEUTRAL.iter().find(|(name, ..)| *name == key);
    match neutral {
        Some(_) if value.is_null() => Verdict::Null,
        Some((_, neutral, reason)) if !neutral.accepts(value) => {
            Verdict::Refused(format!("which {reason}; dlc can't do that"))
        }
        Some(_) => Verdict::Harmless,
        None if is_off(value) || whole && HARMLESS.contains(&key) => Verdict::Harmless,
        None if !whole => Verdict::Refused("which dlc doesn't know here".into()),
        None => match telling_part(key) {
            Some(part) if !says_nothing(value, FACTORS.contains(&part)) => Verdict::Refused(
                format!("which by its name (`{part}`) may change the model; dlc doesn't know how"),
            ),
            _ => Verdict::Unknown,
        },
    }
}

/// Whether the value of a key with a telling name says that nothing is done: a factor of 1, none of
/// what is counted, a name for that.
fn says_nothing(value: &Value, is_factor: bool) -> bool {
    const NAMES: [&str; 3] = ["", "none", "default"];
    let neutral = if is_factor { 1.0 } else { 0.0 };
    value.as_f64() == Some(neutral) || value.as_str().is_some_and(|name| NAMES.contains(&name))
}

/// The part of a key's name that says that the key changes a model.
fn telling_part(key: &str) -> Option<&'static str> {
    let key = format!("_{}_", key.to_ascii_lowercase().replace(['.', '-'], "_"));
    TELLING
        .iter()
        .copied()
        .find(|part| key.contains(&format!("_{part}_")))
}

/// Those of which one changes nothing.
const FACTORS: [&str; 5] = ["multiplier", "multipliers", "scale", "scales", "scaling"];

/// Parts of names of keys that change what a model computes.
const TELLING: &[&str] = &[
    // Positions.
    "alibi",
    "mrope",
    "no_rope",
    "nope",
    "ntk",
    "position_embedding_type",
    "rope",
    "rotary",
    "rotary_dim",
    "yarn",
    // Weights that aren't what they are.
    "adapter",
    "adapters",
    "compression",
    "lora",
    "prune",
    "pruned",
    "pruning",
    "quant",
    "quantization",
    "quantized",
    "sparsity",
    // Factors and caps.
    "clip_qkv",
    "multiplier",
    "multipliers",
    "mup",
    "scale",
    "scales",
    "scaling",
    "softcap",
    "softcapping",
    // Other layers.
    "alt_attention",
    "attention_layers",
    "attention_type",
    "attention_types",
    "attn_type",
    "attn_types",
    "bidirectional",
    "block_types",
    "cross_attention",
    "expert",
    "experts",
    "layer_type",
    "layers_block_type",
    "moe",
    "norm_type",
    "parallel_attn",
    "parallel_residual",
    "per_layer_config",
    "prefix_lm",
    "qk_layernorm",
    "qk_norm",
    "sink",
    "sinks",
    "sliding_window_pattern",
    "temperature_tuning",
];

/// Keys that change the model unless they have their neutral value; the last column goes on from
/// "which ...".
pub(super) const NEUTRAL: &[(&str, Neutral, &str)] = &[
    (
        "pretraining_tp",
        Neutral::One,
        "splits matrix products as the training did",
    ),
    (
        "partial_rotary_factor",
        Neutral::One,
        "rotates only a part of each head",
    ),
    (
        "rope_interleaved",
        Neutral::Off,
        "rotates neighbouring entries instead of halves",
    ),
    (
        "rope_traditional",
        Neutral::Off,
        "rotates neighbouring entries instead of halves",
    ),
    (
        "use_mrope",
        Neutral::Off,
        "rotates by several positions at once",
    ),
    (
        "compression_config",
        Neutral::Off,
        "says that the weights are compressed (take the original checkpoint)",
    ),
    (
        "attn_logit_softcapping",
        Neutral::Off,
        "caps the attention's logits",
    ),
    ("final_logit_softcapping", Neutral::Off, "caps the logits"),
    (
        "attention_multiplier",
        Neutral::Off,
        "scales the attention's logits",
    ),
    (
        "query_pre_attn_scalar",
        Neutral::Off,
        "scales the attention's logits",
    ),
    ("embedding_multiplier", Neutral::One, "scales the embedding"),
    (
        "residual_multiplier",
        Neutral::One,
        "scales what is added to the residual",
    ),
    ("logits_scaling", Neutral::One, "scales the logits"),
    ("logit_scale", Neutral::One, "scales the logits"),
    ("pruned_heads", Neutral::Off, "removes heads"),
    ("is_causal", Neutral::True, "lets tokens see later ones"),
    ("is_encoder_decoder", Neutral::Off, "adds an encoder"),
    ("add_cross_attention", Neutral::Off, "adds cross attention"),
    (
        "center_input_sample",
        Neutral::Off,
        "stretches the noisy image",
    ),
    (
        "only_cross_attention",
        Neutral::Off,
        "leaves out attention to the image itself",
    ),
    ("dual_cross_attention", Neutral::Off, "attends to two texts"),
    (
        "mid_block_only_cross_attention",
        Neutral::Off,
        "leaves out attention to the image itself in the middle",
    ),
    (
        "resnet_skip_time_act",
        Neutral::Off,
        "leaves out an activation",
    ),
    (
        "class_embeddings_concat",
        Neutral::Off,
        "puts the class beside the noise level",
    ),
    (
        "mid_block_scale_factor",
        Neutral::One,
        "scales the middle's outputs",
    ),
    (
        "resnet_out_scale_factor",
        Neutral::One,
        "scales the resnets' outputs",
    ),
    (
        "layer_types",
        Neutral::Off,
        "gives layers kinds, of which this architecture has one",
    ),
    (
        "sliding_window",
        Neutral::Off,
        "limits attention to a window, which this architecture doesn't have",
    ),
    ("window_size", Neutral::Off, "limits attention to a window"),
    (
        "attention_window",
        Neutral::Off,
        "limits attention to a window",
    ),
    (
        "class_embed_type",
        Neutral::Off,
        "tells the model more than dlc can",
    ),
    (
        "encoder_hid_dim_type",
        Neutral::Off,
        "projects the text first",
    ),
    ("encoder_hid_dim", Neutral::Off, "projects the text first"),
    (
        "time_cond_proj_dim",
        Neutral::Off,
        "tells the model the guidance",
    ),
    (
        "time_embedding_act_fn",
        Neutral::Off,
        "bends the noise level once more",
    ),
    (
        "timestep_post_act",
        Neutral::Off,
        "bends the noise level once more",
    ),
    ("cross_attention_norm", Neutral::Off, "norms the text"),
    (
        "reverse_transformer_layers_per_block",
        Neutral::Off,
        "gives stages on the way up other numbers of layers",
    ),
    ("num_vector_embeds", Neutral::Off, "reads classes of places"),
    (
        "double_self_attention",
        Neutral::Off,
        "attends twice to the image",
    ),
];

/// Keys that don't change what a decoder computes: training, bookkeeping, and defaults for
/// generating text.
pub(super) const HARMLESS: &[&str] = &[
    // What the checkpoint is, and who wrote it.
    "_class_name",
    "_commit_hash",
    "_diffusers_version",
    "_name_or_path",
    "_num_labels",
    "architectures",
    "dtype",
    "is_llama_config",
    "license",
    "model_type",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    // Training.
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "embd_pdrop",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "initializer_factor",
    "initializer_range",
    "resid_pdrop",
    "router_aux_loss_coef",
    "router_jitter_noise",
    // How it is run: speed and memory, not results.
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_flash_attn_2_enabled",
    "attn_implementation",
    "chunk_size_feed_forward",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "return_dict_in_generate",
    "tf_legacy_loss",
    "torchscript",
    "use_bfloat16",
    "use_cache",
    "use_flash_attn",
    "use_return_dict",
    // Lengths that only limit what is fed.
    "max_sequence_length",
    "max_window_layers",
    "model_max_length",
    "tokenizer_model_max_length",
    // Classification heads and encoder-decoders, which a decoder is not.
    "cross_attention_hidden_size",
    "finetuning_task",
    "id2label",
    "is_decoder",
    "label2id",
    "num_labels",
    "problem_type",
    "task_specific_params",
    "tie_encoder_decoder",
    // Tokens; bos, eos and pad are read apart.
    "cls_token_id",
    "decoder_start_token_id",
    "mask_token_id",
    "pad_token",
    "prefix",
    "sep_token_id",
    "unk_token_id",
    // Generating text.
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "remove_invalid_values",
    "repetition_penalty",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];
