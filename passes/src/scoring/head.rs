//! The matrix that makes the logits, and how much the loss depends on it.

use dlc_eval::{Array, Trace, Wanted};
use dlc_ir::{Graph, Op, Operand, ValueId, WeightId};

use super::objective::row_slices;
use crate::draft::head;
use crate::error::PassError;

/// The product that makes the logits.
pub(crate) struct Head {
    pub weight: WeightId,
    reads: ValueId,
    makes: ValueId,
}

impl Head {
    pub fn of(graph: &Graph) -> Option<Self> {
        let node = graph.node(head(graph)?.0);
        match (&node.op, &node.inputs[..], &node.outputs[..]) {
            (Op::Linear, &[Operand::Value(reads), Operand::Weight(weight), ..], &[makes]) => {
                Some(Self {
                    weight,
                    reads,
                    makes,
                })
            }
            _ => None,
        }
    }

    /// Squared norm of the gradient `sum_t g_t h_t'` of the matrix, which isn't made:
    /// `sum over t, u of (g_t . g_u) (h_t . h_u)`.
    pub fn squared_gradient(
        &self,
        trace: &Trace<'_>,
        logits: ValueId,
        seed: &Array,
    ) -> Result<f64, PassError> {
        let wanted = Wanted {
            values: vec![self.makes],
            weights: vec![],
        };
        let gradient = trace
            .vjp(&[(logits, seed.clone())], &wanted)?
            .values
            .remove(&self.makes);
        let states = trace.value(self.reads)?;
        let g: Vec<&[f32]> = gradient.iter().flat_map(row_slices).collect();
        let h: Vec<&[f32]> = row_slices(&states).collect();
        let dot =
            |a: &[f32], b: &[f32]| f64::from(a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>());
        let product = |t: usize, u: usize| dot(g[t], g[u]) * dot(h[t], h[u]);
        let row = |t: usize| product(t, t) + 2.0 * (0..t).map(|u| product(t, u)).sum::<f64>();
        Ok((0..g.len().min(h.len())).map(row).sum())
    }
}
