//! How a draft is made of its target: one action for every block and for the head, and the tokens
//! that the head keeps.

use std::collections::BTreeSet;

use dlc_ir::{Dim, Graph, GroupFormat, Quantizer, Refinement, WeightTable};
use serde::{Deserialize, Serialize};

use super::unsupported;
use crate::draft::head;
use crate::error::PassError;
use crate::quantize::{Matrix, matrices, put_floats, quantize_nodes};
use crate::trim_head::trim;

/// What becomes of a block, or of the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It stays as it is.
    Keep,
    /// Its matrices are quantised to 8 bits.
    Int8,
    /// Its matrices are quantised to 4 bits.
    Int4,
    /// The block is bypassed.
    Drop,
}

impl Action {
    /// Every action, the gentlest first.
    pub const ALL: [Self; 4] = [Self::Keep, Self::Int8, Self::Int4, Self::Drop];

    /// The actions that leave something, each in a format of its own.
    pub const FORMATS: [Self; 3] = [Self::Keep, Self::Int8, Self::Int4];

    /// Bits of the codes that matrices get.
    pub fn bits(self) -> Option<usize> {
        match self {
            Self::Int8 => Some(8),
            Self::Int4 => Some(4),
            Self::Keep | Self::Drop => None,
        }
    }
}

/// The actions that make a draft: one for each block of the target, in order, and one for its head.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Recipe {
    pub blocks: Vec<Action>,
    pub head: Action,
}

impl Recipe {
    /// The same action for everything.
    pub fn all(blocks: usize, action: Action) -> Self {
        Self {
            blocks: vec![action; blocks],
            head: action,
        }
    }

    /// `24 blocks in 8 bits, 6 dropped; head in 8 bits`.
    pub fn describe(&self) -> String {
        let count = |action: Action| self.blocks.iter().filter(|a| **a == action).count();
        let words = [
            (Action::Keep, "whole"),
            (Action::Int8, "in 8 bits"),
            (Action::Int4, "in 4 bits"),
            (Action::Drop, "dropped"),
        ];
        let parts = words
            .iter()
            .filter(|(action, _)| count(*action) > 0)
            .map(|(action, word)| format!("{} {word}", count(*action)));
        let head = words
            .iter()
            .find(|(action, _)| *action == self.head)
            .map_or("", |(_, word)| word);
        format!(
            "blocks {}; head {head}",
            parts.collect::<Vec<_>>().join(", ")
        )
    }

    /// The draft, its unused parts still in it; its head scores the tokens `kept`, or all.
    pub fn draft(
        &self,
        name: &str,
        target: &Graph,
        weights: &mut WeightTable,
        format: &Format,
        kept: Option<&[u32]>,
    ) -> Result<Graph, PassError> {
        let mut draft = target.clone();
        name.clone_into(&mut draft.name);
        let actions: Vec<_> = target
            .blocks()
            .map(|(id, _)| id)
            .zip(&self.blocks)
            .collect();
        for &(block, _) in actions
            .iter()
            .filter(|(_, action)| **action == Action::Drop)
        {
            draft.bypass(block)?;
        }
        for action in [Action::Int8, Action::Int4] {
            let treated = |matrix: &Matrix| {
                if matrix.is_head {
                    self.head == action
                } else {
                    actions
                        .iter()
                        .any(|&(id, a)| Some(id) == matrix.block && *a == action)
                }
            };
            let Some(quantizer) = format.quantizer(action) else {
                continue;
            };
            put_floats(&mut draft, weights, |matrix, coded| {
                quantizer.format.bits < coded.bits && treated(matrix)
            })?;
            let all = matrices(&draft, weights).into_iter();
            let nodes: BTreeSet<_> = all.filter(treated).map(|m| m.node).collect();
            if !nodes.is_empty() {
                quantize_nodes(&mut draft, weights, &nodes, &quantizer)?;
            }
        }
        if let Some(kept) = kept {
            let (node, _) = head(&draft).ok_or_else(|| {
                unsupported("the target's logits don't come from a product with a matrix")
            })?;
            trim(&mut draft, weights, node, kept, vocabulary(target)?)?;
        }
        Ok(draft)
    }
}

/// How matrices are quantised.
#[derive(Debug, Clone, Copy)]
pub(super) struct Format {
    pub group_size: usize,
    /// Whether 4 bits are refined: what isn't run but timed needn't be.
    pub refined: bool,
}

impl Format {
    /// None for actions that don't quantise. Eight bits are near enough without refining.
    pub fn quantizer(&self, action: Action) -> Option<Quantizer> {
        let refinement = if self.refined && action == Action::Int4 {
            Refinement::Hqq
        } else {
            Refinement::None
        };
        action.bits().map(|bits| Quantizer {
            format: GroupFormat {
                bits,
                group_size: self.group_size,
            },
            symmetric: true,
            refinement,
        })
    }
}

/// How many tokens a graph scores.
pub(super) fn vocabulary(graph: &Graph) -> Result<usize, PassError> {
    let width = graph.find_output("logits").and_then(|logits| {
        graph
            .value(logits.value)
            .ty
            .shape
            .last()
            .and_then(Dim::known)
    });
    width.ok_or_else(|| unsupported("the target's vocabulary has no known size"))
}
