//! Building a graph: node by node, each typed as it is added.

use std::borrow::Borrow;
use std::collections::HashSet;

use crate::block::{Block, BlockKind};
use crate::error::IrError;
use crate::graph::{CacheRole, Def, Graph, Input, Operand, Output, Value};
use crate::index::{BlockId, IndexVec, ValueId};
use crate::op::Op;
use crate::types::ValueType;
use crate::verify;
use crate::weight::WeightTable;

/// Makes a graph node by node over a table of weights, borrowed or owned. Every node is typed as it
/// is added.
#[derive(Debug)]
pub struct GraphBuilder<W> {
    graph: Graph,
    weights: W,
    open: Option<BlockId>,
    /// Names of inputs and of blocks.
    names: [HashSet<String>; 2],
}

impl<W: Borrow<WeightTable>> GraphBuilder<W> {
    /// Starts a graph over the weights of `weights`.
    pub fn new(name: &str, weights: W) -> Self {
        let graph = Graph {
            name: name.to_owned(),
            nodes: IndexVec::new(),
            values: IndexVec::new(),
            blocks: IndexVec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
        };
        Self {
            graph,
            weights,
            open: None,
            names: Default::default(),
        }
    }

    /// Adds an input. All inputs come before the first node.
    ///
    /// # Errors
    /// [`IrError::Build`] after the first node, and for a name that another input has.
    pub fn input(
        &mut self,
        name: &str,
        ty: ValueType,
        cache: Option<CacheRole>,
    ) -> Result<ValueId, IrError> {
        if !self.graph.nodes.is_empty() {
            return Err(self.fail(format!(
                "input {name} comes after the first node; add all inputs before it"
            )));
        }
        if !self.names[0].insert(name.to_owned()) {
            return Err(self.fail(format!("input {name} is defined twice")));
        }
        let value = self.graph.values.push(Value {
            ty,
            def: Def::Input(self.graph.inputs.len()),
        });
        self.graph.inputs.push(Input {
            name: name.to_owned(),
            value,
            cache,
        });
        Ok(value)
    }

    /// Adds a node with one output.
    ///
    /// # Errors
    /// As [`add_node`](Self::add_node); and [`IrError::Missing`] for an op without outputs.
    pub fn add<const N: usize>(
        &mut self,
        op: Op,
        inputs: [Operand; N],
    ) -> Result<ValueId, IrError> {
        let outputs = self.add_node(op, inputs.to_vec())?;
        outputs.first().copied().ok_or_else(|| {
            self.graph
                .missing("the output of a node that has none".into())
        })
    }

    /// Adds a node and returns all its outputs.
    ///
    /// # Errors
    /// [`IrError::Type`] for operands that don't fit the op; [`IrError::Missing`] for one that
    /// isn't defined.
    pub fn add_node(&mut self, op: Op, inputs: Vec<Operand>) -> Result<Vec<ValueId>, IrError> {
        self.graph
            .append(self.weights.borrow(), op, inputs, self.open)
    }

    /// The type of a value made so far.
    pub fn value_type(&self, value: ValueId) -> &ValueType {
        &self.graph.values[value].ty
    }

    /// Opens a block; nodes added until [`close_block`](Self::close_block) belong to it.
    ///
    /// # Errors
    /// [`IrError::Build`] inside another block, and for a name that another block has.
    pub fn open_block(
        &mut self,
        name: &str,
        kind: BlockKind,
        layer: u32,
        input: ValueId,
    ) -> Result<(), IrError> {
        if let Some(open) = self.open {
            let open = &self.graph.blocks[open].name;
            return Err(self.fail(format!(
                "block {name} stands inside another, {open}; close that first"
            )));
        }
        if !self.names[1].insert(name.to_owned()) {
            return Err(self.fail(format!("block {name} is defined twice")));
        }
        let block = Block {
            name: name.to_owned(),
            kind,
            layer,
            input,
            output: input,
        };
        self.open = Some(self.graph.blocks.push(block));
        Ok(())
    }

    /// Closes the open block, whose residual output is `output`.
    ///
    /// # Errors
    /// [`IrError::Build`] if no block is open.
    pub fn close_block(&mut self, output: ValueId) -> Result<(), IrError> {
        let Some(id) = self.open.take() else {
            return Err(self.fail("no block is open, so none can be closed".into()));
        };
        self.graph.blocks[id].output = output;
        Ok(())
    }

    /// Adds an output.
    pub fn output(&mut self, name: &str, value: ValueId, cache: Option<CacheRole>) {
        self.graph.outputs.push(Output {
            name: name.to_owned(),
            value,
            cache,
        });
    }

    /// The finished graph; every invariant of [`verify`](crate::verify) is checked.
    ///
    /// # Errors
    /// As [`finish_with_weights`](Self::finish_with_weights).
    pub fn finish(self) -> Result<Graph, IrError> {
        self.finish_with_weights().map(|(graph, _)| graph)
    }

    /// The finished graph as [`finish`](Self::finish) gives it, and its weights.
    ///
    /// # Errors
    /// [`IrError::Build`] if a block is open; [`IrError::Invalid`] for a graph that breaks an
    /// invariant.
    pub fn finish_with_weights(self) -> Result<(Graph, W), IrError> {
        if let Some(open) = self.open {
            let open = &self.graph.blocks[open].name;
            return Err(self.fail(format!("block {open} is still open; close it first")));
        }
        verify::check(&self.graph, self.weights.borrow())?;
        Ok((self.graph, self.weights))
    }

    fn fail(&self, problem: String) -> IrError {
        IrError::Build {
            graph: self.graph.name.clone(),
            problem,
        }
    }
}

impl GraphBuilder<WeightTable> {
    /// The weights, to add some that nodes then may read.
    pub fn weights_mut(&mut self) -> &mut WeightTable {
        &mut self.weights
    }
}
