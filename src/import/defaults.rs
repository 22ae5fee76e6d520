//! What the classes of transformers and diffusers say of their keys: what stands for a key that a configuration leaves out, and whether null
//! means none or is refused.
//!
//! `fixtures/configurations.json` holds the libraries' own answers, with which tests compare these tables.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// A key of a configuration's class.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    name: &'static str,
    absent: Absent,
    /// Whether null stands for none; else the class refuses it.
    nullable: bool,
}

/// What stands for a key that isn't there.
#[derive(Debug, Clone, Copy)]
enum Absent {
    /// Nothing, or what depends on other keys.
    Nothing,
    Flag(bool),
    Whole(u64),
    Real(f64),
    Text(&'static str),
    Texts(&'static [&'static str]),
    Wholes(&'static [u64]),
}

impl Absent {
    fn value(self) -> Option<Value> {
        Some(match self {
            Self::Nothing => return None,
            Self::Flag(flag) => flag.into(),
            Self::Whole(n) => n.into(),
            Self::Real(x) => x.into(),
            Self::Text(text) => text.into(),
            Self::Texts(texts) => texts.to_vec().into(),
            Self::Wholes(numbers) => numbers.to_vec().into(),
        })
    }
}

const fn key(name: &'static str, absent: Absent) -> Key {
    Key { name, absent, nullable: false }
}

/// A key that may be null.
const fn optional(name: &'static str, absent: Absent) -> Key {
    Key { name, absent, nullable: true }
}

/// Other names that a class takes for keys, and the keys.
pub(super) type Aliases = &'static [(&'static str, &'static str)];

/// A configuration, whole: with what its class says of the keys that it leaves out.
#[derive(Debug)]
pub(super) struct Resolved {
    values: Map<String, Value>,
    keys: &'static [Key],
    aliases: Aliases,
    filled: BTreeSet<&'static str>,
}

impl Resolved {
    /// `written` with what is missing of `keys`.
    pub(super) fn new(written: &Map<String, Value>, keys: &'static [Key], aliases: Aliases) -> Self {
        let mut values = written.clone();
        for (alias, key) in aliases {
            if let Some(value) = written.get(*alias).filter(|_| !written.contains_key(*key)) {
                values.insert((*key).to_owned(), value.clone());
            }
        }
        let mut filled = BTreeSet::new();
        for key in keys {
            if let Some(value) = key.absent.value().filter(|_| !values.contains_key(key.name)) {
                values.insert(key.name.to_owned(), value);
                filled.insert(key.name);
            }
        }
        Self { values, keys, aliases, filled }
    }

    pub(super) fn values(&self) -> &Map<String, Value> {
        &self.values
    }

    /// The keys of the class.
    pub(super) fn keys(&self) -> &'static [Key] {
        self.keys
    }

    /// Other names of keys.
    pub(super) fn aliases(&self) -> Aliases {
        self.aliases
    }

    /// Whether the configuration leaves `key` out, and the value is the class's own.
    pub(super) fn is_filled(&self, key: &str) -> bool {
        self.filled.contains(key)
    }
}

/// Whether the class of `keys` refuses null for `key`.
pub(super) fn refuses_null(keys: &[Key], key: &str) -> bool {
    keys.iter().any(|k| k.name == key && !k.nullable)
}

use Absent::{Flag, Nothing, Real, Text, Texts, Whole, Wholes};

/// What is in the objects that describe rotations.
pub(super) const ROPE: &[Key] = &[
    key("rope_theta", Nothing),
    key("factor", Nothing),
    key("low_freq_factor", Nothing),
    key("high_freq_factor", Nothing),
    key("original_max_position_embeddings", Nothing),
];

pub(super) const LLAMA: &[Key] = &[
    key("vocab_size", Whole(32_000)),
    key("hidden_size", Whole(4096)),
    key("intermediate_size", Whole(11_008)),
    key("num_hidden_layers", Whole(32)),
    key("num_attention_heads", Whole(32)),
    optional("num_key_value_heads", Nothing),
    optional("head_dim", Nothing),
    key("hidden_act", Text("silu")),
    key("max_position_embeddings", Whole(2048)),
    key("rms_norm_eps", Real(1e-6)),
    key("rope_theta", Nothing),
    optional("bos_token_id", Whole(1)),
    optional("eos_token_id", Whole(2)),
    key("tie_word_embeddings", Flag(false)),
    key("attention_bias", Flag(false)),
    key("mlp_bias", Flag(false)),
];

