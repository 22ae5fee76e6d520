//! Which matrices are stored transposed.
//!
//! `MatMul` multiplies by `[in, out]`, checkpoints hold `[out, in]`. Tools that quantise or fuse
//! ONNX files look for a `MatMul` with an initializer; `Gemm`, which reads either layout, they pass
//! over.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use dlc_bundle::Profile;
use dlc_ir::{DType, Graph, IrError, Op, Operand, Weight, WeightId, WeightTable};

/// Matrices as the weight file holds them.
pub(crate) type Transposed = HashMap<WeightId, Arc<Weight>>;

/// The matrices of `portable` and `onnx` that graphs multiply values by and read in no other way;
/// the head that is also the embedding is read in two. In f32 alone: ONNX Runtime 1.31 ends the
/// process when it optimises a `deberta` in f16 with `MatMul`, on the CPU, and quantisers take f32.
///
/// # Errors
/// [`IrError::Weight`] for a product with what isn't a matrix.
pub(crate) fn transposed(
    graphs: &[Graph],
    weights: &WeightTable,
    profile: Profile,
) -> Result<Transposed, IrError> {
    let (mut multiplied, mut read_otherwise) = (HashSet::new(), HashSet::new());
    if profile == Profile::Ort {
        return Ok(Transposed::new());
    }
    for (_, node) in graphs.iter().flat_map(Graph::nodes) {
        for (at, operand) in node.inputs.iter().enumerate() {
            let Operand::Weight(id) = operand else {
                continue;
            };
            if at == 1 && is_product_of_values(&node.op, &node.inputs) {
                multiplied.insert(*id);
            } else {
                read_otherwise.insert(*id);
            }
        }
    }
    let only_multiplied = multiplied.difference(&read_otherwise);
    let is_stored = |weight: &Weight| weight.dtype == DType::F32 && weight.expr().is_some();
    let with_data = only_multiplied.filter(|id| is_stored(&weights[**id]));
    with_data
        .map(|&id| Ok((id, Arc::new(weights[id].transposed()?))))
        .collect()
}

fn is_product_of_values(op: &Op, inputs: &[Operand]) -> bool {
    matches!((op, inputs.first()), (Op::Linear, Some(Operand::Value(_))))
}
