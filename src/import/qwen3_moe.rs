//! Qwen 3 with mixtures of experts: one window for all layers, if any, and experts in some layers
//! or all.

use dlc_ir::Task;

use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Nothing, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::mixture::{Mixture, Spelling, sparse_layers};
use super::rope::Share;
use super::spec::{Biases, DecoderSpec, QkNorm, WIDEST_MLP};
use super::windows::window;
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "qwen3_moe",
    architectures: &[("Qwen3MoeForCausalLM", Task::TextGeneration)],
    summary: "Qwen 3 with experts, 30B-A3B and 235B-A22B",
    keys: |_| KEYS,
    aliases: &[("num_experts", "num_local_experts")],
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
    key("vocab_size", Whole(151_936)),
    key("hidden_size", Whole(2048)),
    key("intermediate_size", Whole(6144)),
    key("num_hidden_layers", Whole(24)),
    key("num_attention_heads", Whole(32)),
    key("num_key_value_heads", Whole(4)),
    key("head_dim", Nothing),
    key("hidden_act", Text("silu")),
    key("max_position_embeddings", Whole(32_768)),
    key("rms_norm_eps", Real(1e-6)),
    key("rope_theta", Nothing),
    key("tie_word_embeddings", Flag(false)),
    key("attention_bias", Flag(false)),
    key("use_sliding_window", Flag(false)),
    optional("sliding_window", Whole(4096)),
    key("decoder_sparse_step", Whole(1)),
    key("moe_intermediate_size", Whole(768)),
    key("num_experts_per_tok", Whole(8)),
    key("num_local_experts", Whole(128)),
    key("norm_topk_prob", Flag(false)),
    optional("mlp_only_layers", Nothing),
];

const SPELLING: Spelling = Spelling {
    module: "mlp",
    matrices: ["gate_proj", "up_proj", "down_proj"],
};

fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    let spec = DecoderSpec::read(config, task, Share::Whole);
    let normalized = config.flag("norm_topk_prob");
    let size = config.required_size("moe_intermediate_size", WIDEST_MLP);
    let mixture = Mixture::read(config, size, spec.activation, normalized, SPELLING);
    let sparse = sparse_layers(config, spec.layers);
    let slides = config.flag("use_sliding_window");
    let window = window(config).filter(|_| slides);
    let attention = config.flag("attention_bias");
    Box::new(DecoderSpec {
        bias: Biases {
            qkv: attention,
            output: attention,
            mlp: false,
        },
        qk_norm: QkNorm::PerHead,
        windows: vec![window; spec.layers],
        mixtures: sparse
            .into_iter()
            .map(|sparse| sparse.then_some(mixture))
            .collect(),
        ..spec
    })
}
