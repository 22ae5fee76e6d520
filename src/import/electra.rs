//! ELECTRA (Clark et al., 2020): BERT with embeddings of a width of their own, trained to tell which
//! tokens were replaced.

use dlc_ir::Task;
use serde_json::Value;

use super::activation::Activation;
use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Nothing, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::encoder_spec::{EncoderSpec, Spelling, Types};
use super::heads::{Head, Heads, MaskedLm};
use super::spec::WIDEST;
use super::{Architecture, Family};

/// The class that tells which tokens were replaced.
const DISCRIMINATOR: &str = "ElectraForPreTraining";

pub(super) const FAMILY: Family = Family {
    model_type: "electra",
    architectures: &[
        ("ElectraModel", Task::FeatureExtraction),
        ("ElectraForMaskedLM", Task::FillMask),
        ("ElectraForSequenceClassification", Task::TextClassification),
        ("ElectraForTokenClassification", Task::TokenClassification),
        ("ElectraForQuestionAnswering", Task::QuestionAnswering),
        (DISCRIMINATOR, Task::TokenClassification),
    ],
    summary: "ELECTRA small to large, discriminators and generators",
    keys: |_| KEYS,
    aliases: &[],
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
    key("vocab_size", Whole(30_522)),
    key("embedding_size", Whole(128)),
    key("hidden_size", Whole(256)),
    key("num_hidden_layers", Whole(12)),
    key("num_attention_heads", Whole(4)),
    key("intermediate_size", Whole(1024)),
    key("hidden_act", Text("gelu")),
    key("max_position_embeddings", Whole(512)),
    key("type_vocab_size", Whole(2)),
    key("layer_norm_eps", Real(1e-12)),
    optional("pad_token_id", Whole(0)),
    key("is_decoder", Flag(false)),
    key("add_cross_attention", Flag(false)),
    optional("bos_token_id", Nothing),
    optional("eos_token_id", Nothing),
    key("tie_word_embeddings", Flag(true)),
];

const SPELLING: Spelling = Spelling::like_bert("electra.");

fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    // How heads for multiple choice sum up a text.
    for unread in [
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_last_dropout",
    ] {
        config.get(unread);
    }
    let heads = Heads {
        masked: MaskedLm {
            dense: "generator_predictions.dense",
            norm: "generator_predictions.LayerNorm",
            activation: Activation::Gelu,
            decoder: "generator_lm_head",
            bias: "generator_lm_head.bias",
            tied: config.flag("tie_word_embeddings"),
        },
        pooler: ("classifier.dense", Activation::Gelu),
        classifier: "classifier.out_proj",
    };
    let discriminates = config.get("architectures").and_then(Value::as_array);
    let discriminates =
        discriminates.is_some_and(|list| list.iter().any(|name| name == DISCRIMINATOR));
    let head = if task == Task::TokenClassification && discriminates {
        Head::Replaced(Activation::read(config, "hidden_act"))
    } else {
        Head::read(config, task, heads)
    };
    Box::new(EncoderSpec {
        embedding_size: config.required_size("embedding_size", WIDEST),
        types: Types::input(config),
        ..EncoderSpec::read(config, task, &SPELLING, head)
    })
}
