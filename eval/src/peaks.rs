//! How large the numbers of a run get, node by node: what a narrower element type would have to
//! hold.

use std::collections::BTreeMap;

use candle_core::Tensor;
use dlc_ir::{Node, NodeId, Op};

use crate::attention::products;
use crate::error::OpError;
use crate::experts::inside;

/// Largest magnitudes, by the node that made them. Infinite where a node made what isn't finite of
/// numbers that are; what is made of others doesn't count.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Peaks {
    /// Of values, and of those inside a mixture of experts.
    pub outputs: BTreeMap<NodeId, f32>,
    /// Of the scores inside attention, before they are capped or masked.
    pub scores: BTreeMap<NodeId, f32>,
}

impl Peaks {
    /// Takes the larger number at every node.
    pub fn join(&mut self, other: &Self) {
        for (into, from) in [
            (&mut self.outputs, &other.outputs),
            (&mut self.scores, &other.scores),
        ] {
            for (&node, &peak) in from {
                let known = into.entry(node).or_default();
                *known = known.max(peak);
            }
        }
    }

    pub(crate) fn note(
        &mut self,
        id: NodeId,
        node: &Node,
        inputs: &[Tensor],
        outputs: &[Tensor],
    ) -> Result<(), OpError> {
        let (mut peak, mut finite) = (0f32, true);
        let inner = match node.op {
            Op::Experts(experts) => inside(experts, inputs)?,
            _ => vec![],
        };
        for output in outputs.iter().chain(&inner) {
            let (largest, all) = magnitude(output)?;
            (peak, finite) = (largest.max(peak), finite && all);
        }
        if !finite
            && inputs.iter().try_fold(true, |all, input| {
                Ok::<_, OpError>(all && magnitude(input)?.1)
            })?
        {
            peak = f32::INFINITY;
        }
        self.outputs.insert(id, peak);
        if let Op::Attention(attention) = &node.op {
            let (largest, _) = magnitude(&products(attention, inputs, outputs)?)?;
            self.scores.insert(id, largest * attention.scale.abs());
        }
        Ok(())
    }
}

/// The largest finite magnitude, and whether all are finite; integers have none.
fn magnitude(tensor: &Tensor) -> Result<(f32, bool), OpError> {
    if tensor.dtype().is_int() {
        return Ok((0.0, true));
    }
    let numbers = tensor.flatten_all()?.to_vec1::<f32>()?;
    Ok(numbers.iter().fold((0.0, true), |(peak, all), x| {
        if x.is_finite() {
            (x.abs().max(peak), all)
        } else {
            (peak, false)
        }
    }))
}
