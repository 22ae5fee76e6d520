//! The graph of a decoder of the llama kind, built from its spec: the shared part of the families
//! that have one.

use dlc_ir::{Attention, BlockKind, IrError, Op, Shape, Task, ValueId, sym};

use super::causal::Causal;
use super::net::Net;
use super::spec::{DecoderSpec, End, QkNorm};
use super::{Architecture, Facts};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

impl Architecture for DecoderSpec {
    fn facts(&self) -> Facts {
        let facts = match &self.end {
            End::Classes {
                labels,
                scores,
                padding,
            } => Facts {
                labels: labels.clone(),
                scores: *scores,
                padding: Some(*padding),
                ..Facts::default()
            },
            End::NextToken | End::Hidden => Facts::default(),
        };
        Facts {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            context_length: self.context_length,
            ..facts
        }
    }

    fn base(&self) -> &'static str {
        match self.end {
            End::NextToken => "",
            End::Hidden | End::Classes { .. } => "model.",
        }
    }

    fn build(&self, net: &mut Net<'_>) -> Result<(), IrError> {
        let mut causal = match self.end {
            End::NextToken => Causal::open(net, self.layers, [self.kv_heads, self.head_dim])?,
            End::Hidden | End::Classes { .. } => Causal::open_text(net)?,
        };
        let table = net.weight(EMBEDDING, &[self.vocab_size, self.hidden_size])?;
        let mut residual = net
            .graph
            .add(Op::Gather, [table, causal.input_ids.into()])?;
        residual = multiply(net, residual, self.multipliers.embedding)?;
        for layer in 0..self.layers {
            residual = self.attention(net, &mut causal, layer, residual)?;
            residual = self.mlp(net, layer, residual)?;
        }
        let normed = self.rms_norm(net, residual, "model.norm", self.hidden_size)?;
        match &self.end {
            End::NextToken => {
                let logits = self.logits(net, normed)?;
                causal.close(net, logits)
            }
            End::Hidden => net.output(Task::FeatureExtraction.output(), normed),
            End::Classes {
                labels, padding, ..
            } => {
                let last = Op::LastToken { padding: *padding };
                let last = net
                    .graph
                    .add(last, [normed.into(), causal.input_ids.into()])?;
                let shape = [labels.len(), self.hidden_size];
                let scores = net.linear(last, "score", shape, false)?;
                net.output("logits", scores)
            }
        }
    }
}

impl DecoderSpec {
    /// What the head says of the states after the last norm.
    fn logits(&self, net: &mut Net<'_>, normed: ValueId) -> Result<ValueId, IrError> {
        let head = net.head(
            HEAD,
            EMBEDDING,
            [self.vocab_size, self.hidden_size],
            self.tied,
        )?;
        let logits = net.graph.add(Op::Linear, [normed.into(), head])?;
        let mut logits = multiply(net, logits, self.multipliers.logits)?;
        if let Some(cap) = self.softcaps[1] {
            logits = multiply(net, logits, Some(1.0 / cap))?;
            logits = net.graph.add(Op::Tanh, [logits.into()])?;
            logits = multiply(net, logits, Some(cap))?;
        }
        Ok(logits)
    }

    /// The block `layers.N.attn`: its residual output.
    fn attention(
        &self,
        net: &mut Net<'_>,
        causal: &mut Causal,
        layer: usize,
        residual: ValueId,
    ) -> Result<ValueId, IrError> {
        let prefix = format!("model.layers.{layer}");
        net.graph.open_block(
            &format!("layers.{layer}.attn"),
            BlockKind::Attention,
            layer as u32,
            residual,
        )?;
        let [before, after] = self.norms.placement.around_attention();
        let x = self.block_norm(net, residual, &prefix, before)?;
        let [q, k, v] = self.projections(net, x, &format!("{prefix}.self_attn"))?;
        let q = self.qk_norm(net, q, self.heads, &format!("{prefix}.self_attn.q_norm"))?;
        let k = self.qk_norm(net, k, self.kv_heads, &format!("{prefix}.self_attn.k_norm"))?;
        let q = self.rotate(net, causal, layer, q, self.heads)?;
        let k = self.rotate(net, causal, layer, k, self.kv_heads)?;
        let attention = Attention {
            heads: self.heads,
            kv_heads: self.kv_heads,
            scale: self.multipliers.attention,
            window: self.windows.get(layer).copied().flatten(),
            softcap: self.softcaps[0],
            causal: true,
        };
        let mixed = causal.attend(net, attention, [q, k, v])?;
        let shape = [self.hidden_size, self.heads * self.head_dim];
        let projected = net.linear(
            mixed,
            &format!("{prefix}.self_attn.o_proj"),
            shape,
            self.bias.output,
        )?;
        let projected = self.block_norm(net, projected, &prefix, after)?;
        self.close_block(net, residual, projected)
    }

    /// Queries or keys, which have `heads` heads, rotated as those of the layer are.
    fn rotate(
        &self,
        net: &mut Net<'_>,
        causal: &Causal,
        layer: usize,
        x: ValueId,
        heads: usize,
    ) -> Result<ValueId, IrError> {
        match self.rotary.get(layer).and_then(Option::as_ref) {
            Some(rotary) => net.graph.add(
                Op::Rope(rotary.rope(heads)),
                [x.into(), causal.positions.into()],
            ),
            None => Ok(x),
        }
    }

