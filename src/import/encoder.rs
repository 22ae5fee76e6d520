//! The graph of an encoder of the BERT kind, built from its spec: embeddings, layers of attention
//! in both directions and an MLP with a layer norm after each, and a head. The shared part of the
//! families that have one.
//!
//! What stands at padding has no meaning, and may differ from transformers.

use dlc_ir::{Attention, BlockKind, IrError, Op, Operand, ValueId};

use super::encoder_spec::{EncoderSpec, Positions, Types};
use super::heads::Body;
use super::net::Net;
use super::{Architecture, Facts};

impl EncoderSpec {
    /// The name of the words' embedding.
    fn embedding(&self) -> String {
        format!("{}embeddings.word_embeddings.weight", self.body)
    }

    fn embed(
        &self,
        net: &mut Net<'_>,
        ids: ValueId,
        types: Option<ValueId>,
    ) -> Result<ValueId, IrError> {
        let (prefix, width) = (format!("{}embeddings", self.body), self.embedding_size);
        let words = net.weight(&self.embedding(), &[self.vocab_size, width])?;
        let mut sum = net.graph.add(Op::Gather, [words, ids.into()])?;
        let types_name = format!("{prefix}.token_type_embeddings.weight");
        match (self.types, types) {
            (Types::Input(rows), Some(types)) => {
                let table = net.weight(&types_name, &[rows, width])?;
                let types = net.graph.add(Op::Gather, [table, types.into()])?;
                sum = net.add(sum, types)?;
            }
            (Types::First(rows), _) => {
                let row = net.weight_row(&types_name, [rows, width], 0)?;
                sum = net.add(sum, row)?;
            }
            _ => {}
        }
        if let Positions::Learned { rows, padding } = self.positions {
            let table = net.weight(
                &format!("{prefix}.position_embeddings.weight"),
                &[rows, width],
            )?;
            let positions = net.graph.add(Op::Positions { padding }, [ids.into()])?;
            let positions = net.graph.add(Op::Gather, [table, positions.into()])?;
            sum = net.add(sum, positions)?;
        }
        let normed = net.layer_norm(sum, &format!("{prefix}.LayerNorm"), width, self.eps)?;
        if width == self.hidden_size {
            return Ok(normed);
        }
        let name = format!("{}embeddings_project", self.body);
        net.linear(normed, &name, [self.hidden_size, width], true)
    }

    /// The blocks `layers.N.attn` and `layers.N.mlp`.
    fn layer(
        &self,
        net: &mut Net<'_>,
        layer: usize,
        residual: ValueId,
        mask: ValueId,
    ) -> Result<ValueId, IrError> {
        let (names, hidden) = (&self.spelling.tensors, self.hidden_size);
        let prefix = format!("{}{}.{layer}", self.body, names.layer);
        let name = |part: &str| format!("{prefix}.{part}");
        net.graph.open_block(
            &format!("layers.{layer}.attn"),
            BlockKind::Attention,
            layer as u32,
            residual,
        )?;
        let ([q, k, v], bias) = self.projections.project(self, net, residual, &prefix)?;
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
        let projected = net.linear(mixed, &name(names.attention), shape, true)?;
        let sum = net.add(projected, residual)?;
        let between = net.layer_norm(sum, &name(names.attention_norm), hidden, self.eps)?;
        net.graph.close_block(between)?;

        net.graph.open_block(
            &format!("layers.{layer}.mlp"),
            BlockKind::Mlp,
            layer as u32,
            between,
        )?;
        let up = net.linear(between, &name(names.up), [self.mlp_size, hidden], true)?;
        let activated = net.activate(up, self.activation)?;
        let down = net.linear(activated, &name(names.down), [hidden, self.mlp_size], true)?;
        let sum = net.add(down, between)?;
        let output = net.layer_norm(sum, &name(names.mlp_norm), hidden, self.eps)?;
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
        self.spelling.base
    }

    /// Inputs: `input_ids`, `attention_mask` and, where segments have kinds, `token_type_ids`.
    /// Output: `logits`, or `last_hidden_state` without a head.
    fn build(&self, net: &mut Net<'_>) -> Result<(), IrError> {
        let input_ids = net.token_input("input_ids")?;
        let mask = net.token_input("attention_mask")?;
        let typed = matches!(self.types, Types::Input(_));
        let types = typed
            .then(|| net.token_input("token_type_ids"))
            .transpose()?;
        let mut residual = self.embed(net, input_ids, types)?;
        for layer in 0..self.layers {
            residual = self.layer(net, layer, residual, mask)?;
        }
        let body = Body {
            prefix: self.body,
            embedding: self.embedding(),
            embedding_size: self.embedding_size,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            eps: self.eps,
        };
        self.head.build(&body, net, residual)
    }
}
