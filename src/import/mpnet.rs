//! `MPNet` (Song et al., 2020): `RoBERTa` without kinds of segments, with a number for each head
//! and distance that is added to the scores of all layers.

use dlc_ir::{BucketedBias, IrError, Op, Task, ValueId};

use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::encoder_spec::{EncoderSpec, KeyNames, Projections, Separate, Spelling, TensorNames};
use super::heads::Head;
use super::net::Net;
use super::spec::WIDEST;
use super::{Architecture, Family, roberta};

/// The padding id that positions are counted from, whatever the configuration says.
const PADDING: u32 = 1;
/// The buckets of its class, whatever the configuration says.
const BUCKETS: BucketedBias = BucketedBias {
    buckets: 32,
    until: 128,
};

pub(super) const FAMILY: Family = Family {
    model_type: "mpnet",
    architectures: &[
        ("MPNetModel", Task::FeatureExtraction),
        ("MPNetForMaskedLM", Task::FillMask),
        ("MPNetForSequenceClassification", Task::TextClassification),
        ("MPNetForTokenClassification", Task::TokenClassification),
        ("MPNetForQuestionAnswering", Task::QuestionAnswering),
    ],
    summary: "MPNet, all-mpnet, multi-qa-mpnet",
    keys: |_| KEYS,
    aliases: &[],
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
    key("vocab_size", Whole(30_527)),
    key("hidden_size", Whole(768)),
    key("num_hidden_layers", Whole(12)),
    key("num_attention_heads", Whole(12)),
    key("intermediate_size", Whole(3072)),
    key("hidden_act", Text("gelu")),
    key("max_position_embeddings", Whole(512)),
    key("layer_norm_eps", Real(1e-12)),
    key("relative_attention_num_buckets", Whole(32)),
    optional("pad_token_id", Whole(1)),
    optional("bos_token_id", Whole(0)),
    optional("eos_token_id", Whole(2)),
    key("tie_word_embeddings", Flag(true)),
];

const SPELLING: Spelling = Spelling {
    base: "mpnet.",
    keys: KeyNames::BERT,
    tensors: TensorNames {
        query: "attention.attn.q",
        key: "attention.attn.k",
        value: "attention.attn.v",
        attention: "attention.attn.o",
        attention_norm: "attention.LayerNorm",
        ..TensorNames::BERT
    },
};

fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    const KEY: &str = "relative_attention_num_buckets";
    let rows = config.required_size(KEY, WIDEST);
    if config.is_clean() && rows != BUCKETS.buckets {
        config.unsupported(
            KEY,
            format!(
                "is {rows}; its class counts {} in any case",
                BUCKETS.buckets
            ),
        );
    }
    let heads = roberta::heads(config);
    let head = Head::read(config, task, heads);
    let spec = EncoderSpec::read(config, task, &SPELLING, head);
    Box::new(EncoderSpec {
        projections: Box::new(Biased),
        ..roberta::count_after(config, spec, PADDING)
    })
}

/// Separate projections, and a bias that all layers share.
struct Biased;

impl Projections for Biased {
    fn project(
        &self,
        spec: &EncoderSpec,
        net: &mut Net<'_>,
        x: ValueId,
        prefix: &str,
    ) -> Result<([ValueId; 3], Option<ValueId>), IrError> {
        let (qkv, _) = Separate.project(spec, net, x, prefix)?;
        // In each block anew, so that blocks stay independent; lowering computes it once.
        let table = net.weight(
            &format!("{}encoder.relative_attention_bias.weight", spec.body),
            &[BUCKETS.buckets, spec.heads],
        )?;
        let bias = net
            .graph
            .add(Op::BucketedBias(BUCKETS), [x.into(), table])?;
        Ok((qkv, Some(bias)))
    }
}
