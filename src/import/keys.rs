//! The keys of `config.json` that no importer asks for: those that can't change a model's function, and those that mustn't be set.

use serde_json::Value;

/// Values under which a key of [`NEUTRAL`] changes nothing. Null always does.
#[derive(Debug, Clone, Copy)]
pub(super) enum Neutral {
    /// `false`.
    False,
    /// `true`.
    True,
    /// `1`.
    One,
    /// `false`, `{}`, `[]`.
    Empty,
}

impl Neutral {
    pub(super) fn accepts(self, value: &Value) -> bool {
        match self {
            Self::False => *value == Value::Bool(false),
            Self::True => *value == Value::Bool(true),
            Self::One => value.as_f64() == Some(1.0),
            Self::Empty => match value {
                Value::Bool(set) => !set,
                Value::Object(object) => object.is_empty(),
                Value::Array(list) => list.is_empty(),
                _ => false,
            },
        }
    }
}

/// Keys that change the model unless they have their neutral value; the last column goes on from "which ...".
pub(super) const NEUTRAL: &[(&str, Neutral, &str)] = &[
    ("pretraining_tp", Neutral::One, "splits matrix products as the training did"),
    ("partial_rotary_factor", Neutral::One, "rotates only a part of each head"),
    ("rope_interleaved", Neutral::False, "rotates neighbouring entries instead of halves"),
    ("rope_traditional", Neutral::False, "rotates neighbouring entries instead of halves"),
    ("use_mrope", Neutral::False, "rotates by several positions at once"),
    ("quantization_config", Neutral::Empty, "says that the weights are quantised already (take the original checkpoint, dlc quantises by itself)"),
    ("compression_config", Neutral::Empty, "says that the weights are compressed (take the original checkpoint)"),
    ("attn_logit_softcapping", Neutral::False, "caps the attention's logits"),
    ("final_logit_softcapping", Neutral::False, "caps the logits"),
    ("attention_multiplier", Neutral::False, "scales the attention's logits"),
    ("query_pre_attn_scalar", Neutral::False, "scales the attention's logits"),
    ("embedding_multiplier", Neutral::One, "scales the embedding"),
    ("residual_multiplier", Neutral::One, "scales what is added to the residual"),
    ("logits_scaling", Neutral::One, "scales the logits"),
    ("logit_scale", Neutral::One, "scales the logits"),
    ("pruned_heads", Neutral::Empty, "removes heads"),
    ("is_causal", Neutral::True, "lets tokens see later ones"),
    ("is_encoder_decoder", Neutral::False, "adds an encoder"),
    ("add_cross_attention", Neutral::False, "adds cross attention"),
    ("center_input_sample", Neutral::False, "stretches the noisy image"),
    ("only_cross_attention", Neutral::False, "leaves out attention to the image itself"),
    ("dual_cross_attention", Neutral::False, "attends to two texts"),
    ("mid_block_only_cross_attention", Neutral::False, "leaves out attention to the image itself in the middle"),
    ("resnet_skip_time_act", Neutral::False, "leaves out an activation"),
    ("class_embeddings_concat", Neutral::False, "puts the class beside the noise level"),
    ("mid_block_scale_factor", Neutral::One, "scales the middle's outputs"),
    ("resnet_out_scale_factor", Neutral::One, "scales the resnets' outputs"),
    ("auto_map", Neutral::Empty, "names modelling code of the checkpoint's own (remove the key if transformers' built-in class does)"),
];

/// Keys that don't change what a decoder computes: training, bookkeeping, and defaults for generating text.
pub(super) const HARMLESS: &[&str] = &[
    // What the checkpoint is, and who wrote it.
    "_class_name",
    "_commit_hash",
    "_diffusers_version",
    "_name_or_path",
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
    // How it is run: speed and memory, not results.
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_flash_attn_2_enabled",
    "attn_implementation",
    "chunk_size_feed_forward",
    "output_attentions",
    "output_hidden_states",
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
