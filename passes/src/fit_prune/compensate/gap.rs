//! Where blocks are dropped, and what stands before.

use std::collections::BTreeSet;

use dlc_ir::{Block, BlockId, Def, Graph, NodeId, Op, Operand, ValueId};

/// Dropped blocks in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gap {
    /// The block before them, which stays.
    pub before: Option<BlockId>,
    pub blocks: Vec<BlockId>,
}

/// The gaps that dropping these blocks leaves, in order.
pub(super) fn gaps(graph: &Graph, dropped: &BTreeSet<BlockId>) -> Vec<Gap> {
    let (mut gaps, mut last, mut open) = (Vec::<Gap>::new(), None, false);
    for (id, _) in graph.blocks() {
        if !dropped.contains(&id) {
            (last, open) = (Some(id), false);
            continue;
        }
        match gaps.last_mut() {
            Some(gap) if open => gap.blocks.push(id),
            _ => gaps.push(Gap {
                before: last,
                blocks: vec![id],
            }),
        }
        open = true;
    }
    gaps
}

impl Gap {
    /// Its blocks by name.
    pub fn name(&self, graph: &Graph) -> String {
        let name = |block: Option<&BlockId>| block.map_or("", |b| graph.block(*b).name.as_str());
        let (first, last) = (name(self.blocks.first()), name(self.blocks.last()));
        match self.blocks.len() {
            1 => first.to_owned(),
            _ => format!("{first} to {last}"),
        }
    }
}

/// The product with a matrix whose result, times a number at most, is added to the residual last.
pub(super) struct Writer {
    pub node: NodeId,
    pub reads: ValueId,
    pub factor: f32,
}

pub(super) fn writer(graph: &Graph, block: &Block) -> Option<Writer> {
    let made_by = |value: ValueId| match graph.value(value).def {
        Def::Node(id, _) => Some((id, graph.node(id))),
        Def::Input(_) => None,
    };
    let (_, sum) = made_by(block.output).filter(|(_, node)| node.op == Op::Add)?;
    sum.inputs.iter().find_map(|operand| {
        let Operand::Value(value) = *operand else {
            return None;
        };
        let (mut id, mut node) = made_by(value)?;
        let mut factor = 1.0;
        if let (Op::Scale { factor: own }, [Operand::Value(value)]) = (&node.op, &node.inputs[..]) {
            factor = *own;
            (id, node) = made_by(*value)?;
        }
        match (&node.op, &node.inputs[..]) {
            (Op::Linear, [Operand::Value(reads), Operand::Weight(_), ..]) if factor != 0.0 => {
                Some(Writer {
                    node: id,
                    reads: *reads,
                    factor,
                })
            }
            _ => None,
        }
    })
}
