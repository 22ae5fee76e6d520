//! BERT and what shares its architecture: `MiniLM`, `all-MiniLM`, BGE, E5, GTE (the BERT ones).

use dlc_ir::Task;

use super::activation::Activation;
use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::encoder_spec::{EncoderSpec, Spelling, Types};
use super::heads::{Head, Heads, MaskedLm};
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "bert",
    architectures: &[
        ("BertModel", Task::FeatureExtraction),
        ("BertForMaskedLM", Task::FillMask),
        ("BertForPreTraining", Task::FillMask),
        ("BertForSequenceClassification", Task::TextClassification),
        ("BertForTokenClassification", Task::TokenClassification),
        ("BertForQuestionAnswering", Task::QuestionAnswering),
    ],
    summary: "BERT, MiniLM and all-MiniLM, BGE, E5",
    keys: |_| KEYS,
    aliases: &[],
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
    key("vocab_size", Whole(30_522)),
    key("hidden_size", Whole(768)),
    key("intermediate_size", Whole(3072)),
    key("num_hidden_layers", Whole(12)),
    key("num_attention_heads", Whole(12)),
    key("hidden_act", Text("gelu")),
    key("max_position_embeddings", Whole(512)),
    key("type_vocab_size", Whole(2)),
    key("layer_norm_eps", Real(1e-12)),
    optional("pad_token_id", Whole(0)),
    key("is_decoder", Flag(false)),
    key("add_cross_attention", Flag(false)),
    key("tie_word_embeddings", Flag(true)),
];

const SPELLING: Spelling = Spelling::like_bert("bert.");

fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    let heads = Heads {
        masked: MaskedLm {
            dense: "cls.predictions.transform.dense",
            norm: "cls.predictions.transform.LayerNorm",
            activation: Activation::read(config, "hidden_act"),
            decoder: "cls.predictions.decoder",
            bias: "cls.predictions.bias",
            tied: config.flag("tie_word_embeddings"),
        },
        pooler: ("bert.pooler.dense", Activation::Tanh),
        classifier: "classifier",
    };
    let head = Head::read(config, task, heads);
    Box::new(EncoderSpec {
        types: Types::input(config),
        ..EncoderSpec::read(config, task, &SPELLING, head)
    })
}
