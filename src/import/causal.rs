//! The boundary of a decoder: tokens, mask, positions and caches in; logits and caches out. One that
//! reads whole texts takes tokens and mask alone.

use dlc_ir::{
    Attention, CachePart, CacheRole, DType, IrError, Op, Operand, ValueId, ValueType, sym,
};

use super::net::Net;

/// What a decoder reads, and the caches that it has made so far.
pub(super) struct Causal {
    pub(super) input_ids: ValueId,
    pub(super) positions: ValueId,
    mask: ValueId,
    /// None where whole texts are read.
    pasts: Option<Vec<[ValueId; 2]>>,
    presents: Vec<[ValueId; 2]>,
}

const PARTS: [CachePart; 2] = [CachePart::Key, CachePart::Value];

impl Causal {
    /// Inputs: `input_ids`, `attention_mask`, `position_ids`, then key and value of each layer.
    pub(super) fn open(
        net: &mut Net<'_>,
        layers: usize,
        [kv_heads, head_dim]: [usize; 2],
    ) -> Result<Self, IrError> {
        let (batch, seq, past) = (sym("batch"), sym("seq"), sym("past"));
        let input_ids = net.token_input("input_ids")?;
        let seen = ValueType::new(DType::I64, [batch.clone(), past.plus(&seq)]);
        let mask = net.graph.input("attention_mask", seen, None)?;
        let positions = net.token_input("position_ids")?;
        let cache = ValueType::new(net.dtype, [batch, kv_heads.into(), past, head_dim.into()]);
        let mut pasts = Vec::new();
        for layer in 0..layers {
            let mut input = |part: CachePart| {
                let role = CacheRole {
                    layer: layer as u32,
                    part,
                };
                net.graph.input(
                    &format!("past_key_values.{layer}.{}", part.name()),
                    cache.clone(),
                    Some(role),
                )
            };
            pasts.push([input(CachePart::Key)?, input(CachePart::Value)?]);
        }
        Ok(Self {
            input_ids,
            positions,
            mask,
            pasts: Some(pasts),
            presents: Vec::new(),
        })
    }

    /// Inputs: `input_ids`, `attention_mask`. Positions count from 0 on, padding included, as
    /// transformers counts them where it is told none.
    pub(super) fn open_text(net: &mut Net<'_>) -> Result<Self, IrError> {
        let input_ids = net.token_input("input_ids")?;
        let mask = net.token_input("attention_mask")?;
        let count = Op::Positions { padding: None };
        Ok(Self {
            input_ids,
            positions: net.graph.add(count, [input_ids.into()])?,
            mask,
            pasts: None,
            presents: Vec::new(),
        })
    }

    /// The attended values of the next layer.
    pub(super) fn attend(
        &mut self,
        net: &mut Net<'_>,
        attention: Attention,
        [q, k, v]: [ValueId; 3],
    ) -> Result<ValueId, IrError> {
        let fail = |problem: &str| IrError::Type {
            op: "attention",
            problem: problem.into(),
        };
        let Some(pasts) = &self.pasts else {
            let inputs = [q, k, v, self.mask].map(Operand::from);
            return net.graph.add(Op::Attention(attention), inputs);
        };
        let past = pasts
            .get(self.presents.len())
            .ok_or_else(|| fail("there are more layers than caches"))?;
        let inputs = [q, k, v, self.mask, past[0], past[1]]
            .map(Operand::from)
            .to_vec();
        match net.graph.add_node(Op::Attention(attention), inputs)?[..] {
            [mixed, key, value] => {
                self.presents.push([key, value]);
                Ok(mixed)
            }
            _ => Err(fail("doesn't make 3 values")),
        }
    }

    /// Outputs: `logits` (always f32), then key and value of each layer.
    pub(super) fn close(self, net: &mut Net<'_>, logits: ValueId) -> Result<(), IrError> {
        net.output("logits", logits)?;
        for (layer, present) in self.presents.into_iter().enumerate() {
            for (value, part) in present.into_iter().zip(PARTS) {
                let role = CacheRole {
                    layer: layer as u32,
                    part,
                };
                net.graph.output(
                    &format!("present.{layer}.{}", part.name()),
                    value,
                    Some(role),
                );
            }
        }
        Ok(())
    }
}
