//! Mistral 7B and its kin: Llama with one window for all layers.

use dlc_ir::Task;

use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Nothing, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::rope::Share;
use super::spec::DecoderSpec;
use super::windows::{require_all_layers, window};
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "mistral",
    architectures: &[
        ("MistralForCausalLM", Task::TextGeneration),
        ("MistralForSequenceClassification", Task::TextClassification),
    ],
    summary: "Mistral 7B and Nemo, with or without sliding window",
    keys: |_| KEYS,
    aliases: &[],
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
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

fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    let spec = DecoderSpec::read(config, task, Share::Whole);
    let window = window(config);
    require_all_layers(config, spec.layers, window.is_some());
    Box::new(DecoderSpec {
        windows: vec![window; spec.layers],
        ..spec
    })
}
