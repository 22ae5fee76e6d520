//! Graphs: typed values made by nodes, grouped into blocks, between named inputs and outputs.
//!
//! Nodes stand in the order in which they run. The arenas are private: a graph is made by
//! [`GraphBuilder`](crate::GraphBuilder) and changed by checked edits.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use crate::block::Block;
use crate::index::{BlockId, IndexVec, NodeId, ValueId, WeightId};
use crate::op::Op;
use crate::types::{DType, ValueType};
use crate::weight::WeightTable;

/// What a node reads: a value of the graph or a weight of the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operand {
    /// A value of the graph.
    Value(ValueId),
    /// A weight of the module.
    Weight(WeightId),
}

impl From<ValueId> for Operand {
    fn from(id: ValueId) -> Self {
        Self::Value(id)
    }
}

impl From<WeightId> for Operand {
    fn from(id: WeightId) -> Self {
        Self::Weight(id)
    }
}

/// One op applied to its operands.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// What is applied.
    pub op: Op,
    /// What to; optional inputs may be missing at the end.
    pub inputs: Vec<Operand>,
    /// What it makes.
    pub outputs: Vec<ValueId>,
    /// The block that the node belongs to.
    pub block: Option<BlockId>,
}

impl Node {
    /// The table whose rows are looked up, or its codes, and the numbers of the rows; none for nodes
    /// that look nothing up.
    pub fn lookup(&self) -> Option<(Operand, Operand)> {
        match self.op {
            Op::Gather | Op::QuantizedGather(_) => {
                Some((*self.inputs.first()?, *self.inputs.last()?))
            }
            _ => None,
        }
    }
}

/// A typed value.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// Its type.
    pub ty: ValueType,
    /// What makes it.
    pub def: Def,
}

/// What makes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Def {
    /// The graph's input at this position.
    Input(usize),
    /// The output of a node at this position.
    Node(NodeId, usize),
}

/// The half of a key/value cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CachePart {
    /// Keys.
    Key,
    /// Values.
    Value,
}

impl CachePart {
    /// The name in boundary names and in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Value => "value",
        }
    }
}

/// That a boundary value carries a cache from one run to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheRole {
    /// The layer of the checkpoint; keeps its number when other layers are dropped.
    pub layer: u32,
    /// Which half.
    pub part: CachePart,
}

/// A named input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Name on the boundary.
    pub name: String,
    /// The value.
    pub value: ValueId,
    /// Set if it is a cache as the last run left it.
    pub cache: Option<CacheRole>,
}

/// A named output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Name on the boundary.
    pub name: String,
    /// The value.
    pub value: ValueId,
    /// Set if it is a cache for the next run.
    pub cache: Option<CacheRole>,
}

/// A typed graph in SSA form.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    /// `target`, `draft` ...
    pub name: String,
    pub(crate) nodes: IndexVec<NodeId, Node>,
    pub(crate) values: IndexVec<ValueId, Value>,
    pub(crate) blocks: IndexVec<BlockId, Block>,
    pub(crate) inputs: Vec<Input>,
    pub(crate) outputs: Vec<Output>,
}

impl Graph {
    /// The nodes in the order in which they run.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> {
        self.nodes.entries()
    }

    /// A node of this graph.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// The values, inputs first, then in the order in which they are made.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = (ValueId, &Value)> {
        self.values.entries()
    }

    /// A value of this graph.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id]
    }

    /// The type of what a node reads.
    pub fn operand_type(&self, operand: Operand, weights: &WeightTable) -> ValueType {
        match operand {
            Operand::Value(value) => self.values[value].ty.clone(),
            Operand::Weight(weight) => weights[weight].ty(),
        }
    }

    /// Which input of a quantised product is its bias, if it has one: zero points, in bytes, may
    /// stand before it.
    pub fn bias_at(&self, node: &Node, weights: &WeightTable) -> usize {
        let after_scales = node.inputs.get(3);
        let is_bytes = |&operand| self.operand_type(operand, weights).dtype == DType::U8;
        3 + usize::from(after_scales.is_some_and(is_bytes))
    }

    /// The blocks in the order in which they run.
    pub fn blocks(&self) -> impl DoubleEndedIterator<Item = (BlockId, &Block)> {
        self.blocks.entries()
    }

    /// A block of this graph.
    pub fn block(&self, id: BlockId) -> &Block {
        &self.blocks[id]
    }

    /// The block with this name.
    pub fn find_block(&self, name: &str) -> Option<BlockId> {
        self.blocks
            .entries()
            .find(|(_, b)| b.name == name)
            .map(|(id, _)| id)
    }

    /// The nodes of a block, in the order in which they run.
    pub fn block_nodes(&self, block: BlockId) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes
            .entries()
            .filter(move |(_, n)| n.block == Some(block))
    }

    /// The inputs, in order.
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// The outputs, in order.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// The input with this name.
    pub fn find_input(&self, name: &str) -> Option<&Input> {
        self.inputs.iter().find(|i| i.name == name)
    }

    /// The output with this name.
    pub fn find_output(&self, name: &str) -> Option<&Output> {
        self.outputs.iter().find(|o| o.name == name)
    }

    /// The weights that the graph uses.
    pub fn weights(&self) -> BTreeSet<WeightId> {
        self.nodes
            .iter()
            .flat_map(|n| &n.inputs)
            .filter_map(|o| {
                if let Operand::Weight(w) = o {
                    Some(*w)
                } else {
                    None
                }
            })
            .collect()
    }

    /// Names of all values as the text form has them: inputs by name, `%3` outside of blocks,
    /// `%layers.0.attn.3` inside.
    ///
    /// Numbers count within the block, so that dropping a block doesn't rename the values of
    /// others.
    pub fn value_names(&self) -> ValueNames {
        let mut counters: HashMap<Option<BlockId>, usize> = HashMap::new();
        let names = self.values.iter().map(|value| match value.def {
            Def::Input(i) => self
                .inputs
                .get(i)
                .map_or_else(|| format!("input#{i}"), |input| input.name.clone()),
            Def::Node(node, _) => {
                let block = self.nodes.get(node).and_then(|n| n.block);
                let counter = counters.entry(block).or_default();
                *counter += 1;
                match block.and_then(|b| self.blocks.get(b)) {
                    Some(b) => format!("{}.{}", b.name, *counter - 1),
                    None => format!("{}", *counter - 1),
                }
            }
        });
        ValueNames(names.collect())
    }
}

/// The names of a graph's values, see [`Graph::value_names`].
#[derive(Debug, Clone)]
pub struct ValueNames(IndexVec<ValueId, String>);

impl std::ops::Index<ValueId> for ValueNames {
    type Output = str;
    fn index(&self, id: ValueId) -> &str {
        self.0.get(id).map_or("?", String::as_str)
    }
}

impl fmt::Display for CacheRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cache layer={} {}", self.layer, self.part.name())
    }
}
