//! `DeBERTa` v2 and v3: separate projections, distances in logarithmic buckets, normed tables of
//! positions.

use dlc_ir::{DisentangledBias, IrError, Op, Operand, Task, ValueId};

use super::config::ConfigReader;
use super::deberta::read_common;
use super::defaults::Absent::{Flag, Nothing, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::encoder_spec::{EncoderSpec, Projections};
use super::net::Net;
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "deberta-v2",
    architectures: &[
        ("DebertaV2Model", Task::FeatureExtraction),
        ("DebertaV2ForMaskedLM", Task::FillMask),
        (
            "DebertaV2ForSequenceClassification",
            Task::TextClassification,
        ),
        ("DebertaV2ForTokenClassification", Task::TokenClassification),
        ("DebertaV2ForQuestionAnswering", Task::QuestionAnswering),
    ],
    summary: "DeBERTa v2 without convolution, DeBERTa v3",
    keys: |_| KEYS,
    aliases: &[],
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
    key("vocab_size", Whole(128_100)),
    key("hidden_size", Whole(1536)),
    key("intermediate_size", Whole(6144)),
    key("num_hidden_layers", Whole(24)),
    key("num_attention_heads", Whole(24)),
    key("hidden_act", Text("gelu")),
    key("max_position_embeddings", Whole(512)),
    key("type_vocab_size", Whole(0)),
    key("layer_norm_eps", Real(1e-7)),
    key("relative_attention", Flag(false)),
    key("max_relative_positions", Real(-1.0)),
    optional("pad_token_id", Whole(0)),
    key("position_biased_input", Flag(true)),
    optional("pos_att_type", Nothing),
    key("pooler_hidden_act", Text("gelu")),
    optional("pooler_hidden_size", Nothing),
    key("embedding_size", Nothing),
    key("legacy", Flag(true)),
    key("tie_word_embeddings", Flag(true)),
    key("position_buckets", Real(-1.0)),
    key("norm_rel_ebd", Text("none")),
    key("conv_kernel_size", Whole(0)),
];

fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    if config
        .number("conv_kernel_size", "from 0 on", |x| x >= 0.0)
        .is_some_and(|size| size > 0.0)
    {
        config.unsupported(
            "conv_kernel_size",
            "adds a convolution to the first layer (DeBERTa v2 xlarge); dlc can't do that".into(),
        );
    }
    for unread in ["conv_act", "conv_groups"] {
        config.get(unread);
    }
    Box::new(read_common(config, task, |config, bias| {
        let buckets = config.number("position_buckets", "up to 2^20", |x| {
            (-1.0..=1_048_576.0).contains(&x) && x.fract() == 0.0
        });
        let mut bias = bias;
        if let Some(buckets) = buckets.filter(|b| *b >= 1.0).map(|b| b as usize) {
            if buckets < 4 || !buckets.is_multiple_of(2) || bias.span <= buckets / 2 + 1 {
                config.unsupported("position_buckets", format!("is {buckets}; dlc knows even numbers from 4 on, less than twice the distances"));
            }
            (bias.log_until, bias.span) = (Some(bias.span), buckets);
        }
        let normed = config
            .text("norm_rel_ebd")
            .is_some_and(|kinds| kinds.split('|').any(|kind| kind.trim() == "layer_norm"));
        Box::new(Bucketed {
            bias,
            normed,
            shared: config.flag("share_att_key"),
        })
    }))
}

/// Separate projections, of positions too unless they are those of the content.
struct Bucketed {
    bias: DisentangledBias,
    normed: bool,
    shared: bool,
}

impl Projections for Bucketed {
    fn project(
        &self,
        spec: &EncoderSpec,
        net: &mut Net<'_>,
        x: ValueId,
        prefix: &str,
    ) -> Result<([ValueId; 3], Option<ValueId>), IrError> {
        let (bias, hidden) = (self.bias, spec.hidden_size);
        let shape = [spec.heads * spec.head_dim, hidden];
        let project = |net: &mut Net<'_>, x: Operand, name: &str| {
            net.linear(x, &format!("{prefix}.attention.self.{name}"), shape, true)
        };
        let qkv = [
            project(net, x.into(), "query_proj")?,
            project(net, x.into(), "key_proj")?,
            project(net, x.into(), "value_proj")?,
        ];
        if !bias.c2p && !bias.p2c {
            return Ok((qkv, None));
        }
        // Computed in each block anew, so that blocks stay independent; it depends on no input, and
        // is folded before the bundle is written.
        let mut table = net.weight(
            &format!("{}encoder.rel_embeddings.weight", spec.body),
            &[2 * bias.span, hidden],
        )?;
        if self.normed {
            table = net
                .layer_norm(
                    table,
                    &format!("{}encoder.LayerNorm", spec.body),
                    hidden,
                    spec.eps,
                )?
                .into();
        }
        let names = if self.shared {
            ["key_proj", "query_proj"]
        } else {
            ["pos_key_proj", "pos_query_proj"]
        };
        let mut inputs: Vec<Operand> = vec![qkv[0].into(), qkv[1].into()];
        for (name, wanted) in names.into_iter().zip([bias.c2p, bias.p2c]) {
            if wanted {
                inputs.push(project(net, table, name)?.into());
            }
        }
        let scores = net.graph.add_node(Op::DisentangledBias(bias), inputs)?;
        Ok((qkv, scores.first().copied()))
    }
}