pub(super) const MISTRAL: &[Key] = &[
    key("vocab_size", Whole(32_000)),
    key("hidden_size", Whole(4096)),
    key("intermediate_size", Whole(14_336)),
    key("num_hidden_layers", Whole(32)),
    key("num_attention_heads", Whole(32)),
    key("num_key_value_heads", Whole(8)),
    optional("head_dim", Nothing),
    key("hidden_act", Text("silu")),
    key("max_position_embeddings", Whole(4096 * 32)),
    key("rms_norm_eps", Real(1e-6)),
    key("rope_theta", Nothing),
    optional("bos_token_id", Whole(1)),
    optional("eos_token_id", Whole(2)),
    key("tie_word_embeddings", Flag(false)),
    optional("sliding_window", Whole(4096)),
];

pub(super) const QWEN2: &[Key] = &[
    key("vocab_size", Whole(151_936)),
    key("hidden_size", Whole(4096)),
    key("intermediate_size", Whole(22_016)),
    key("num_hidden_layers", Whole(32)),
    key("num_attention_heads", Whole(32)),
    optional("num_key_value_heads", Whole(32)),
    key("head_dim", Nothing),
    key("hidden_act", Text("silu")),
    key("max_position_embeddings", Whole(32_768)),
    key("rms_norm_eps", Real(1e-6)),
    key("rope_theta", Nothing),
    key("tie_word_embeddings", Flag(false)),
    key("use_sliding_window", Flag(false)),
    optional("sliding_window", Whole(4096)),
    key("max_window_layers", Whole(28)),
    optional("layer_types", Nothing),
];

pub(super) const QWEN3: &[Key] = &[
    key("vocab_size", Whole(151_936)),
    key("hidden_size", Whole(4096)),
    key("intermediate_size", Whole(22_016)),
    key("num_hidden_layers", Whole(32)),
    key("num_attention_heads", Whole(32)),
    optional("num_key_value_heads", Whole(32)),
    key("head_dim", Whole(128)),
    key("hidden_act", Text("silu")),
    key("max_position_embeddings", Whole(32_768)),
    key("rms_norm_eps", Real(1e-6)),
    key("rope_theta", Nothing),
    key("tie_word_embeddings", Flag(false)),
    key("attention_bias", Flag(false)),
    key("use_sliding_window", Flag(false)),
    optional("sliding_window", Whole(4096)),
    key("max_window_layers", Whole(28)),
    optional("layer_types", Nothing),
];

pub(super) const PHI3: &[Key] = &[
    key("vocab_size", Whole(32_064)),
    key("hidden_size", Whole(3072)),
    key("intermediate_size", Whole(8192)),
    key("num_hidden_layers", Whole(32)),
    key("num_attention_heads", Whole(32)),
    optional("num_key_value_heads", Nothing),
    key("head_dim", Nothing),
    key("hidden_act", Text("silu")),
    key("max_position_embeddings", Whole(4096)),
    key("original_max_position_embeddings", Whole(4096)),
    key("rms_norm_eps", Real(1e-5)),
    key("rope_theta", Nothing),
    optional("bos_token_id", Whole(1)),
    optional("eos_token_id", Whole(32_000)),
    optional("pad_token_id", Whole(32_000)),
    key("tie_word_embeddings", Flag(false)),
    optional("sliding_window", Nothing),
];

pub(super) const GEMMA2: &[Key] = &[
    key("vocab_size", Whole(256_000)),
    key("hidden_size", Whole(2304)),
    key("intermediate_size", Whole(9216)),
    key("num_hidden_layers", Whole(26)),
    key("num_attention_heads", Whole(8)),
    key("num_key_value_heads", Whole(4)),
    key("head_dim", Whole(256)),
    key("hidden_activation", Text("gelu_pytorch_tanh")),
    key("max_position_embeddings", Whole(8192)),
    key("rms_norm_eps", Real(1e-6)),
    key("rope_theta", Nothing),
    optional("bos_token_id", Whole(2)),
    optional("eos_token_id", Whole(1)),
    optional("pad_token_id", Whole(0)),
    key("tie_word_embeddings", Flag(true)),
    key("attention_bias", Flag(false)),
    key("query_pre_attn_scalar", Whole(256)),
    optional("sliding_window", Whole(4096)),
    optional("layer_types", Nothing),
    optional("attn_logit_softcapping", Real(50.0)),
    optional("final_logit_softcapping", Real(30.0)),
    optional("use_bidirectional_attention", Nothing),
];

pub(super) const GPT2: &[Key] = &[
    key("vocab_size", Whole(50_257)),
    key("n_embd", Whole(768)),
    key("n_layer", Whole(12)),
    key("n_head", Whole(12)),
    key("n_positions", Whole(1024)),
    optional("n_inner", Nothing),
    key("activation_function", Text("gelu_new")),
    key("layer_norm_epsilon", Real(1e-5)),
    key("scale_attn_weights", Flag(true)),
    key("scale_attn_by_inverse_layer_idx", Flag(false)),
    key("add_cross_attention", Flag(false)),
    optional("bos_token_id", Whole(50_256)),
    optional("eos_token_id", Whole(50_256)),
    key("tie_word_embeddings", Flag(true)),
];

