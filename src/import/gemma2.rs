//! Gemma 2: norms around attention and MLP, capped scores and logits, a window on every other
//! layer.

use dlc_ir::{Storage, Task};

use super::activation::Activation;
use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Nothing, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::rope::Share;
use super::spec::{Biases, DecoderSpec, Multipliers, Norms, Placement};
use super::windows::{sliding_layers, window};
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "gemma2",
    architectures: &[
        ("Gemma2ForCausalLM", Task::TextGeneration),
        ("Gemma2ForSequenceClassification", Task::TextClassification),
    ],
    summary: "Gemma 2, 2B to 27B",
    keys: |_| KEYS,
    aliases: &[],
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
    key("vocab_size", Whole(256_000)),
    key("hidden_size", Whole(2304)),
    key("intermediate_size", Whole(9216)),
    key("num_hidden_layers", Whole(26)),
    key("num_attention_heads", Whole(8)),
    key("num_key_value_heads", Whole(4)),
    key("head_dim", Whole(256)),
    key("hidden_activation", Text("gelu_pytorch_tanh")),
    key("max_position_embeddings", Whole(8192)),
    key("rms_norm_eps", Real(1e-6)),
    key("rope_theta", Nothing),
    optional("bos_token_id", Whole(2)),
    optional("eos_token_id", Whole(1)),
    optional("pad_token_id", Whole(0)),
    key("tie_word_embeddings", Flag(true)),
    key("attention_bias", Flag(false)),
    key("query_pre_attn_scalar", Whole(256)),
    optional("sliding_window", Whole(4096)),
    optional("layer_types", Nothing),
    optional("attn_logit_softcapping", Real(50.0)),
    optional("final_logit_softcapping", Real(30.0)),
    optional("use_bidirectional_attention", Nothing),
];

fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    let spec = DecoderSpec::read(config, task, Share::Whole);
    // transformers reads `hidden_activation`; older configurations carry a `hidden_act` beside it
    // that nobody reads.
    config.get("hidden_act");
    let activation = Activation::read(config, "hidden_activation");
    if config.flag("use_bidirectional_attention") {
        config.unsupported(
            "use_bidirectional_attention",
            "is true; dlc reads Gemma 2 as a decoder".into(),
        );
    }
    let scale_of = config.required_factor("query_pre_attn_scalar");
    let softcaps = ["attn_logit_softcapping", "final_logit_softcapping"]
        .map(|key| config.factor(key).map(|cap| cap as f32));
    let window = window(config);
    let sliding = sliding_layers(config, spec.layers)
        .unwrap_or_else(|| (0..spec.layers).map(|layer| layer % 2 == 0).collect());
    let attention = config.flag("attention_bias");
    Box::new(DecoderSpec {
        activation,
        softcaps,
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
        bias: Biases {
            qkv: attention,
            output: attention,
            mlp: false,
        },
        windows: sliding
            .into_iter()
            .map(|sliding| window.filter(|_| sliding))
            .collect(),
        ..spec
    })
}
