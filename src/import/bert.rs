//! BERT and what shares its architecture: `MiniLM`, `all-MiniLM`, BGE, E5, GTE (the BERT ones).

use dlc_ir::Task;

use super::activation::Activation;
use super::config::ConfigReader;
use super::defaults::BERT;
use super::encoder::{EncoderSpec, Separate, Types};
use super::heads::{Head, MaskedLm, labels};
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "bert",
    architectures: &[
        ("BertModel", Task::FeatureExtraction),
        ("BertForMaskedLM", Task::FillMask),
        ("BertForPreTraining", Task::FillMask),
        ("BertForSequenceClassification", Task::TextClassification),
        ("BertForTokenClassification", Task::TokenClassification),
    ],
    summary: "BERT, MiniLM and all-MiniLM, BGE, E5",
    keys: |_| BERT,
    aliases: &[],
    read,
};

fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    let activation = Activation::read(config, "hidden_act");
    let head = match task {
        Task::FillMask => Head::MaskedLm(MaskedLm {
            dense: "cls.predictions.transform.dense",
            norm: "cls.predictions.transform.LayerNorm",
            activation,
            decoder: "cls.predictions.decoder",
            bias: "cls.predictions.bias",
            tied: config.flag("tie_word_embeddings"),
        }),
        Task::TextClassification => {
            Head::text(config, "bert.pooler.dense", Activation::Tanh, "classifier")
        }
        Task::TokenClassification => Head::Tokens {
            labels: labels(config),
        },
        Task::TextGeneration | Task::FeatureExtraction | Task::ImageGeneration => Head::Bare,
    };
    let types = EncoderSpec::types(config);
    let spec = EncoderSpec::read(config, task, "bert.", Box::new(Separate), head);
    Box::new(EncoderSpec {
        types: if types > 0 {
            Types::Input(types)
        } else {
            Types::None
        },
        ..spec
    })
}