pub(super) const GPT_NEOX: &[Key] = &[
    key("vocab_size", Whole(50_432)),
    key("hidden_size", Whole(6144)),
    key("intermediate_size", Whole(24_576)),
    key("num_hidden_layers", Whole(44)),
    key("num_attention_heads", Whole(64)),
    key("hidden_act", Text("gelu")),
    key("max_position_embeddings", Whole(2048)),
    key("layer_norm_eps", Real(1e-5)),
    key("rotary_pct", Nothing),
    key("rotary_emb_base", Nothing),
    optional("bos_token_id", Whole(0)),
    optional("eos_token_id", Whole(2)),
    key("tie_word_embeddings", Flag(false)),
    key("use_parallel_residual", Flag(true)),
    key("attention_bias", Flag(true)),
];

pub(super) const BERT: &[Key] = &[
    key("vocab_size", Whole(30_522)),
    key("hidden_size", Whole(768)),
    key("intermediate_size", Whole(3072)),
    key("num_hidden_layers", Whole(12)),
    key("num_attention_heads", Whole(12)),
    key("hidden_act", Text("gelu")),
    key("max_position_embeddings", Whole(512)),
    key("type_vocab_size", Whole(2)),
    key("layer_norm_eps", Real(1e-12)),
    optional("pad_token_id", Whole(0)),
    key("is_decoder", Flag(false)),
    key("add_cross_attention", Flag(false)),
    key("tie_word_embeddings", Flag(true)),
];

pub(super) const ROBERTA: &[Key] = &[
    key("vocab_size", Whole(50_265)),
    key("hidden_size", Whole(768)),
    key("intermediate_size", Whole(3072)),
    key("num_hidden_layers", Whole(12)),
    key("num_attention_heads", Whole(12)),
    key("hidden_act", Text("gelu")),
    key("max_position_embeddings", Whole(512)),
    key("type_vocab_size", Whole(2)),
    key("layer_norm_eps", Real(1e-12)),
    // The class takes null; then the model can't count positions.
    key("pad_token_id", Whole(1)),
    optional("bos_token_id", Whole(0)),
    optional("eos_token_id", Whole(2)),
    key("is_decoder", Flag(false)),
    key("add_cross_attention", Flag(false)),
    key("tie_word_embeddings", Flag(true)),
];

pub(super) const DEBERTA: &[Key] = &[
    key("vocab_size", Whole(50_265)),
    key("hidden_size", Whole(768)),
    key("intermediate_size", Whole(3072)),
    key("num_hidden_layers", Whole(12)),
    key("num_attention_heads", Whole(12)),
    key("hidden_act", Text("gelu")),
    key("max_position_embeddings", Whole(512)),
    key("type_vocab_size", Whole(0)),
    key("layer_norm_eps", Real(1e-7)),
    key("relative_attention", Flag(false)),
    key("max_relative_positions", Real(-1.0)),
    optional("pad_token_id", Whole(0)),
    key("position_biased_input", Flag(true)),
    optional("pos_att_type", Nothing),
    key("pooler_hidden_act", Text("gelu")),
    optional("pooler_hidden_size", Nothing),
    key("embedding_size", Nothing),
    key("legacy", Flag(true)),
    key("tie_word_embeddings", Flag(true)),
];

pub(super) const DEBERTA_V2: &[Key] = &[
    key("vocab_size", Whole(128_100)),
    key("hidden_size", Whole(1536)),
    key("intermediate_size", Whole(6144)),
    key("num_hidden_layers", Whole(24)),
    key("num_attention_heads", Whole(24)),
    key("hidden_act", Text("gelu")),
    key("max_position_embeddings", Whole(512)),
    key("type_vocab_size", Whole(0)),
    key("layer_norm_eps", Real(1e-7)),
    key("relative_attention", Flag(false)),
    key("max_relative_positions", Real(-1.0)),
    optional("pad_token_id", Whole(0)),
    key("position_biased_input", Flag(true)),
    optional("pos_att_type", Nothing),
    key("pooler_hidden_act", Text("gelu")),
    optional("pooler_hidden_size", Nothing),
    key("embedding_size", Nothing),
    key("legacy", Flag(true)),
    key("tie_word_embeddings", Flag(true)),
    key("position_buckets", Real(-1.0)),
    key("norm_rel_ebd", Text("none")),
    key("conv_kernel_size", Whole(0)),
];

