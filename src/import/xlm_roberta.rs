//! XLM-RoBERTa (Conneau et al., 2020): `RoBERTa` for a hundred languages.

use dlc_ir::Task;

use super::Family;
use super::defaults::Absent::{Flag, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::roberta;

pub(super) const FAMILY: Family = Family {
    model_type: "xlm-roberta",
    architectures: &[
        ("XLMRobertaModel", Task::FeatureExtraction),
        ("XLMRobertaForMaskedLM", Task::FillMask),
        (
            "XLMRobertaForSequenceClassification",
            Task::TextClassification,
        ),
        (
            "XLMRobertaForTokenClassification",
            Task::TokenClassification,
        ),
        ("XLMRobertaForQuestionAnswering", Task::QuestionAnswering),
    ],
    summary: "XLM-RoBERTa, multilingual E5, BGE-M3, paraphrase-multilingual-mpnet",
    keys: |_| KEYS,
    aliases: &[],
    read: roberta::read,
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
    // The class takes null; then the model can't count positions.
    key("pad_token_id", Whole(1)),
    optional("bos_token_id", Whole(0)),
    optional("eos_token_id", Whole(2)),
    key("is_decoder", Flag(false)),
    key("add_cross_attention", Flag(false)),
    key("tie_word_embeddings", Flag(true)),
];
