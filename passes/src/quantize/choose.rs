//! Which matrices of a graph a pass quantises.

use dlc_ir::{Graph, WeightTable};

use super::matrices::{Matrix, codes, matrices};
use super::unsupported;
use crate::error::PassError;

/// What was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Selection<'a> {
    /// Blocks or layers, joined by `+`; all if absent.
    pub blocks: Option<&'a str>,
    /// Whether the head is among them.
    pub head: bool,
    /// Matrices that keep codes of their checkpoint of so few bits stay as they are.
    pub kept_bits: Option<usize>,
}

impl Selection<'_> {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.blocks.into_iter().flat_map(|list| list.split('+'))
    }

    /// The first name that is none of a block or layer of `graph`.
    pub fn unknown(&self, graph: &Graph) -> Option<&str> {
        self.names()
            .find(|name| !graph.blocks().any(|(_, block)| is_named(&block.name, name)))
    }

    /// The matrices that were asked for; an error if there is none.
    pub fn matrices(&self, graph: &Graph, weights: &WeightTable) -> Result<Vec<Matrix>, PassError> {
        let wanted = self.wanted(graph, weights);
        let any = !wanted.is_empty();
        let chosen: Vec<Matrix> = wanted
            .into_iter()
            .filter(|matrix| !self.stays(matrix, weights))
            .collect();
        if !chosen.is_empty() {
            return Ok(chosen);
        }
        let way = if any {
            " in the checkpoint; compile with --dequantize for a target in f32"
        } else {
            ""
        };
        Err(unsupported(format!(
            "no matrix is left to quantise: all that was asked for is quantised already{way}"
        )))
    }

    fn wanted(&self, graph: &Graph, weights: &WeightTable) -> Vec<Matrix> {
        let is_wanted = |matrix: &Matrix| match matrix.block.map(|b| &graph.block(b).name) {
            _ if matrix.is_head => self.head,
            Some(block) => self.blocks.is_none() || self.names().any(|name| is_named(block, name)),
            None => self.blocks.is_none(),
        };
        let mut all = matrices(graph, weights);
        all.retain(is_wanted);
        all
    }

    fn stays(&self, matrix: &Matrix, weights: &WeightTable) -> bool {
        let kept = codes(weights, matrix.weight);
        kept.is_some_and(|(_, format)| self.kept_bits.is_some_and(|bits| format.bits <= bits))
    }
}

/// Whether a block is `name`, or of the layer `name`.
fn is_named(block: &str, name: &str) -> bool {
    block
        .strip_prefix(name)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// What to say of a name that no block has.
pub(super) fn no_such_block(what: &str, graph: &Graph, unknown: &str) -> String {
    let blocks: Vec<&str> = graph.blocks().map(|(_, b)| b.name.as_str()).collect();
    format!(
        "the {what} has no block `{unknown}`; it has {}",
        blocks.join(", ")
    )
}
