//! What an encoder of the BERT kind looks like: everything that differs between families, read from
//! the configuration, and how each family spells its keys and tensors.

use dlc_ir::{IrError, Task, ValueId};

use super::activation::Activation;
use super::config::{ConfigReader, show};
use super::heads::Head;
use super::net::Net;
use super::spec::{
    LARGEST_VOCABULARY, LONGEST_CONTEXT, MOST_HEADS, MOST_LAYERS, WIDEST, WIDEST_MLP, eps, head_dim,
};

/// Most kinds of segments.
const MOST_TYPES: usize = 1 << 16;

/// An encoder.
pub(super) struct EncoderSpec {
    /// What names of the body begin with, `bert.`; nothing without a head.
    pub(super) body: &'static str,
    pub(super) spelling: &'static Spelling,
    pub(super) vocab_size: usize,
    /// Width of the embeddings; another than `hidden_size` is projected to that.
    pub(super) embedding_size: usize,
    pub(super) hidden_size: usize,
    pub(super) mlp_size: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    pub(super) eps: f32,
    pub(super) activation: Activation,
    pub(super) positions: Positions,
    pub(super) types: Types,
    pub(super) projections: Box<dyn Projections>,
    /// Factor on attention's dot products.
    pub(super) scale: f32,
    pub(super) head: Head,
    pub(super) context_length: usize,
}

/// How a family calls what all families have.
pub(super) struct Spelling {
    /// What names of the body begin with in checkpoints that have a head.
    pub(super) base: &'static str,
    pub(super) keys: KeyNames,
    pub(super) tensors: TensorNames,
}

/// Keys of the configuration.
pub(super) struct KeyNames {
    pub(super) hidden_size: &'static str,
    pub(super) mlp_size: &'static str,
    pub(super) layers: &'static str,
    pub(super) heads: &'static str,
    pub(super) activation: &'static str,
    pub(super) eps: Eps,
}

/// What norms add under their root.
pub(super) enum Eps {
    Key(&'static str),
    Fixed(f32),
}

/// Tensors of a layer, without their `.weight` and `.bias`.
pub(super) struct TensorNames {
    /// What they begin with, before the layer's number.
    pub(super) layer: &'static str,
    pub(super) query: &'static str,
    pub(super) key: &'static str,
    pub(super) value: &'static str,
    pub(super) attention: &'static str,
    pub(super) attention_norm: &'static str,
    pub(super) up: &'static str,
    pub(super) down: &'static str,
    pub(super) mlp_norm: &'static str,
}

impl KeyNames {
    pub(super) const BERT: Self = Self {
        hidden_size: "hidden_size",
        mlp_size: "intermediate_size",
        layers: "num_hidden_layers",
        heads: "num_attention_heads",
        activation: "hidden_act",
        eps: Eps::Key("layer_norm_eps"),
    };
}

impl TensorNames {
    pub(super) const BERT: Self = Self {
        layer: "encoder.layer",
        query: "attention.self.query",
        key: "attention.self.key",
        value: "attention.self.value",
        attention: "attention.output.dense",
        attention_norm: "attention.output.LayerNorm",
        up: "intermediate.dense",
        down: "output.dense",
        mlp_norm: "output.LayerNorm",
    };
}

impl Spelling {
    /// BERT's, but for what names of the body begin with.
    pub(super) const fn like_bert(base: &'static str) -> Self {
        Self {
            base,
            keys: KeyNames::BERT,
            tensors: TensorNames::BERT,
        }
    }
}

/// Learned positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Positions {
    /// None.
    None,
    /// So many rows, numbered as [`dlc_ir::Op::Positions`] says.
    Learned { rows: usize, padding: Option<u32> },
}

/// Learned kinds of segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Types {
    /// None.
    None,
    /// So many rows, chosen by the input `token_type_ids`.
    Input(usize),
    /// So many rows, of which the first is everybody's.
    First(usize),
}

/// How a family makes queries, keys and values, and what it adds to the scores.
pub(super) trait Projections {
    /// Queries, keys and values `[batch, seq, heads * head_dim]` of `x`, the layer's tensors' names
    /// beginning with `{prefix}.`, and a bias of the scores.
    fn project(
        &self,
        spec: &EncoderSpec,
        net: &mut Net<'_>,
        x: ValueId,
        prefix: &str,
    ) -> Result<([ValueId; 3], Option<ValueId>), IrError>;
}

