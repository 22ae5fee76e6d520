//! The graph of an encoder of the BERT kind, built from its spec: embeddings, layers of attention
//! in both directions and an MLP with a layer norm after each, and a head. The shared part of the
//! families that have one.
//!
//! What stands at padding has no meaning, and may differ from transformers.

use dlc_ir::{Attention, BlockKind, DType, IrError, Op, Operand, Task, ValueId, ValueType, sym};

use super::activation::Activation;
use super::config::{ConfigReader, show};
use super::heads::{Body, Head};
use super::net::Net;
use super::spec::{
    LARGEST_VOCABULARY, LONGEST_CONTEXT, MOST_HEADS, MOST_LAYERS, WIDEST, WIDEST_MLP, eps, head_dim,
};
use super::{Architecture, Facts};

/// Most kinds of segments.
const MOST_TYPES: usize = 1 << 16;

/// An encoder.
pub(super) struct EncoderSpec {
    /// What names of the body begin with, `bert.`; nothing without a head.
    pub(super) body: &'static str,
    /// What they begin with in checkpoints that have a head.
    pub(super) base: &'static str,
    pub(super) vocab_size: usize,
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

/// Learned positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Positions {
    /// None.
    None,
    /// So many rows, numbered as [`Op::Positions`] says.
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
    /// Queries, keys and values `[batch, seq, heads * head_dim]` of `x`, the tensors' names
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
        let shape = [spec.heads * spec.head_dim, spec.hidden_size];
        let mut project = |name: &str| net.linear(x, &format!("{prefix}.{name}"), shape, true);
        Ok((
            [project("query")?, project("key")?, project("value")?],
            None,
        ))
    }
}