    /// Queries, keys and values.
    fn projections(
        &self,
        net: &mut Net<'_>,
        x: ValueId,
        prefix: &str,
    ) -> Result<[ValueId; 3], IrError> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        if self.fused {
            let all = net.linear(
                x,
                &format!("{prefix}.qkv_proj"),
                [q + 2 * kv, self.hidden_size],
                self.bias.qkv,
            )?;
            return Ok([
                net.columns(all, 0, q)?,
                net.columns(all, q, kv)?,
                net.columns(all, q + kv, kv)?,
            ]);
        }
        let mut project = |name: &str, width: usize| {
            net.linear(
                x,
                &format!("{prefix}.{name}"),
                [width, self.hidden_size],
                self.bias.qkv,
            )
        };
        Ok([
            project("q_proj", q)?,
            project("k_proj", kv)?,
            project("v_proj", kv)?,
        ])
    }

    /// The block `layers.N.mlp`: its residual output.
    fn mlp(&self, net: &mut Net<'_>, layer: usize, residual: ValueId) -> Result<ValueId, IrError> {
        let prefix = format!("model.layers.{layer}");
        net.graph.open_block(
            &format!("layers.{layer}.mlp"),
            BlockKind::Mlp,
            layer as u32,
            residual,
        )?;
        let [before, after] = self.norms.placement.around_mlp();
        let x = self.block_norm(net, residual, &prefix, before)?;
        let made = match self.mixtures.get(layer).and_then(Option::as_ref) {
            Some(mixture) => mixture.build(net, x, &prefix, self.hidden_size)?,
            None => self.gated(net, x, &format!("{prefix}.mlp"))?,
        };
        let made = self.block_norm(net, made, &prefix, after)?;
        self.close_block(net, residual, made)
    }

    /// The gated MLP `prefix`.
    fn gated(&self, net: &mut Net<'_>, x: ValueId, prefix: &str) -> Result<ValueId, IrError> {
        let (hidden, width, bias) = (self.hidden_size, self.mlp_size, self.bias.mlp);
        let (gate, up) = if self.fused {
            let name = format!("{prefix}.gate_up_proj");
            let both = net.linear(x, &name, [2 * width, hidden], bias)?;
            let gate = net.columns(both, 0, width)?;
            (
                net.activate(gate, self.activation)?,
                net.columns(both, width, width)?,
            )
        } else {
            let gate = net.linear(x, &format!("{prefix}.gate_proj"), [width, hidden], bias)?;
            (
                net.activate(gate, self.activation)?,
                net.linear(x, &format!("{prefix}.up_proj"), [width, hidden], bias)?,
            )
        };
        let gated = net.graph.add(Op::Mul, [gate.into(), up.into()])?;
        net.linear(gated, &format!("{prefix}.down_proj"), [hidden, width], bias)
    }

    /// Adds what the open block has computed to its residual, and closes it.
    fn close_block(
        &self,
        net: &mut Net<'_>,
        residual: ValueId,
        branch: ValueId,
    ) -> Result<ValueId, IrError> {
        let branch = multiply(net, branch, self.multipliers.residual)?;
        let output = net.add(residual, branch)?;
        net.graph.close_block(output)?;
        Ok(output)
    }

    /// The norm `{prefix}.{name}`; `x` itself where there is none.
    fn block_norm(
        &self,
        net: &mut Net<'_>,
        x: ValueId,
        prefix: &str,
        name: Option<&str>,
    ) -> Result<ValueId, IrError> {
        match name {
            Some(name) => self.rms_norm(net, x, &format!("{prefix}.{name}"), self.hidden_size),
            None => Ok(x),
        }
    }

    fn rms_norm(
        &self,
        net: &mut Net<'_>,
        x: ValueId,
        name: &str,
        width: usize,
    ) -> Result<ValueId, IrError> {
        let scale = net.stored_weight(&format!("{name}.weight"), &[width], self.norms.storage)?;
        let eps = self.norms.eps;
        net.graph.add(Op::RmsNorm { eps }, [x.into(), scale])
    }

    /// The norm of queries or keys, which have `heads` heads.
    fn qk_norm(
        &self,
        net: &mut Net<'_>,
        x: ValueId,
        heads: usize,
        name: &str,
    ) -> Result<ValueId, IrError> {
        match self.qk_norm {
            QkNorm::None => Ok(x),
            QkNorm::PerHead => self.head_norm(net, x, heads, name),
            QkNorm::WholeWidth => self.rms_norm(net, x, name, heads * self.head_dim),
        }
    }

    /// RMS norm over each head by itself.
    fn head_norm(
        &self,
        net: &mut Net<'_>,
        x: ValueId,
        heads: usize,
        name: &str,
    ) -> Result<ValueId, IrError> {
        let joined = net.graph.value_type(x).shape.clone();
        let split = Shape(vec![
            sym("batch"),
            sym("seq"),
            heads.into(),
            self.head_dim.into(),
        ]);
        let x = net.graph.add(Op::Reshape { shape: split }, [x.into()])?;
        let x = self.rms_norm(net, x, name, self.head_dim)?;
        net.graph.add(Op::Reshape { shape: joined }, [x.into()])
    }
}

/// `x` times `factor`, where there is one.
fn multiply(net: &mut Net<'_>, x: ValueId, factor: Option<f32>) -> Result<ValueId, IrError> {
    match factor {
        Some(factor) => net.graph.add(Op::Scale { factor }, [x.into()]),
        None => Ok(x),
    }
}
