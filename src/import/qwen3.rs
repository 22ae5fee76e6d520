//! Qwen 3: Llama with queries and keys normed head by head, heads of their own width, and windows
//! on some layers.

use dlc_ir::Task;

use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Nothing, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::rope::Share;
use super::spec::{Biases, DecoderSpec, QkNorm};
use super::windows::qwen_windows;
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "qwen3",
    architectures: &[
        ("Qwen3ForCausalLM", Task::TextGeneration),
        ("Qwen3Model", Task::FeatureExtraction),
        ("Qwen3ForSequenceClassification", Task::TextClassification),
    ],
    summary: "Qwen 3, dense, and Qwen 3 Embedding",
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

fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    let spec = DecoderSpec::read(config, task, Share::Whole);
    let attention = config.flag("attention_bias");
    let bias = Biases {
        qkv: attention,
        output: attention,
        mlp: false,
    };
    Box::new(DecoderSpec {
        bias,
        qk_norm: QkNorm::PerHead,
        windows: qwen_windows(config, spec.layers),
        ..spec
    })
}