/// Separate projections, no bias: BERT and `RoBERTa`.
pub(super) struct Separate;

impl Projections for Separate {
    fn project(
        &self,
        spec: &EncoderSpec,
        net: &mut Net<'_>,
        x: ValueId,
        prefix: &str,
    ) -> Result<([ValueId; 3], Option<ValueId>), IrError> {
        let (shape, names) = (
            [spec.heads * spec.head_dim, spec.hidden_size],
            &spec.spelling.tensors,
        );
        let mut project = |name: &str| net.linear(x, &format!("{prefix}.{name}"), shape, true);
        Ok((
            [
                project(names.query)?,
                project(names.key)?,
                project(names.value)?,
            ],
            None,
        ))
    }
}

impl EncoderSpec {
    /// What all families spell alike, and what `spelling` says of the rest: separate projections,
    /// learned positions, one kind of segment.
    pub(super) fn read(
        config: &mut ConfigReader<'_>,
        task: Task,
        spelling: &'static Spelling,
        head: Head,
    ) -> Self {
        let keys = &spelling.keys;
        let hidden_size = config.required_size(keys.hidden_size, WIDEST);
        let heads = config.required_size(keys.heads, MOST_HEADS);
        let head_dim = head_dim(config, keys.hidden_size, hidden_size, heads);
        let context_length = config.required_size("max_position_embeddings", LONGEST_CONTEXT);
        refuse_other_kinds(config);
        Self {
            body: if task == Task::FeatureExtraction {
                ""
            } else {
                spelling.base
            },
            spelling,
            vocab_size: config.required_size("vocab_size", LARGEST_VOCABULARY),
            embedding_size: hidden_size,
            hidden_size,
            mlp_size: config.required_size(keys.mlp_size, WIDEST_MLP),
            layers: config.required_size(keys.layers, MOST_LAYERS),
            heads,
            head_dim,
            eps: match keys.eps {
                Eps::Key(key) => eps(config, key),
                Eps::Fixed(eps) => eps,
            },
            activation: Activation::read(config, keys.activation),
            positions: Positions::Learned {
                rows: context_length,
                padding: None,
            },
            types: Types::None,
            projections: Box::new(Separate),
            scale: (1.0 / (head_dim as f64).sqrt()) as f32,
            head,
            context_length,
        }
    }

    /// The number of kinds of segments.
    pub(super) fn types(config: &mut ConfigReader<'_>) -> usize {
        let Some(value) = config.get("type_vocab_size") else {
            return 0;
        };
        if value.as_u64() == Some(0) {
            0
        } else {
            config.size("type_vocab_size", MOST_TYPES).unwrap_or(1)
        }
    }
}

impl Types {
    /// As many as the configuration says, chosen by an input.
    pub(super) fn input(config: &mut ConfigReader<'_>) -> Self {
        match EncoderSpec::types(config) {
            0 => Self::None,
            rows => Self::Input(rows),
        }
    }

    /// As many as the configuration says, of which the first is everybody's.
    pub(super) fn first(config: &mut ConfigReader<'_>) -> Self {
        match EncoderSpec::types(config) {
            0 => Self::None,
            rows => Self::First(rows),
        }
    }
}

/// Refuses decoders and positions of other kinds, and takes note of keys that change nothing.
fn refuse_other_kinds(config: &mut ConfigReader<'_>) {
    if config.flag("is_decoder") {
        config.unsupported(
            "is_decoder",
            "is true; dlc reads this architecture as an encoder".into(),
        );
    }
    if let Some(kind) = config.text("position_embedding_type")
        && kind != "absolute"
    {
        config.unsupported(
            "position_embedding_type",
            format!("is {}; dlc knows absolute here", show(&kind.into())),
        );
    }
    // Dropout, what older versions of transformers wrote of the pooler, and the tie of a head
    // that isn't here.
    for unread in [
        "tie_word_embeddings",
        "classifier_dropout",
        "cls_dropout",
        "pooler_dropout",
        "directionality",
        "pooler_type",
    ] {
        config.get(unread);
    }
}
