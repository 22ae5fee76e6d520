//! How a module reads prompts: its text encoders, and what tokens they take.

use std::ops::Not;

use serde::{Deserialize, Serialize};

/// How prompts become what a denoiser is conditioned on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompts {
    /// The text encoders; the states of a text are joined along the last axis in this order.
    pub encoders: Vec<TextEncoder>,
    /// Whether images are led away from zeros instead of the empty text where no negative prompt is
    /// given: `force_zeros_for_empty_prompt` of diffusers.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub zeros_without_negative: bool,
}

/// A graph `input_ids`, `attention_mask i64[batch, seq]` -> [`states`](Self::states)
/// `[batch, seq, width]` and, if it pools, [`TextEncoder::POOLED`] `[batch, width]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextEncoder {
    /// The graph.
    pub graph: String,
    /// The folder of its tokenizer's files in the bundle; empty where they lie in the bundle itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tokenizer: String,
    /// The output that the denoiser takes.
    pub states: String,
    /// Entries of its vocabulary.
    pub vocab_size: usize,
    /// Tokens of a text, padding among them, which longer texts are cut to.
    pub length: usize,
    /// Whether texts have fewer tokens where the tokenizer's `model_max_length` is smaller.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub shortened: bool,
    /// Whether padding is hidden from the encoder and from the denoiser, instead of read as tokens.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub masked: bool,
    /// Whether texts are read in lower case, less the spaces around them.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub lower_case: bool,
}

impl TextEncoder {
    /// The states after the last layer and the last norm.
    pub const LAST: &str = "last_hidden_state";
    /// The states before the last layer.
    pub const PENULTIMATE: &str = "penultimate_hidden_state";
    /// The projected state of the token that ends a text.
    pub const POOLED: &str = "text_embeds";
}
