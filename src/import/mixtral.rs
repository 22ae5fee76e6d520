//! Mixtral: Mistral with a mixture of experts in every layer.

use dlc_ir::Task;

use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Nothing, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::mixture::{Mixture, Spelling};
use super::rope::Share;
use super::spec::DecoderSpec;
use super::windows::window;
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "mixtral",
    architectures: &[("MixtralForCausalLM", Task::TextGeneration)],
    summary: "Mixtral 8x7B and 8x22B",
    keys: |_| KEYS,
    aliases: &[("num_experts", "num_local_experts")],
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
    key("rms_norm_eps", Real(1e-5)),
    key("rope_theta", Real(1_000_000.0)),
    optional("bos_token_id", Whole(1)),
    optional("eos_token_id", Whole(2)),
    key("tie_word_embeddings", Flag(false)),
    optional("sliding_window", Nothing),
    key("num_local_experts", Whole(8)),
    key("num_experts_per_tok", Whole(2)),
];

/// Gate, down and up are called by numbers.
const SPELLING: Spelling = Spelling {
    module: "block_sparse_moe",
    matrices: ["w1", "w3", "w2"],
};

fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    let spec = DecoderSpec::read(config, task, Share::Whole);
    let mixture = Mixture::read(config, spec.mlp_size, spec.activation, true, SPELLING);
    Box::new(DecoderSpec {
        windows: vec![window(config); spec.layers],
        mixtures: vec![Some(mixture); spec.layers],
        ..spec
    })
}
