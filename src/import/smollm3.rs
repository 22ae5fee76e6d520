//! `SmolLM` 3: Llama of which some layers rotate nothing.

use dlc_ir::Task;
use serde_json::Value;

use super::config::{ConfigReader, show};
use super::defaults::Absent::{Flag, Nothing, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::rope::Share;
use super::spec::{Biases, DecoderSpec, MOST_LAYERS};
use super::windows::switched_windows;
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "smollm3",
    architectures: &[
        ("SmolLM3ForCausalLM", Task::TextGeneration),
        ("SmolLM3ForSequenceClassification", Task::TextClassification),
    ],
    summary: "SmolLM 3",
    keys: |_| KEYS,
    aliases: &[],
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
    key("vocab_size", Whole(128_256)),
    key("hidden_size", Whole(2048)),
    key("intermediate_size", Whole(11_008)),
    key("num_hidden_layers", Whole(36)),
    key("num_attention_heads", Whole(16)),
    optional("num_key_value_heads", Whole(4)),
    optional("head_dim", Nothing),
    key("hidden_act", Text("silu")),
    key("max_position_embeddings", Whole(32_768)),
    key("rms_norm_eps", Real(1e-6)),
    key("rope_theta", Real(2_000_000.0)),
    optional("bos_token_id", Whole(128_000)),
    optional("eos_token_id", Whole(128_001)),
    optional("pad_token_id", Whole(128_004)),
    key("tie_word_embeddings", Flag(true)),
    key("attention_bias", Flag(false)),
    key("mlp_bias", Flag(false)),
    key("use_sliding_window", Flag(false)),
    optional("sliding_window", Nothing),
    optional("layer_types", Nothing),
    optional("no_rope_layers", Nothing),
    key("no_rope_layer_interval", Whole(4)),
];

fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    let spec = DecoderSpec::read(config, task, Share::Whole);
    let rotated = rotated_layers(config, spec.layers);
    let windows = switched_windows(config, spec.layers, |layer| !rotated[layer]);
    let attention = config.flag("attention_bias");
    Box::new(DecoderSpec {
        bias: Biases {
            qkv: attention,
            output: attention,
            mlp: config.flag("mlp_bias"),
        },
        windows,
        rotary: spec
            .rotary
            .into_iter()
            .zip(rotated)
            .map(|(rotary, rotated)| rotary.filter(|_| rotated))
            .collect(),
        ..spec
    })
}

/// For each layer whether it rotates: what `no_rope_layers` says, 0 for those that don't, or all
/// but every `no_rope_layer_interval`-th.
fn rotated_layers(config: &mut ConfigReader<'_>, layers: usize) -> Vec<bool> {
    const KEY: &str = "no_rope_layers";
    let interval = config.required_size("no_rope_layer_interval", MOST_LAYERS);
    let by_interval = (1..=layers).map(|layer| !layer.is_multiple_of(interval));
    let Some(value) = config.get(KEY) else {
        return by_interval.collect();
    };
    let list = value.as_array().filter(|list| list.len() >= layers);
    let rotated = list.and_then(|list| {
        let numbers = list.iter().take(layers).map(Value::as_i64);
        numbers.map(|number| number.map(|n| n != 0)).collect()
    });
    rotated.unwrap_or_else(|| {
        config.bad(
            KEY,
            format!(
                "is {}; it must be a list of {layers} whole numbers, 0 for each layer without rotation",
                show(value)
            ),
        );
        by_interval.collect()
    })
}
