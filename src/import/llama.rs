//! Llama 1 to 3.2 and what shares its architecture: `TinyLlama`, `SmolLM`, Yi, `DeepSeek`
//! distillates.

use dlc_ir::Task;

use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Nothing, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::rope::Share;
use super::spec::{Biases, DecoderSpec};
use super::windows::require_all_layers;
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "llama",
    architectures: &[
        ("LlamaForCausalLM", Task::TextGeneration),
        ("LlamaForSequenceClassification", Task::TextClassification),
    ],
    summary: "Llama 1 to 3.2, TinyLlama, SmolLM 1 and 2, Yi",
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

fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    let spec = DecoderSpec::read(config, task, Share::Whole);
    require_all_layers(config, spec.layers, false);
    let attention = config.flag("attention_bias");
    Box::new(DecoderSpec {
        bias: Biases {
            qkv: attention,
            output: attention,
            mlp: config.flag("mlp_bias"),
        },
        ..spec
    })
}
