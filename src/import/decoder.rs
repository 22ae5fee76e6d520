//! The graph of a decoder, built from its spec: the shared part of every family here.

use dlc_ir::{
    Attention, BlockKind, CachePart, CacheRole, DType, Dim, Graph, GraphBuilder, IrError, Op, Operand, Rope, Shape, ValueId, ValueType, WeightTable,
    sym,
};

use super::spec::DecoderSpec;
use super::weights::{EMBEDDING, HEAD};

/// The graph `target` of `spec` over `weights`, which hold everything that [`expected`](super::weights::expected) lists.
///
/// Inputs: `input_ids`, `attention_mask`, `position_ids`, then key and value of each layer. Outputs: `logits` (always f32), then key and
/// value of each layer.
pub(super) fn build(spec: &DecoderSpec, weights: &WeightTable, dtype: DType) -> Result<Graph, IrError> {
    let mut b = Builder { spec, weights, graph: GraphBuilder::new("target", weights) };
    let (batch, seq, past) = (sym("batch"), sym("seq"), sym("past"));
    let ids = |dims: [Dim; 2]| ValueType::new(DType::I64, dims);
    let input_ids = b.graph.input("input_ids", ids([batch.clone(), seq.clone()]), None)?;
    let mask = b.graph.input("attention_mask", ids([batch.clone(), past.plus(&seq)]), None)?;
    let positions = b.graph.input("position_ids", ids([batch.clone(), seq.clone()]), None)?;
    let cache = ValueType::new(dtype, [batch, spec.kv_heads.into(), past, spec.head_dim.into()]);
    let mut pasts = Vec::new();
    for layer in 0..spec.layers {
        let mut input = |part: CachePart| {
            let role = CacheRole { layer: layer as u32, part };
            b.graph.input(&format!("past_key_values.{layer}.{}", part.name()), cache.clone(), Some(role))
        };
        pasts.push([input(CachePart::Key)?, input(CachePart::Value)?]);
    }

    let table = b.weight(EMBEDDING)?;
    let mut residual = b.graph.add(Op::Gather, [table, input_ids.into()])?;
    let mut presents = Vec::new();
    for (layer, past) in pasts.into_iter().enumerate() {
        let (output, present) = b.attention(layer, residual, [mask, positions], past)?;
        presents.push(present);
        residual = b.mlp(layer, output)?;
    }
    let normed = b.rms_norm(residual, "model.norm")?;
    let head = b.weight(if spec.tied { EMBEDDING } else { HEAD })?;
    let mut logits = b.graph.add(Op::Linear, [normed.into(), head])?;
    if dtype != DType::F32 {
        logits = b.graph.add(Op::Cast { dtype: DType::F32 }, [logits.into()])?;
    }

    b.graph.output("logits", logits, None);
    for (layer, present) in presents.into_iter().enumerate() {
        for (value, part) in present.into_iter().zip([CachePart::Key, CachePart::Value]) {
            let role = CacheRole { layer: layer as u32, part };
            b.graph.output(&format!("present.{layer}.{}", part.name()), value, Some(role));
        }
    }
    b.graph.finish()
}

struct Builder<'a> {
    spec: &'a DecoderSpec,
    weights: &'a WeightTable,
    graph: GraphBuilder<'a>,
}

