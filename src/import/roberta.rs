//! `RoBERTa`: BERT that counts positions from after the padding id, and knows one kind of segment.

use dlc_ir::Task;

use super::activation::Activation;
use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::encoder_spec::{EncoderSpec, Positions, Spelling, Types};
use super::heads::{Head, Heads, MaskedLm};
use super::{Architecture, Family};

/// The padding id where the configuration names none.
const PADDING: u32 = 1;

pub(super) const FAMILY: Family = Family {
    model_type: "roberta",
    architectures: &[
        ("RobertaModel", Task::FeatureExtraction),
        ("RobertaForMaskedLM", Task::FillMask),
        ("RobertaForSequenceClassification", Task::TextClassification),
        ("RobertaForTokenClassification", Task::TokenClassification),
        ("RobertaForQuestionAnswering", Task::QuestionAnswering),
    ],
    summary: "RoBERTa, DistilRoBERTa, all-distilroberta",
    keys: |_| KEYS,
    aliases: &[],
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
    key("vocab_size", Whole(50_265)),
    key("hidden_size", Whole(768)),
    key("intermediate_size", Whole(3072)),
    key("num_hidden_layers", Whole(12)),
    key("num_attention_heads", Whole(12)),
    key("hidden_act", Text("gelu")),
    key("max_position_embeddings", Whole(512)),
    key("type_vocab_size", Whole(2)),
    key("layer_norm_eps", Real(1e-12)),
    // The class takes null; then the model can't count positions.
    key("pad_token_id", Whole(1)),
    optional("bos_token_id", Whole(0)),
    optional("eos_token_id", Whole(2)),
    key("is_decoder", Flag(false)),
    key("add_cross_attention", Flag(false)),
    key("tie_word_embeddings", Flag(true)),
];

const SPELLING: Spelling = Spelling::like_bert("roberta.");

pub(super) fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    let heads = heads(config);
    let head = Head::read(config, task, heads);
    let padding = config
        .get("pad_token_id")
        .and_then(serde_json::Value::as_u64)
        .and_then(|id| u32::try_from(id).ok())
        .unwrap_or(PADDING);
    let types = Types::first(config);
    let spec = EncoderSpec::read(config, task, &SPELLING, head);
    Box::new(EncoderSpec {
        types,
        ..count_after(config, spec, padding)
    })
}

/// The heads of the families of this kind.
pub(super) fn heads(config: &mut ConfigReader<'_>) -> Heads {
    Heads {
        masked: MaskedLm {
            dense: "lm_head.dense",
            norm: "lm_head.layer_norm",
            activation: Activation::Gelu,
            decoder: "lm_head.decoder",
            bias: "lm_head.bias",
            tied: config.flag("tie_word_embeddings"),
        },
        pooler: ("classifier.dense", Activation::Tanh),
        classifier: "classifier.out_proj",
    }
}

/// The encoder with positions that are counted from after the `padding` id, whose own is that id.
pub(super) fn count_after(
    config: &mut ConfigReader<'_>,
    spec: EncoderSpec,
    padding: u32,
) -> EncoderSpec {
    let rows = spec.context_length;
    let context_length = rows.saturating_sub(padding as usize + 1);
    if config.is_clean() && context_length == 0 {
        config.bad(
            "max_position_embeddings",
            format!("is {rows}, which leaves no position after the padding id {padding}"),
        );
    }
    EncoderSpec {
        positions: Positions::Learned {
            rows,
            padding: Some(padding),
        },
        context_length,
        ..spec
    }
}
