//! Where a graph takes tokens, and which of its products answer for each.

use std::collections::HashSet;

use dlc_ir::{DType, Dim, Graph, Node, NodeId, Op, Operand, Shape, ValueId};

use super::queries::{maker, readers};

/// Where a graph takes tokens, and where it gives an answer for each.
#[derive(Debug)]
pub(super) struct Rows {
    pub mask: ValueId,
    /// Tokens of this run.
    pub seq: Dim,
    /// The last products before the answers.
    pub last: HashSet<NodeId>,
    /// What these products make, and what is made of it, up to the answers.
    made: HashSet<ValueId>,
}

impl Rows {
    /// None for a graph of another kind, whose rows can't be put in order.
    pub fn find(graph: &Graph) -> Option<Self> {
        let mut masks = graph
            .nodes()
            .filter(|(_, n)| matches!(n.op, Op::Attention(_)))
            .map(|(_, n)| n.inputs.get(3));
        let Some(Some(Operand::Value(mask))) = masks.next() else {
            return None;
        };
        if masks.any(|other| other != Some(&Operand::Value(*mask)))
            || !graph.inputs().iter().any(|i| i.value == *mask)
        {
            return None;
        }
        let tokens = graph.inputs().iter().find(|i| {
            i.value != *mask && i.cache.is_none() && graph.value(i.value).ty.dtype == DType::I64
        })?;
        let Shape(dims) = &graph.value(tokens.value).ty.shape;
        let [_, seq] = dims.as_slice() else {
            return None;
        };
        let mut rows = Self {
            mask: *mask,
            seq: seq.clone(),
            last: HashSet::new(),
            made: HashSet::new(),
        };
        for answer in graph.outputs().iter().filter(|o| o.cache.is_none()) {
            let product = rows.last_product(graph, answer.value)?;
            rows.last.insert(product);
        }
        Some(rows)
    }

    /// The product that gives `value`, itself or by ops on each entry.
    fn last_product(&mut self, graph: &Graph, value: ValueId) -> Option<NodeId> {
        self.made.insert(value);
        let (node, _) = maker(graph, Operand::Value(value))?;
        let Node { op, inputs, .. } = graph.node(node);
        let Some(Operand::Value(input)) = inputs.first() else {
            return None;
        };
        match op {
            _ if readers(graph, value) > 1 => None,
            Op::Linear | Op::QuantizedLinear(_) => self.by_token(graph, *input).then_some(node),
            Op::Scale { .. } | Op::Clip { .. } | Op::Tanh | Op::Cast { .. } | Op::GatherColumns => {
                self.last_product(graph, *input)
            }
            _ => None,
        }
    }

    /// Whether `value` has a row for each token: `[batch, seq, ..]`.
    pub fn by_token(&self, graph: &Graph, value: ValueId) -> bool {
        graph.value(value).ty.shape.0.get(1) == Some(&self.seq)
    }

    /// What the last products make, and what is made of it, up to the answers.
    pub fn made(self) -> HashSet<ValueId> {
        self.made
    }
}
