//! Phi-3 and 3.5 mini, Phi-4: Llama with fused projections, windows in some, and long contexts by
//! `LongRoPE`.

use dlc_ir::{RopeScaling, Task};

use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Nothing, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::rope::{Rotary, Share};
use super::spec::DecoderSpec;
use super::windows::window;
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "phi3",
    architectures: &[
        ("Phi3ForCausalLM", Task::TextGeneration),
        ("Phi3ForSequenceClassification", Task::TextClassification),
    ],
    summary: "Phi-3 and 3.5 mini and medium with 4k or 128k context, Phi-4, Phi-4-mini",
    keys: |_| KEYS,
    aliases: &[],
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
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

fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    let spec = DecoderSpec::read(config, task, Share::Partial { default: 1.0 });
    let takes = |rotary: &Rotary| {
        matches!(
            rotary.scaling,
            RopeScaling::None | RopeScaling::LongRope { .. }
        )
    };
    if !spec.rotary.iter().flatten().all(takes) {
        config.bad(
            "rope_scaling",
            "has a type that transformers refuses or takes for another in this architecture".into(),
        );
    }
    let window = window(config);
    Box::new(DecoderSpec {
        fused: true,
        windows: vec![window; spec.layers],
        ..spec
    })
}