pub(super) const DIT: &[Key] = &[
    key("num_attention_heads", Whole(16)),
    key("attention_head_dim", Whole(72)),
    key("in_channels", Whole(4)),
    optional("out_channels", Nothing),
    key("num_layers", Whole(28)),
    optional("attention_bias", Flag(true)),
    key("sample_size", Whole(32)),
    key("patch_size", Whole(2)),
    key("activation_fn", Text("gelu-approximate")),
    key("num_embeds_ada_norm", Whole(1000)),
    key("norm_type", Text("ada_norm_zero")),
    optional("norm_elementwise_affine", Flag(false)),
    key("norm_eps", Real(1e-5)),
];

pub(super) const PIXART: &[Key] = &[
    key("num_attention_heads", Whole(16)),
    key("attention_head_dim", Whole(72)),
    key("in_channels", Whole(4)),
    optional("out_channels", Whole(8)),
    key("num_layers", Whole(28)),
    key("cross_attention_dim", Whole(1152)),
    optional("attention_bias", Flag(true)),
    key("sample_size", Whole(128)),
    key("patch_size", Whole(2)),
    key("activation_fn", Text("gelu-approximate")),
    key("norm_type", Text("ada_norm_single")),
    optional("norm_elementwise_affine", Flag(false)),
    key("norm_eps", Real(1e-6)),
    optional("interpolation_scale", Nothing),
    optional("use_additional_conditions", Nothing),
    optional("caption_channels", Nothing),
    optional("attention_type", Text("default")),
];

/// Of models that diffusers takes for neither of these.
pub(super) const TRANSFORMER_2D: &[Key] = &[key("norm_type", Text("layer_norm"))];

pub(super) const UNET_2D: &[Key] = &[
    optional("sample_size", Nothing),
    key("in_channels", Whole(3)),
    key("out_channels", Whole(3)),
    optional("center_input_sample", Flag(false)),
    key("time_embedding_type", Text("positional")),
    optional("time_embedding_dim", Nothing),
    key("freq_shift", Whole(0)),
    optional("flip_sin_to_cos", Flag(true)),
    key("down_block_types", Texts(&["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"])),
    optional("mid_block_type", Text("UNetMidBlock2D")),
    key("up_block_types", Texts(&["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"])),
    key("block_out_channels", Wholes(&[224, 448, 672, 896])),
    key("layers_per_block", Whole(2)),
    key("mid_block_scale_factor", Whole(1)),
    key("downsample_padding", Whole(1)),
    optional("downsample_type", Text("conv")),
    optional("upsample_type", Text("conv")),
    key("act_fn", Text("silu")),
    optional("attention_head_dim", Whole(8)),
    key("norm_num_groups", Whole(32)),
    optional("attn_norm_num_groups", Nothing),
    key("norm_eps", Real(1e-5)),
    key("resnet_time_scale_shift", Text("default")),
    optional("add_attention", Flag(true)),
    optional("class_embed_type", Nothing),
    optional("num_class_embeds", Nothing),
];

pub(super) const UNET_2D_CONDITION: &[Key] = &[
    optional("sample_size", Nothing),
    key("in_channels", Whole(4)),
    key("out_channels", Whole(4)),
    optional("center_input_sample", Flag(false)),
    optional("flip_sin_to_cos", Flag(true)),
    key("freq_shift", Whole(0)),
    key("down_block_types", Texts(&["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"])),
    optional("mid_block_type", Text("UNetMidBlock2DCrossAttn")),
    key("up_block_types", Texts(&["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"])),
    key("only_cross_attention", Flag(false)),
    key("block_out_channels", Wholes(&[320, 640, 1280, 1280])),
    key("layers_per_block", Whole(2)),
    key("downsample_padding", Whole(1)),
    key("mid_block_scale_factor", Whole(1)),
    key("act_fn", Text("silu")),
    key("norm_num_groups", Whole(32)),
    key("norm_eps", Real(1e-5)),
    key("cross_attention_dim", Whole(1280)),
    key("transformer_layers_per_block", Whole(1)),
    key("attention_head_dim", Whole(8)),
    optional("dual_cross_attention", Flag(false)),
    optional("use_linear_projection", Flag(false)),
    optional("class_embed_type", Nothing),
    optional("addition_embed_type", Nothing),
    optional("addition_time_embed_dim", Nothing),
    optional("num_class_embeds", Nothing),
    key("resnet_time_scale_shift", Text("default")),
    optional("resnet_skip_time_act", Flag(false)),
    key("resnet_out_scale_factor", Whole(1)),
    key("time_embedding_type", Text("positional")),
    optional("time_embedding_dim", Nothing),
    key("conv_in_kernel", Whole(3)),
    key("conv_out_kernel", Whole(3)),
    optional("attention_type", Text("default")),
    optional("class_embeddings_concat", Flag(false)),
    optional("mid_block_only_cross_attention", Nothing),
];
