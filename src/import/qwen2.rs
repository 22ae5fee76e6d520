//! Qwen 1.5, 2 and 2.5: Llama with biases on queries, keys and values, and windows on some layers.

use dlc_ir::Task;

use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Nothing, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::rope::Share;
use super::spec::{Biases, DecoderSpec};
use super::windows::qwen_windows;
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "qwen2",
    architectures: &[
        ("Qwen2ForCausalLM", Task::TextGeneration),
        ("Qwen2ForSequenceClassification", Task::TextClassification),
    ],
    summary: "Qwen 1.5, 2 and 2.5, dense",
    keys: |_| KEYS,
    aliases: &[],
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
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

fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    let spec = DecoderSpec::read(config, task, Share::Whole);
    Box::new(DecoderSpec {
        bias: Biases {
            qkv: true,
            ..Biases::default()
        },
        windows: qwen_windows(config, spec.layers),
        ..spec
    })
}
