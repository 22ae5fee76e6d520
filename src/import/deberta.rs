//! `DeBERTa` (He et al., 2021): content and relative positions look at each other.

use dlc_ir::{DisentangledBias, IrError, Op, Task, ValueId};
use serde_json::Value;

use super::activation::Activation;
use super::config::{ConfigReader, show};
use super::defaults::Absent::{Flag, Nothing, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::encoder_spec::{EncoderSpec, Positions, Projections, Spelling, Types};
use super::gpt_neox::deinterleaved;
use super::heads::{Head, Heads, MaskedLm};
use super::net::Net;
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "deberta",
    architectures: &[
        ("DebertaModel", Task::FeatureExtraction),
        ("DebertaForMaskedLM", Task::FillMask),
        ("DebertaForSequenceClassification", Task::TextClassification),
        ("DebertaForTokenClassification", Task::TokenClassification),
        ("DebertaForQuestionAnswering", Task::QuestionAnswering),
    ],
    summary: "DeBERTa base to xlarge",
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
];

const SPELLING: Spelling = Spelling::like_bert("deberta.");

/// Which part looks at which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Looks {
    /// Content at positions.
    pub(super) c2p: bool,
    /// Positions at content.
    pub(super) p2c: bool,
}

impl Looks {
    /// `pos_att_type`: a list, or as older configurations have it `c2p|p2c`; nothing without
    /// `relative_attention`.
    fn read(config: &mut ConfigReader<'_>) -> Self {
        const KEY: &str = "pos_att_type";
        let relative = config.flag("relative_attention");
        let mut looks = Self::default();
        let names: Vec<&str> = match config.get(KEY) {
            Some(Value::String(joined)) => joined
                .split('|')
                .map(str::trim)
                .filter(|n| !n.is_empty() && *n != "none")
                .collect(),
            Some(Value::Array(list)) => list.iter().map(|n| n.as_str().unwrap_or("?")).collect(),
            Some(other) => {
                config.bad(
                    KEY,
                    format!("is {}; it must be a list of names", show(other)),
                );
                Vec::new()
            }
            None => Vec::new(),
        };
        for name in names {
            match name {
                "c2p" => looks.c2p = true,
                "p2c" => looks.p2c = true,
                other => config.unsupported(
                    KEY,
                    format!("has {}; dlc knows c2p and p2c", show(&other.into())),
                ),
            }
        }
        if relative { looks } else { Self::default() }
    }

    /// How many kinds of scores are summed up, content to content included.
    fn terms(self) -> usize {
        1 + usize::from(self.c2p) + usize::from(self.p2c)
    }
}

/// What both versions spell alike: `bias` gets the span from
/// `span(config, max_position_embeddings)`.
pub(super) fn read_common(
    config: &mut ConfigReader<'_>,
    task: Task,
    projections: impl FnOnce(&mut ConfigReader<'_>, DisentangledBias) -> Box<dyn Projections>,
) -> EncoderSpec {
    let pooled = config.get("pooler_hidden_size");
    let heads = heads(config);
    let head = Head::read(config, task, heads);
    let types = Types::input(config);
    let biased = config.flag("position_biased_input");
    let looks = Looks::read(config);
    let spec = EncoderSpec::read(config, task, &SPELLING, head);
    for (key, wanted) in [
        ("pooler_hidden_size", pooled),
        ("embedding_size", config.get("embedding_size")),
    ] {
        if wanted.is_some_and(|v| v.as_u64() != Some(spec.hidden_size as u64)) {
            config.unsupported(
                key,
                format!(
                    "differs from `hidden_size`, which is {}; dlc knows equal widths here",
                    spec.hidden_size
                ),
            );
        }
    }
    let furthest = config.number("max_relative_positions", "up to 2^20", |x| {
        (-1.0..=1_048_576.0).contains(&x) && x.fract() == 0.0
    });
    let span = furthest
        .filter(|x| *x >= 1.0)
        .map_or(spec.context_length, |x| x as usize);
    let scale = (1.0 / ((spec.head_dim * looks.terms()) as f64).sqrt()) as f32;
    let bias = DisentangledBias {
        heads: spec.heads,
        scale,
        span,
        log_until: None,
        c2p: looks.c2p,
        p2c: looks.p2c,
    };
    EncoderSpec {
        positions: if biased {
            spec.positions
        } else {
            Positions::None
        },
        types,
        projections: projections(config, bias),
        scale,
        ..spec
    }
}

/// The heads, of which that for masked tokens has other names where `legacy` is false.
fn heads(config: &mut ConfigReader<'_>) -> Heads {
    let activation = Activation::read(config, "hidden_act");
    let masked = if config.flag("legacy") {
        MaskedLm {
            dense: "cls.predictions.transform.dense",
            norm: "cls.predictions.transform.LayerNorm",
            activation,
            decoder: "cls.predictions.decoder",
            bias: "cls.predictions.bias",
            tied: config.flag("tie_word_embeddings"),
        }
    } else {
        MaskedLm {
            dense: "lm_predictions.lm_head.dense",
            norm: "lm_predictions.lm_head.LayerNorm",
            activation,
            decoder: "lm_predictions.lm_head.decoder",
            bias: "lm_predictions.lm_head.bias",
            tied: true,
        }
    };
    Heads {
        masked,
        pooler: (
            "pooler.dense",
            Activation::read(config, "pooler_hidden_act"),
        ),
        classifier: "classifier",
    }
}

fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    if config.flag("talking_head") {
        config.unsupported("talking_head", "mixes heads; dlc can't do that".into());
    }
    Box::new(read_common(config, task, |_, bias| {
        Box::new(Interleaved(bias))
    }))
}

/// One projection, interleaved head by head, without a bias for keys.
struct Interleaved(DisentangledBias);

impl Projections for Interleaved {
    fn project(
        &self,
        spec: &EncoderSpec,
        net: &mut Net<'_>,
        x: ValueId,
        prefix: &str,
    ) -> Result<([ValueId; 3], Option<ValueId>), IrError> {
        let (bias, hidden) = (self.0, spec.hidden_size);
        let prefix = format!("{prefix}.attention.self");
        let all = net.linear(x, &format!("{prefix}.in_proj"), [3 * hidden, hidden], false)?;
        let [q, k, v] = deinterleaved(net, all, [spec.heads, spec.head_dim])?;
        let (q_bias, v_bias) = (
            net.weight(&format!("{prefix}.q_bias"), &[hidden])?,
            net.weight(&format!("{prefix}.v_bias"), &[hidden])?,
        );
        let (q, v) = (net.add(q, q_bias)?, net.add(v, v_bias)?);
        if !bias.c2p && !bias.p2c {
            return Ok(([q, k, v], None));
        }
        let table = net.weight(
            &format!("{}encoder.rel_embeddings.weight", spec.body),
            &[2 * bias.span, hidden],
        )?;
        let mut inputs = vec![q.into(), k.into()];
        if bias.c2p {
            inputs.push(
                net.linear(
                    table,
                    &format!("{prefix}.pos_proj"),
                    [hidden, hidden],
                    false,
                )?
                .into(),
            );
        }
        if bias.p2c {
            inputs.push(
                net.linear(
                    table,
                    &format!("{prefix}.pos_q_proj"),
                    [hidden, hidden],
                    true,
                )?
                .into(),
            );
        }
        let scores = net.graph.add_node(Op::DisentangledBias(bias), inputs)?;
        Ok(([q, k, v], scores.first().copied()))
    }
}
