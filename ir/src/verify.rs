//! The verifier. Runs after import and after every pass.
//!
//! - V1: every operand is defined, and before the node that reads it.
//! - V2: every value is made once, and its `def` names its maker.
//! - V3: every value has the type that inference gives it.
//! - V4: names of inputs are unique, and so are names of outputs.
//! - V5: outputs name defined values.
//! - V6: a block's residual input and output are of one type, unless its kind may change it; the
//!   output is made inside the block, the input outside of it and before.
//! - V7: values made inside a block are read outside of it only through its output, or as an output
//!   that is a cache or remembered.
//! - V8: every cache output has one cache input of the same layer, part, element type and heads;
//!   none stands for two.
//! - V9: names of blocks are unique, and a block's nodes stand together.
//! - V10: inputs come before values made by nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::error::IrError;
use crate::graph::{CacheRole, Def, Graph, Operand};
use crate::index::{BlockId, EntityId, NodeId, ValueId};
use crate::infer::infer;
use crate::schedule::memory;
use crate::types::ValueType;
use crate::weight::WeightTable;

/// One broken invariant, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Number in the list at the top of this module.
    pub invariant: u8,
    /// Node, value, block or boundary name.
    pub place: String,
    /// What is wrong there.
    pub problem: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "V{} at {}: {}", self.invariant, self.place, self.problem)
    }
}

/// Every violation in `graph`.
pub fn verify(graph: &Graph, weights: &WeightTable) -> Vec<Violation> {
    let mut cx = Verifier {
        graph,
        weights,
        violations: Vec::new(),
    };
    // The other checks follow ids, so they only run where all ids are good.
    cx.operands();
    cx.definitions();
    cx.outputs();
    if cx.violations.is_empty() {
        cx.types();
        cx.boundary_names();
        cx.blocks();
        cx.escapes();
        cx.caches();
    }
    cx.violations
}

/// [`verify`] as an error that lists every violation.
///
/// # Errors
/// [`IrError::Invalid`].
pub fn check(graph: &Graph, weights: &WeightTable) -> Result<(), IrError> {
    let violations = verify(graph, weights);
    if violations.is_empty() {
        return Ok(());
    }
    Err(IrError::Invalid {
        graph: graph.name.clone(),
        violations: violations.iter().map(ToString::to_string).collect(),
    })
}

struct Verifier<'a> {
    graph: &'a Graph,
    weights: &'a WeightTable,
    violations: Vec<Violation>,
}

