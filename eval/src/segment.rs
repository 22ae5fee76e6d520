//! Some nodes of a graph, with their weights loaded once: forward, for many inputs.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use dlc_ir::{Graph, NodeId, Operand, ValueId, WeightId, WeightTable};

use crate::array::{Array, Values};
use crate::error::{EvalError, first_line};
use crate::execute::{Tensors, execute, has_node, has_value, load};
use crate::symbols::Symbols;

/// Nodes that run together: a block, what stands before the first block or after the last, or a
/// whole graph.
///
/// Holds their weights in single precision until it is dropped. May be shared between threads.
#[derive(Debug)]
pub struct Segment<'m> {
    pub(crate) graph: &'m Graph,
    pub(crate) nodes: Vec<NodeId>,
    reads: Vec<ValueId>,
    weights: Vec<WeightId>,
    loaded: BTreeMap<WeightId, Tensor>,
}

impl<'m> Segment<'m> {
    /// Loads the weights of `nodes`, which run in the order given.
    ///
    /// # Errors
    /// [`EvalError::Segment`] for a node that isn't of `graph`, stands twice, or comes before
    /// another that makes what it reads; [`EvalError::Weight`] for weights without data.
    pub fn new(
        graph: &'m Graph,
        weights: &WeightTable,
        nodes: Vec<NodeId>,
    ) -> Result<Self, EvalError> {
        let mut segment = Self {
            graph,
            nodes: Vec::new(),
            reads: Vec::new(),
            weights: Vec::new(),
            loaded: BTreeMap::new(),
        };
        let (mut made, mut read) = (BTreeSet::new(), BTreeSet::new());
        for &id in &nodes {
            if !has_node(graph, id) {
                return Err(EvalError::segment(
                    graph,
                    format!("{id} is not one of its nodes"),
                ));
            }
            let node = graph.node(id);
            for operand in &node.inputs {
                match *operand {
                    Operand::Value(v) if !made.contains(&v) && read.insert(v) => {
                        segment.reads.push(v);
                    }
                    Operand::Weight(w) if !segment.loaded.contains_key(&w) => {
                        segment.loaded.insert(w, load(graph, weights, w)?);
                        segment.weights.push(w);
                    }
                    _ => {}
                }
            }
            if node
                .outputs
                .iter()
                .any(|v| !made.insert(*v) || read.contains(v))
            {
                return Err(EvalError::segment(
                    graph,
                    format!("{id} stands twice, or after a node that reads what it makes"),
                ));
            }
        }
        segment.nodes = nodes;
        Ok(segment)
    }

    /// The values read from outside, in order of first use.
    pub fn reads(&self) -> &[ValueId] {
        &self.reads
    }

    /// The weights used, each once, in order of first use.
    pub fn weights(&self) -> &[WeightId] {
        &self.weights
    }

    /// Computes the values `want`, each read or made by the segment. `known` holds at least
    /// [`reads`](Self::reads), and may hold more.
    ///
    /// # Errors
    /// [`EvalError::Segment`] for known values that are missing or don't fit their types, and for
    /// wanted values that the segment doesn't have; [`EvalError::Node`] for data that an op can't
    /// take.
    pub fn forward(&self, known: &Values, want: &[ValueId]) -> Result<Values, EvalError> {
        let (mut values, symbols) = self.start(known)?;
        let keep = want.iter().copied().collect();
        execute(
            self.graph,
            &self.nodes,
            &mut values,
            &|w| self.weight(w),
            &symbols,
            Some(&keep),
            None,
        )?;
        want.iter()
            .map(|v| Ok((*v, self.array(self.tensor(&values, *v)?)?)))
            .collect()
    }

    /// The known values that it reads, checked, and what their symbols stand for.
    pub(crate) fn start(&self, known: &Values) -> Result<(Tensors, Symbols), EvalError> {
        let mut arrays = Vec::new();
        for value in &self.reads {
            let array = known
                .get(value)
                .ok_or_else(|| self.misfit(*value, "is not known"))?;
            arrays.push((&self.graph.value(*value).ty, array));
        }
        let symbols =
            Symbols::solve(&arrays).map_err(|(at, problem)| match self.reads.get(at) {
                Some(value) => self.misfit(*value, problem),
                None => EvalError::segment(self.graph, problem),
            })?;
        let mut values = Tensors::new();
        for (value, (_, array)) in self.reads.iter().zip(arrays) {
            values.insert(
                *value,
                array
                    .to_tensor()
                    .map_err(|e| self.misfit(*value, first_line(&e)))?,
            );
        }
        Ok((values, symbols))
    }

    pub(crate) fn weight(&self, id: WeightId) -> Result<Tensor, EvalError> {
        self.loaded
            .get(&id)
            .cloned()
            .ok_or_else(|| EvalError::segment(self.graph, format!("weight {id} is not used here")))
    }

    pub(crate) fn tensor<'t>(
        &self,
        values: &'t Tensors,
        id: ValueId,
    ) -> Result<&'t Tensor, EvalError> {
        values
            .get(&id)
            .ok_or_else(|| self.misfit(id, "is neither read nor made here"))
    }

    pub(crate) fn array(&self, tensor: &Tensor) -> Result<Array, EvalError> {
        Array::from_tensor(tensor).map_err(|e| self.failed(&e))
    }

    pub(crate) fn failed(&self, error: &candle_core::Error) -> EvalError {
        EvalError::segment(self.graph, first_line(error))
    }

    pub(crate) fn misfit(&self, id: ValueId, problem: impl Into<String>) -> EvalError {
        let name = if has_value(self.graph, id) {
            format!("%{}", &self.graph.value_names()[id])
        } else {
            id.to_string()
        };
        EvalError::segment(self.graph, format!("{name}: {}", problem.into()))
    }
}
