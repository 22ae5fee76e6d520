//! What a graph costs: parameters, arithmetic and cache.

use serde::{Deserialize, Serialize};

use crate::graph::{Graph, Operand};
use crate::op::Op;
use crate::types::Dim;
use crate::weight::WeightTable;

/// The cost of one graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Weight elements that the graph uses, each counted once.
    pub parameters: u64,
    /// Floating-point operations in matrix products with weights, per token (attention over the cache comes on top).
    pub flops_per_token: u64,
    /// Bytes of key/value cache per token.
    pub cache_bytes_per_token: u64,
}

/// The cost of `graph`.
pub fn cost(graph: &Graph, weights: &WeightTable) -> Cost {
    let parameters = graph.weights().iter().map(|w| weights[*w].elements() as u64).sum();
    let products = graph.nodes().filter(|(_, n)| n.op == Op::Linear).filter_map(|(_, n)| match n.inputs[..] {
        [Operand::Value(_), Operand::Weight(w), ..] => Some(2 * weights[w].elements() as u64),
        _ => None,
    });
    let cache = graph.inputs().iter().filter(|i| i.cache.is_some()).map(|i| {
        let ty = &graph.value(i.value).ty;
        let width: usize = ty.shape.0.iter().filter_map(Dim::known).product();
        (width * ty.dtype.size()) as u64
    });
    Cost { parameters, flops_per_token: products.sum(), cache_bytes_per_token: cache.sum() }
}
