//! The architectures: what llama.cpp calls their tensors, and how it stores them.

use super::config::Shape;
use crate::keys::Keys;
use serde_json::{Map, Value};

/// A decoder that llama.cpp and transformers both know.
#[derive(Debug)]
pub(super) struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// `model_type` of transformers.
    pub model_type: &'static str,
    /// Its class of transformers.
    pub class: &'static str,
    /// The tensors of a layer.
    pub layer: &'static [Part],
    /// Whether rows of queries and keys lie pair by pair, as llama.cpp rotates them.
    pub interleaved: bool,
    /// Whether norms are stored with 1 added, which transformers adds when it runs.
    pub norms_plus_one: bool,
    /// What its configuration says beside what all say.
    pub configure: fn(&mut Keys<'_>, &Shape, &mut Map<String, Value>),
}

/// Tensors of a layer: a weight, maybe with a bias.
#[derive(Debug)]
pub(super) struct Part {
    /// Between `blk.N.` and `.weight`.
    pub gguf: &'static str,
    /// Between `model.layers.N.` and `.weight`.
    pub hugging_face: &'static str,
    /// Whether there is a bias.
    pub bias: Bias,
}

/// Whether a part has a bias beside its weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bias {
    Never,
    Maybe,
    Always,
}

const fn part(gguf: &'static str, hugging_face: &'static str) -> Part {
    biased(gguf, hugging_face, Bias::Never)
}

const fn biased(gguf: &'static str, hugging_face: &'static str, bias: Bias) -> Part {
    Part {
        gguf,
        hugging_face,
        bias,
    }
}

const ATTN_NORM: Part = part("attn_norm", "input_layernorm");
const ATTN_Q: Part = part("attn_q", "self_attn.q_proj");
const ATTN_K: Part = part("attn_k", "self_attn.k_proj");
const ATTN_V: Part = part("attn_v", "self_attn.v_proj");
const ATTN_OUTPUT: Part = part("attn_output", "self_attn.o_proj");
const GATE: Part = part("ffn_gate", "mlp.gate_proj");
const UP: Part = part("ffn_up", "mlp.up_proj");
const DOWN: Part = part("ffn_down", "mlp.down_proj");
const FFN_NORM: Part = part("ffn_norm", "post_attention_layernorm");

const LLAMA: Architecture = Architecture {
    name: "llama",
    model_type: "llama",
    class: "LlamaForCausalLM",
    layer: &[
        ATTN_NORM,
        biased("attn_q", "self_attn.q_proj", Bias::Maybe),
        biased("attn_k", "self_attn.k_proj", Bias::Maybe),
        biased("attn_v", "self_attn.v_proj", Bias::Maybe),
        biased("attn_output", "self_attn.o_proj", Bias::Maybe),
        FFN_NORM,
        biased("ffn_gate", "mlp.gate_proj", Bias::Maybe),
        biased("ffn_up", "mlp.up_proj", Bias::Maybe),
        biased("ffn_down", "mlp.down_proj", Bias::Maybe),
    ],
    interleaved: true,
    norms_plus_one: false,
    configure: super::config::llama,
};

const QWEN2: Architecture = Architecture {
    name: "qwen2",
    model_type: "qwen2",
    class: "Qwen2ForCausalLM",
    layer: &[
        ATTN_NORM,
        biased("attn_q", "self_attn.q_proj", Bias::Always),
        biased("attn_k", "self_attn.k_proj", Bias::Always),
        biased("attn_v", "self_attn.v_proj", Bias::Always),
        ATTN_OUTPUT,
        FFN_NORM,
        GATE,
        UP,
        DOWN,
    ],
    interleaved: false,
    norms_plus_one: false,
    configure: super::config::qwen,
};

const QWEN3: Architecture = Architecture {
    name: "qwen3",
    model_type: "qwen3",
    class: "Qwen3ForCausalLM",
    layer: &[
        ATTN_NORM,
        ATTN_Q,
        ATTN_K,
        ATTN_V,
        ATTN_OUTPUT,
        part("attn_q_norm", "self_attn.q_norm"),
        part("attn_k_norm", "self_attn.k_norm"),
        FFN_NORM,
        GATE,
        UP,
        DOWN,
    ],
    interleaved: false,
    norms_plus_one: false,
    configure: super::config::qwen3,
};

const GEMMA2: Architecture = Architecture {
    name: "gemma2",
    model_type: "gemma2",
    class: "Gemma2ForCausalLM",
    layer: &[
        ATTN_NORM,
        ATTN_Q,
        ATTN_K,
        ATTN_V,
        ATTN_OUTPUT,
        part("post_attention_norm", "post_attention_layernorm"),
        part("ffn_norm", "pre_feedforward_layernorm"),
        GATE,
        UP,
        DOWN,
        part("post_ffw_norm", "post_feedforward_layernorm"),
    ],
    interleaved: false,
    norms_plus_one: true,
    configure: super::config::gemma2,
};

const GEMMA3: Architecture = Architecture {
    name: "gemma3",
    model_type: "gemma3_text",
    class: "Gemma3ForCausalLM",
    layer: &[
        ATTN_NORM,
        ATTN_Q,
        ATTN_K,
        ATTN_V,
        ATTN_OUTPUT,
        part("attn_q_norm", "self_attn.q_norm"),
        part("attn_k_norm", "self_attn.k_norm"),
        part("post_attention_norm", "post_attention_layernorm"),
        part("ffn_norm", "pre_feedforward_layernorm"),
        GATE,
        UP,
        DOWN,
        part("post_ffw_norm", "post_feedforward_layernorm"),
    ],
    interleaved: false,
    norms_plus_one: true,
    configure: super::config::gemma3,
};

/// Every architecture.
pub(super) const ARCHITECTURES: [&Architecture; 5] = [&LLAMA, &QWEN2, &QWEN3, &GEMMA2, &GEMMA3];

impl Architecture {
    pub fn find(name: &str) -> Option<&'static Self> {
        ARCHITECTURES.into_iter().find(|a| a.name == name)
    }
}
