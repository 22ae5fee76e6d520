//! `OLMo` 2: Llama with norms after attention and MLP instead of before, and queries and keys
//! normed over their whole width.

use dlc_ir::Task;

use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Nothing, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::rope::Share;
use super::spec::{Biases, DecoderSpec, Norms, Placement, QkNorm};
use super::windows::require_all_layers;
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "olmo2",
    architectures: &[
        ("Olmo2ForCausalLM", Task::TextGeneration),
        ("Olmo2ForSequenceClassification", Task::TextClassification),
    ],
    summary: "OLMo 2, 1B to 32B",
    keys: |_| KEYS,
    aliases: &[],
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
    key("vocab_size", Whole(50_304)),
    key("hidden_size", Whole(4096)),
    key("intermediate_size", Whole(11_008)),
    key("num_hidden_layers", Whole(32)),
    key("num_attention_heads", Whole(32)),
    optional("num_key_value_heads", Nothing),
    key("head_dim", Nothing),
    key("hidden_act", Text("silu")),
    key("max_position_embeddings", Whole(2048)),
    key("rms_norm_eps", Real(1e-5)),
    key("rope_theta", Nothing),
    optional("eos_token_id", Whole(50_279)),
    optional("pad_token_id", Whole(1)),
    key("tie_word_embeddings", Flag(false)),
    key("attention_bias", Flag(false)),
];

fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    let spec = DecoderSpec::read(config, task, Share::Whole);
    require_all_layers(config, spec.layers, false);
    let attention = config.flag("attention_bias");
    Box::new(DecoderSpec {
        norms: Norms {
            placement: Placement::After,
            ..spec.norms
        },
        qk_norm: QkNorm::WholeWidth,
        bias: Biases {
            qkv: attention,
            output: attention,
            mlp: false,
        },
        ..spec
    })
}
