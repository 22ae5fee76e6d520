//! Granite 3: Llama with factors on the embedding, attention's scores, what is added to the
//! residual, and the logits.

use dlc_ir::Task;

use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Nothing, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::rope::Share;
use super::spec::{Biases, DecoderSpec, Multipliers};
use super::windows::require_all_layers;
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "granite",
    architectures: &[("GraniteForCausalLM", Task::TextGeneration)],
    summary: "Granite 3.0 to 3.3, dense",
    keys: |_| KEYS,
    aliases: &[],
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
    key("vocab_size", Whole(32_000)),
    key("hidden_size", Whole(4096)),
    key("intermediate_size", Whole(11_008)),
    key("num_hidden_layers", Whole(32)),
    key("num_attention_heads", Whole(32)),
    optional("num_key_value_heads", Nothing),
    key("head_dim", Nothing),
    key("hidden_act", Text("silu")),
    key("max_position_embeddings", Whole(2048)),
    key("rms_norm_eps", Real(1e-6)),
    key("rope_theta", Nothing),
    optional("bos_token_id", Whole(1)),
    optional("eos_token_id", Whole(2)),
    key("tie_word_embeddings", Flag(false)),
    key("attention_bias", Flag(false)),
    key("mlp_bias", Flag(false)),
    key("embedding_multiplier", Real(1.0)),
    key("attention_multiplier", Real(1.0)),
    key("residual_multiplier", Real(1.0)),
    key("logits_scaling", Real(1.0)),
];

fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    let spec = DecoderSpec::read(config, task, Share::Whole);
    require_all_layers(config, spec.layers, false);
    let attention = config.flag("attention_bias");
    let [embedding, scores, residual, logits] = [
        "embedding_multiplier",
        "attention_multiplier",
        "residual_multiplier",
        "logits_scaling",
    ]
    .map(|key| config.required_factor(key));
    Box::new(DecoderSpec {
        multipliers: Multipliers {
            embedding: Some(embedding as f32),
            attention: scores as f32,
            residual: Some(residual as f32),
            // The class divides by it.
            logits: Some((1.0 / logits) as f32),
        },
        bias: Biases {
            qkv: attention,
            output: attention,
            mlp: config.flag("mlp_bias"),
        },
        ..spec
    })
}
