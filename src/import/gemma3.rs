//! Gemma 3 for texts: Gemma 2 with queries and keys normed head by head instead of capped scores,
//! and layers with a window that rotate faster than those without.

use dlc_ir::{Storage, Task};

use super::activation::Activation;
use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Nothing, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::rope::read_kinds;
use super::spec::{
    Biases, DecoderSpec, MOST_LAYERS, Multipliers, Norms, Placement, QkNorm, head_dim,
};
use super::windows::{sliding_layers, window};
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "gemma3_text",
    architectures: &[
        ("Gemma3ForCausalLM", Task::TextGeneration),
        (
            "Gemma3TextForSequenceClassification",
            Task::TextClassification,
        ),
    ],
    summary: "Gemma 3 for texts, 270M and 1B",
    keys: |_| KEYS,
    aliases: &[],
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
    key("vocab_size", Whole(262_208)),
    key("hidden_size", Whole(2304)),
    key("intermediate_size", Whole(9216)),
    key("num_hidden_layers", Whole(26)),
    key("num_attention_heads", Whole(8)),
    key("num_key_value_heads", Whole(4)),
    key("head_dim", Whole(256)),
    key("hidden_activation", Text("gelu_pytorch_tanh")),
    key("max_position_embeddings", Whole(131_072)),
    key("rms_norm_eps", Real(1e-6)),
    key("rope_theta", Nothing),
    key("rope_local_base_freq", Nothing),
    optional("bos_token_id", Whole(2)),
    optional("eos_token_id", Whole(1)),
    optional("pad_token_id", Whole(0)),
    key("tie_word_embeddings", Flag(true)),
    key("attention_bias", Flag(false)),
    key("query_pre_attn_scalar", Whole(256)),
    optional("sliding_window", Whole(4096)),
    key("sliding_window_pattern", Whole(6)),
    optional("layer_types", Nothing),
    optional("attn_logit_softcapping", Nothing),
    optional("final_logit_softcapping", Nothing),
    optional("use_bidirectional_attention", Flag(false)),
];

/// Bases of the rotation in layers without a window and in those with one.
const THETAS: [f64; 2] = [1e6, 1e4];

fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    let mut local = None;
    let spec = DecoderSpec::read_rotated(config, task, |config, head_dim| {
        let [global, sliding] = read_kinds(config, head_dim, THETAS);
        local = Some(sliding);
        global
    });
    // Its class refuses widths that the heads don't divide, though heads have a width of their own.
    head_dim(config, "hidden_size", spec.hidden_size, spec.heads);
    // transformers reads `hidden_activation`, and caps no scores.
    config.get("hidden_act");
    config.get("attn_logit_softcapping");
    let activation = Activation::read(config, "hidden_activation");
    if config.flag("use_bidirectional_attention") {
        config.unsupported(
            "use_bidirectional_attention",
            "is true; dlc reads Gemma 3 as a decoder".into(),
        );
    }
    let scale_of = config.required_factor("query_pre_attn_scalar");
    let cap = config.factor("final_logit_softcapping");
    let window = window(config);
    let sliding = kinds(config, spec.layers);
    let attention = config.flag("attention_bias");
    Box::new(DecoderSpec {
        activation,
        softcaps: [None, cap.map(|cap| cap as f32)],
        multipliers: Multipliers {
            embedding: Some((spec.hidden_size as f64).sqrt() as f32),
            attention: scale_of.powf(-0.5) as f32,
            ..spec.multipliers
        },
        norms: Norms {
            placement: Placement::Both,
            storage: Storage::LessOne,
            ..spec.norms
        },
        qk_norm: QkNorm::PerHead,
        bias: Biases {
            qkv: attention,
            output: attention,
            mlp: false,
        },
        rotary: spec
            .rotary
            .into_iter()
            .zip(&sliding)
            .map(|(global, sliding)| if *sliding { local.clone() } else { global })
            .collect(),
        windows: sliding
            .iter()
            .map(|sliding| window.filter(|_| *sliding))
            .collect(),
        ..spec
    })
}

/// For each layer whether it has a window: what `layer_types` says, or all but every
/// `sliding_window_pattern`-th.
fn kinds(config: &mut ConfigReader<'_>, layers: usize) -> Vec<bool> {
    let pattern = config.required_size("sliding_window_pattern", MOST_LAYERS);
    let saved = config.size("_sliding_window_pattern", MOST_LAYERS);
    let listed = sliding_layers(config, layers);
    if listed.is_none() && saved.is_some_and(|saved| saved != pattern) {
        config.bad(
            "_sliding_window_pattern",
            format!("is not read by transformers, which takes {pattern}. Write `layer_types`"),
        );
    }
    listed.unwrap_or_else(|| (1..=layers).map(|n| !n.is_multiple_of(pattern)).collect())
}
