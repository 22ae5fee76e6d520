//! What makes up for gaps, as changes of a graph.

use std::collections::{BTreeMap, BTreeSet};

use dlc_ir::{Block, BlockId, DType, Def, Expr, Graph, NodeId, Op, Operand, WeightId, WeightTable};

use crate::error::PassError;
use crate::least_squares::Matrix;

/// What makes up for a gap.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Remedy {
    /// This block, the last of the gap, stays as a product of its residual input with a number.
    Scale { block: BlockId, factor: f32 },
    /// What this product adds to its matrix.
    Matrix { node: NodeId, change: Matrix },
}

/// What makes up for all gaps, and what is to be said of it.
#[derive(Default)]
pub(in crate::fit_prune) struct Compensation {
    pub(super) remedies: Vec<Remedy>,
    /// A line for each gap.
    pub notes: Vec<String>,
}

impl Compensation {
    /// The blocks that stay in the place of what was dropped.
    pub fn stays(&self) -> BTreeSet<BlockId> {
        let blocks = self.remedies.iter().filter_map(|remedy| match remedy {
            Remedy::Scale { block, .. } => Some(*block),
            Remedy::Matrix { .. } => None,
        });
        blocks.collect()
    }

    /// Changes `graph`, a copy of the target, and adds the matrices that it needs.
    pub fn apply(&self, graph: &mut Graph, weights: &mut WeightTable) -> Result<(), PassError> {
        let mut changes: BTreeMap<NodeId, (Op, Vec<Operand>)> = BTreeMap::new();
        for remedy in &self.remedies {
            let (node, change) = match remedy {
                Remedy::Scale { block, factor } => {
                    let Block { input, output, .. } = graph.block(*block);
                    let Def::Node(node, _) = graph.value(*output).def else {
                        continue;
                    };
                    let op = Op::Scale { factor: *factor };
                    (node, (op, vec![Operand::Value(*input)]))
                }
                Remedy::Matrix { node, change } => {
                    let old = graph.node(*node);
                    let mut inputs = old.inputs.clone();
                    if let Some(Operand::Weight(weight)) = inputs.get_mut(1) {
                        *weight = changed(weights, *weight, change)?;
                    }
                    (*node, (old.op.clone(), inputs))
                }
            };
            changes.insert(node, change);
        }
        Ok(graph.replace_nodes(weights, |id, _| changes.get(&id).cloned())?)
    }
}

/// A weight that is another one and `change`, rounded to its type.
fn changed(
    weights: &mut WeightTable,
    weight: WeightId,
    change: &Matrix,
) -> Result<WeightId, PassError> {
    let old = &weights[weight];
    let (name, shape, dtype) = (
        format!("{}.compensated", old.name),
        old.shape.clone(),
        old.dtype,
    );
    let numbers = old.to_f32()?;
    let sums = numbers.iter().zip(&change.data);
    let bytes = sums
        .flat_map(|(x, y)| ((f64::from(*x) + y) as f32).to_le_bytes())
        .collect();
    Ok(weights.add(&name, &shape, Expr::constant(bytes, DType::F32).cast(dtype))?)
}