impl Verifier<'_> {
    fn report(&mut self, invariant: u8, place: impl fmt::Display, problem: impl Into<String>) {
        self.violations.push(Violation {
            invariant,
            place: place.to_string(),
            problem: problem.into(),
        });
    }

    fn operands(&mut self) {
        for (id, node) in self.graph.nodes.entries() {
            for operand in &node.inputs {
                let good = match operand {
                    Operand::Weight(w) => self.weights.get(*w).is_some(),
                    Operand::Value(v) => match self.graph.values.get(*v).map(|v| v.def) {
                        Some(Def::Input(_)) => true,
                        Some(Def::Node(maker, _)) => maker < id,
                        None => false,
                    },
                };
                if !good {
                    self.report(
                        1,
                        id,
                        format!(
                            "{} reads {operand:?}, which isn't defined before it",
                            node.op.name()
                        ),
                    );
                }
            }
        }
    }

    fn definitions(&mut self) {
        let graph = self.graph;
        let mut seen_node = false;
        for (id, value) in graph.values.entries() {
            let named = match value.def {
                Def::Input(i) => graph.inputs.get(i).map(|input| input.value),
                Def::Node(node, slot) => graph
                    .nodes
                    .get(node)
                    .and_then(|n| n.outputs.get(slot).copied()),
            };
            if named != Some(id) {
                self.report(2, id, "its maker doesn't name it as an output");
            }
            seen_node |= matches!(value.def, Def::Node(..));
            if seen_node && matches!(value.def, Def::Input(_)) {
                self.report(10, id, "an input stands after a value made by a node");
            }
        }
        let made = graph.inputs.len() + graph.nodes.iter().map(|n| n.outputs.len()).sum::<usize>();
        if made != graph.values.len() {
            self.report(
                2,
                &graph.name,
                format!("{made} values are made, {} are known", graph.values.len()),
            );
        }
    }

    fn outputs(&mut self) {
        for output in &self.graph.outputs {
            if self.graph.values.get(output.value).is_none() {
                self.report(5, &output.name, format!("{} isn't defined", output.value));
            }
        }
    }

    fn types(&mut self) {
        for (id, node) in self.graph.nodes.entries() {
            let inputs: Vec<ValueType> = node
                .inputs
                .iter()
                .map(|o| self.graph.operand_type(*o, self.weights))
                .collect();
            let recorded: Vec<&ValueType> = node
                .outputs
                .iter()
                .map(|v| &self.graph.values[*v].ty)
                .collect();
            match infer(&node.op, &inputs) {
                Err(error) => self.report(3, id, error.to_string()),
                Ok(types) if types.iter().collect::<Vec<_>>() != recorded => {
                    self.report(
                        3,
                        id,
                        format!(
                            "{} makes {types:?}, recorded are {recorded:?}",
                            node.op.name()
                        ),
                    );
                }
                Ok(_) => {}
            }
        }
    }

    fn boundary_names(&mut self) {
        let graph = self.graph;
        for names in [
            graph.inputs.iter().map(|i| &i.name).collect::<Vec<_>>(),
            graph.outputs.iter().map(|o| &o.name).collect(),
        ] {
            let mut seen = BTreeSet::new();
            for name in names {
                if !seen.insert(name) {
                    self.report(4, name, "this boundary name is used twice");
                }
            }
        }
    }

    fn owner(&self, value: ValueId) -> Option<BlockId> {
        match self.graph.values[value].def {
            Def::Node(node, _) => self.graph.nodes[node].block,
            Def::Input(_) => None,
        }
    }

    fn blocks(&mut self) {
        let graph = self.graph;
        let mut names = BTreeSet::new();
        let mut members: BTreeMap<BlockId, Vec<NodeId>> = BTreeMap::new();
        for (id, node) in graph.nodes.entries() {
            node.block
                .iter()
                .for_each(|block| members.entry(*block).or_default().push(id));
        }
        for (id, block) in graph.blocks.entries() {
            if !names.insert(&block.name) {
                self.report(9, &block.name, "this block name is used twice");
            }
            let nodes = members.get(&id).map_or(&[][..], Vec::as_slice);
            let (Some(&first), Some(&last)) = (nodes.first(), nodes.last()) else {
                self.report(9, &block.name, "the block has no nodes");
                continue;
            };
            if last.index() - first.index() + 1 != nodes.len() {
                self.report(
                    9,
                    &block.name,
                    "nodes of others stand between the block's nodes",
                );
            }
            if self.owner(block.output) != Some(id) {
                self.report(6, &block.name, "its output is not made inside it");
            }
            if self.owner(block.input) == Some(id)
                || matches!(graph.values[block.input].def, Def::Node(n, _) if n >= first)
            {
                self.report(6, &block.name, "its residual input is not made before it");
            }
            if block.kind.keeps_type()
                && graph.values[block.input].ty != graph.values[block.output].ty
            {
                self.report(
                    6,
                    &block.name,
                    "its residual input and output are of different types",
                );
            }
        }
    }

    fn escapes(&mut self) {
        let graph = self.graph;
        for (id, node) in graph.nodes.entries() {
            for operand in &node.inputs {
                let Operand::Value(value) = *operand else {
                    continue;
                };
                let Some(owner) = self.owner(value) else {
                    continue;
                };
                if node.block != Some(owner) && graph.blocks[owner].output != value {
                    self.report(
                        7,
                        id,
                        format!(
                            "{value} is read from outside of block {}",
                            graph.blocks[owner].name
                        ),
                    );
                }
            }
        }
        for output in &graph.outputs {
            if let Some(owner) = self.owner(output.value)
                && output.cache.is_none()
                && memory::parse_output(&output.name).is_none()
                && graph.blocks[owner].output != output.value
            {
                self.report(
                    7,
                    &output.name,
                    format!(
                        "stands inside of block {} and is neither cache nor remembered",
                        graph.blocks[owner].name
                    ),
                );
            }
        }
    }

    fn caches(&mut self) {
        let graph = self.graph;
        let mut sides: BTreeMap<CacheRole, [Vec<ValueId>; 2]> = BTreeMap::new();
        for input in &graph.inputs {
            input
                .cache
                .iter()
                .for_each(|c| sides.entry(*c).or_default()[0].push(input.value));
        }
        for output in &graph.outputs {
            output
                .cache
                .iter()
                .for_each(|c| sides.entry(*c).or_default()[1].push(output.value));
        }
        for (role, sides) in sides {
            let types = sides
                .each_ref()
                .map(|side| side.first().map(|v| &graph.values[*v].ty));
            let fit = match types {
                [_, None] => true,
                [Some(past), Some(present)] => {
                    past.dtype == present.dtype
                        && past.shape.rank() == 4
                        && past.shape.0.get(1) == present.shape.0.get(1)
                }
                [None, Some(_)] => false,
            };
            if !fit || sides.iter().any(|side| side.len() > 1) {
                self.report(8, role, "needs one input and one output of one type");
            }
        }
    }
}

#[cfg(test)]
mod tests;