impl EncoderSpec {
    /// What all families spell alike. `bodies` are the names' beginnings with and without a head.
    pub(super) fn read(
        config: &mut ConfigReader<'_>,
        task: Task,
        base: &'static str,
        projections: Box<dyn Projections>,
        head: Head,
    ) -> Self {
        let hidden_size = config.required_size("hidden_size", WIDEST);
        let heads = config.required_size("num_attention_heads", MOST_HEADS);
        let head_dim = head_dim(config, "hidden_size", hidden_size, heads);
        let context_length = config.required_size("max_position_embeddings", LONGEST_CONTEXT);
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
        Self {
            body: if task == Task::FeatureExtraction {
                ""
            } else {
                base
            },
            base,
            vocab_size: config.required_size("vocab_size", LARGEST_VOCABULARY),
            hidden_size,
            mlp_size: config.required_size("intermediate_size", WIDEST_MLP),
            layers: config.required_size("num_hidden_layers", MOST_LAYERS),
            heads,
            head_dim,
            eps: eps(config, "layer_norm_eps"),
            activation: Activation::read(config, "hidden_act"),
            positions: Positions::Learned {
                rows: context_length,
                padding: None,
            },
            types: Types::None,
            projections,
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

    fn embed(
        &self,
        net: &mut Net<'_>,
        ids: ValueId,
        types: Option<ValueId>,
    ) -> Result<ValueId, IrError> {
        let (prefix, hidden) = (format!("{}embeddings", self.body), self.hidden_size);
        let words = net.weight(
            &format!("{prefix}.word_embeddings.weight"),
            &[self.vocab_size, hidden],
        )?;
        let mut sum = net.graph.add(Op::Gather, [words, ids.into()])?;
        let types_name = format!("{prefix}.token_type_embeddings.weight");
        match (self.types, types) {
            (Types::Input(rows), Some(types)) => {
                let table = net.weight(&types_name, &[rows, hidden])?;
                let types = net.graph.add(Op::Gather, [table, types.into()])?;
                sum = net.add(sum, types)?;
            }
            (Types::First(rows), _) => {
                let row = net.weight_row(&types_name, [rows, hidden], 0)?;
                sum = net.add(sum, row)?;
            }
            _ => {}
        }
        if let Positions::Learned { rows, padding } = self.positions {
            let table = net.weight(
                &format!("{prefix}.position_embeddings.weight"),
                &[rows, hidden],
            )?;
            let positions = net.graph.add(Op::Positions { padding }, [ids.into()])?;
            let positions = net.graph.add(Op::Gather, [table, positions.into()])?;
            sum = net.add(sum, positions)?;
        }
        net.layer_norm(sum, &format!("{prefix}.LayerNorm"), hidden, self.eps)
    }

    /// The blocks `layers.N.attn` and `layers.N.mlp`.
    fn layer(
        &self,
        net: &mut Net<'_>,
        layer: usize,
        residual: ValueId,
        mask: ValueId,
    ) -> Result<ValueId, IrError> {
        let (prefix, hidden) = (
            format!("{}encoder.layer.{layer}", self.body),
            self.hidden_size,
        );
        net.graph.open_block(
            &format!("layers.{layer}.attn"),
            BlockKind::Attention,
            layer as u32,
            residual,
        )?;
        let ([q, k, v], bias) =
            self.projections
                .project(self, net, residual, &format!("{prefix}.attention.self"))?;
        let attention = Attention {
            heads: self.heads,
            kv_heads: self.heads,
            scale: self.scale,
            window: None,
            softcap: None,
            causal: false,
        };
        let inputs: Vec<Operand> = [q, k, v, mask]
            .into_iter()
            .chain(bias)
            .map(Operand::from)
            .collect();
        let mixed = net.graph.add_node(Op::Attention(attention), inputs)?;
        let mixed = mixed.first().copied().unwrap_or(v);
        let shape = [hidden, self.heads * self.head_dim];
        let projected = net.linear(
            mixed,
            &format!("{prefix}.attention.output.dense"),
            shape,
            true,
        )?;
        let sum = net.add(projected, residual)?;
        let between = net.layer_norm(
            sum,
            &format!("{prefix}.attention.output.LayerNorm"),
            hidden,
            self.eps,
        )?;
        net.graph.close_block(between)?;

        net.graph.open_block(
            &format!("layers.{layer}.mlp"),
            BlockKind::Mlp,
            layer as u32,
            between,
        )?;
        let up = net.linear(
            between,
            &format!("{prefix}.intermediate.dense"),
            [self.mlp_size, hidden],
            true,
        )?;
        let activated = net.activate(up, self.activation)?;
        let down = net.linear(
            activated,
            &format!("{prefix}.output.dense"),
            [hidden, self.mlp_size],
            true,
        )?;
        let sum = net.add(down, between)?;
        let output =
            net.layer_norm(sum, &format!("{prefix}.output.LayerNorm"), hidden, self.eps)?;
        net.graph.close_block(output)?;
        Ok(output)
    }
}

impl Architecture for EncoderSpec {
    fn facts(&self) -> Facts {
        Facts {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            heads: self.heads,
            kv_heads: self.heads,
            head_dim: self.head_dim,
            context_length: self.context_length,
            labels: self.head.labels(),
            scores: self.head.scores(),
            ..Facts::default()
        }
    }

    fn base(&self) -> &'static str {
        self.base
    }

    /// Inputs: `input_ids`, `attention_mask` and, where segments have kinds, `token_type_ids`.
    /// Output: `logits`, or `last_hidden_state` without a head.
    fn build(&self, net: &mut Net<'_>) -> Result<(), IrError> {
        let ids = ValueType::new(DType::I64, [sym("batch"), sym("seq")]);
        let input_ids = net.graph.input("input_ids", ids.clone(), None)?;
        let mask = net.graph.input("attention_mask", ids.clone(), None)?;
        let typed = matches!(self.types, Types::Input(_));
        let types = typed
            .then(|| net.graph.input("token_type_ids", ids, None))
            .transpose()?;
        let mut residual = self.embed(net, input_ids, types)?;
        for layer in 0..self.layers {
            residual = self.layer(net, layer, residual, mask)?;
        }
        let body = Body {
            prefix: self.body,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            eps: self.eps,
        };
        self.head.build(&body, net, residual)
    }
}