impl Builder<'_> {
    /// The block `layers.N.attn`: its residual output, and its key and value for the next run.
    fn attention(
        &mut self,
        layer: usize,
        residual: ValueId,
        [mask, positions]: [ValueId; 2],
        past: [ValueId; 2],
    ) -> Result<(ValueId, [ValueId; 2]), IrError> {
        let spec = self.spec;
        let prefix = format!("model.layers.{layer}.self_attn");
        self.graph.open_block(&format!("layers.{layer}.attn"), BlockKind::Attention, layer as u32, residual)?;
        let x = self.rms_norm(residual, &format!("model.layers.{layer}.input_layernorm"))?;
        let mut q = self.linear(x, &format!("{prefix}.q_proj"), spec.bias.qkv)?;
        let mut k = self.linear(x, &format!("{prefix}.k_proj"), spec.bias.qkv)?;
        let v = self.linear(x, &format!("{prefix}.v_proj"), spec.bias.qkv)?;
        if spec.qk_norm {
            q = self.head_norm(q, spec.heads, &format!("{prefix}.q_norm"))?;
            k = self.head_norm(k, spec.kv_heads, &format!("{prefix}.k_norm"))?;
        }
        let q = self.rope(q, spec.heads, positions)?;
        let k = self.rope(k, spec.kv_heads, positions)?;
        let attention = Attention {
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            scale: (1.0 / (spec.head_dim as f64).sqrt()) as f32,
            window: spec.windows.get(layer).copied().flatten(),
        };
        let inputs = [q, k, v, mask, past[0], past[1]].map(Operand::from).to_vec();
        let [mixed, key, value] = self
            .graph
            .add_node(Op::Attention(attention), inputs)?
            .try_into()
            .map_err(|outputs: Vec<ValueId>| IrError::Type { op: "attention", problem: format!("makes {} values, not 3", outputs.len()) })?;
        let projected = self.linear(mixed, &format!("{prefix}.o_proj"), spec.bias.output)?;
        let output = self.graph.add(Op::Add, [residual.into(), projected.into()])?;
        self.graph.close_block(output)?;
        Ok((output, [key, value]))
    }

    /// The block `layers.N.mlp`: its residual output.
    fn mlp(&mut self, layer: usize, residual: ValueId) -> Result<ValueId, IrError> {
        let bias = self.spec.bias.mlp;
        let prefix = format!("model.layers.{layer}.mlp");
        self.graph.open_block(&format!("layers.{layer}.mlp"), BlockKind::Mlp, layer as u32, residual)?;
        let x = self.rms_norm(residual, &format!("model.layers.{layer}.post_attention_layernorm"))?;
        let gate = self.linear(x, &format!("{prefix}.gate_proj"), bias)?;
        let gate = self.graph.add(Op::Silu, [gate.into()])?;
        let up = self.linear(x, &format!("{prefix}.up_proj"), bias)?;
        let gated = self.graph.add(Op::Mul, [gate.into(), up.into()])?;
        let down = self.linear(gated, &format!("{prefix}.down_proj"), bias)?;
        let output = self.graph.add(Op::Add, [residual.into(), down.into()])?;
        self.graph.close_block(output)?;
        Ok(output)
    }

    fn rms_norm(&mut self, x: ValueId, name: &str) -> Result<ValueId, IrError> {
        let scale = self.weight(&format!("{name}.weight"))?;
        self.graph.add(Op::RmsNorm { eps: self.spec.eps }, [x.into(), scale])
    }

    /// RMS norm over each head by itself.
    fn head_norm(&mut self, x: ValueId, heads: usize, name: &str) -> Result<ValueId, IrError> {
        let joined = self.graph.value_type(x).shape.clone();
        let [batch, seq] = [sym("batch"), sym("seq")];
        let split = Shape(vec![batch, seq, heads.into(), self.spec.head_dim.into()]);
        let x = self.graph.add(Op::Reshape { shape: split }, [x.into()])?;
        let x = self.rms_norm(x, name)?;
        self.graph.add(Op::Reshape { shape: joined }, [x.into()])
    }

    fn rope(&mut self, x: ValueId, heads: usize, positions: ValueId) -> Result<ValueId, IrError> {
        let rope = Rope { heads, theta: self.spec.rope_theta, scaling: self.spec.rope_scaling };
        self.graph.add(Op::Rope(rope), [x.into(), positions.into()])
    }

    fn linear(&mut self, x: ValueId, name: &str, bias: bool) -> Result<ValueId, IrError> {
        let weight = self.weight(&format!("{name}.weight"))?;
        if bias {
            let bias = self.weight(&format!("{name}.bias"))?;
            return self.graph.add(Op::Linear, [x.into(), weight, bias]);
        }
        self.graph.add(Op::Linear, [x.into(), weight])
    }

    fn weight(&self, name: &str) -> Result<Operand, IrError> {
        let id = self.weights.find(name);
        id.map(Operand::from).ok_or_else(|| IrError::Edit { graph: "target".into(), problem: format!("weight {name} was not collected") })
    }
}
