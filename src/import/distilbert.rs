//! `DistilBERT` (Sanh et al., 2019): BERT without kinds of segments and without a pooler.

use dlc_ir::Task;

use super::activation::Activation;
use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Nothing, Text, Whole};
use super::defaults::{Key, key, optional};
use super::encoder_spec::{EncoderSpec, Eps, KeyNames, Spelling, TensorNames};
use super::heads::{Head, Heads, MaskedLm};
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "distilbert",
    architectures: &[
        ("DistilBertModel", Task::FeatureExtraction),
        ("DistilBertForMaskedLM", Task::FillMask),
        (
            "DistilBertForSequenceClassification",
            Task::TextClassification,
        ),
        (
            "DistilBertForTokenClassification",
            Task::TokenClassification,
        ),
        ("DistilBertForQuestionAnswering", Task::QuestionAnswering),
    ],
    summary: "DistilBERT, English and multilingual",
    keys: |_| KEYS,
    aliases: &[
        ("hidden_size", "dim"),
        ("num_attention_heads", "n_heads"),
        ("num_hidden_layers", "n_layers"),
    ],
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
    key("vocab_size", Whole(30_522)),
    key("max_position_embeddings", Whole(512)),
    key("sinusoidal_pos_embds", Flag(false)),
    key("n_layers", Whole(6)),
    key("n_heads", Whole(12)),
    key("dim", Whole(768)),
    key("hidden_dim", Whole(3072)),
    key("activation", Text("gelu")),
    optional("pad_token_id", Whole(0)),
    optional("eos_token_id", Nothing),
    optional("bos_token_id", Nothing),
    key("tie_word_embeddings", Flag(true)),
];

const SPELLING: Spelling = Spelling {
    base: "distilbert.",
    keys: KeyNames {
        hidden_size: "dim",
        mlp_size: "hidden_dim",
        layers: "n_layers",
        heads: "n_heads",
        activation: "activation",
        eps: Eps::Fixed(1e-12),
    },
    tensors: TensorNames {
        layer: "transformer.layer",
        query: "attention.q_lin",
        key: "attention.k_lin",
        value: "attention.v_lin",
        attention: "attention.out_lin",
        attention_norm: "sa_layer_norm",
        up: "ffn.lin1",
        down: "ffn.lin2",
        mlp_norm: "output_layer_norm",
    },
};

fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    // Sinusoids are what training began with; checkpoints hold them like learned positions.
    config.flag("sinusoidal_pos_embds");
    for dropout in ["dropout", "qa_dropout", "seq_classif_dropout"] {
        config.get(dropout);
    }
    let heads = Heads {
        masked: MaskedLm {
            dense: "vocab_transform",
            norm: "vocab_layer_norm",
            activation: Activation::read(config, "activation"),
            decoder: "vocab_projector",
            bias: "vocab_projector.bias",
            tied: config.flag("tie_word_embeddings"),
        },
        pooler: ("pre_classifier", Activation::Relu),
        classifier: "classifier",
    };
    let head = Head::read(config, task, heads);
    Box::new(EncoderSpec::read(config, task, &SPELLING, head))
}
