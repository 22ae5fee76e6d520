//! What a pass needs, about: so that people can plan a run before it begins. Estimates by shape
//! alone, never a limit.

use std::collections::BTreeSet;
use std::ops::AddAssign;

use dlc_ir::{Graph, Module, Operand, WeightId};

/// Bytes that a pass needs beside the module that it gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// Of weights that it adds to the bundle, at most.
    pub disk: u64,
    /// Of memory at its peak, mapped files aside.
    pub memory: u64,
}

impl AddAssign for Needs {
    /// One pass after the other: what they write adds up, what they hold doesn't.
    fn add_assign(&mut self, next: Self) {
        self.disk += next.disk;
        self.memory = self.memory.max(next.memory);
    }
}

const F32: usize = 4;

/// All weights of the module, in bytes of single precision.
pub(crate) fn whole_weights(module: &Module) -> u64 {
    module
        .weights
        .entries()
        .map(|(_, weight)| (weight.elements() * F32) as u64)
        .sum()
}

/// The largest weight of the module, in bytes of single precision.
pub fn largest_weight(module: &Module) -> u64 {
    module
        .weights
        .entries()
        .map(|(_, weight)| (weight.elements() * F32) as u64)
        .max()
        .unwrap_or(0)
}

/// Bytes for scoring `target` backwards block by block over so many sequences: the hidden states at
/// the borders of all blocks; and of the largest block, or of the head, weights, gradients and
/// activations of one sequence.
pub(crate) fn scoring(module: &Module, target: &Graph, samples: usize, length: usize) -> u64 {
    let model = &module.model;
    let borders = samples * length * model.hidden_size * (target.blocks().count() + 1);
    let elements = |block| {
        let operands = target.block_nodes(block).flat_map(|(_, node)| &node.inputs);
        let weights: BTreeSet<WeightId> = operands
            .filter_map(|o| {
                if let Operand::Weight(id) = o {
                    Some(*id)
                } else {
                    None
                }
            })
            .collect();
        weights
            .iter()
            .map(|id| module.weights[*id].elements())
            .sum::<usize>()
    };
    let largest = target
        .blocks()
        .map(|(id, _)| elements(id))
        .max()
        .unwrap_or(0);
    let logits = model.vocab_size * (model.hidden_size + length);
    ((borders + 2 * largest.max(logits)) * F32) as u64
}
