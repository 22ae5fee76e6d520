//! A segment's values, and the way back through them: vector-Jacobian products.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use dlc_ir::{NodeId, Operand, ValueId, WeightId};

use crate::array::{Array, Values};
use crate::error::EvalError;
use crate::execute::{Tensors, execute, fetch};
use crate::pullback::pullback;
use crate::segment::Segment;
use crate::symbols::Symbols;

/// What to differentiate with respect to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Values that the segment reads or makes. The gradient of a made value is that through its
    /// readers, and through seeds of its own.
    pub values: Vec<ValueId>,
    /// Weights that the segment uses.
    pub weights: Vec<WeightId>,
}

/// Gradients, one of the shape of its value or weight for each that was wanted; 0 where no seeded
/// value depends on it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gradients {
    /// With respect to values.
    pub values: BTreeMap<ValueId, Array>,
    /// With respect to weights.
    pub weights: BTreeMap<WeightId, Array>,
}

/// One forward run of a segment with every value kept, to be differentiated.
#[derive(Debug)]
pub struct Trace<'s> {
    segment: &'s Segment<'s>,
    values: Tensors,
    symbols: Symbols,
}

impl Segment<'_> {
    /// As [`forward`](Self::forward), but keeps every value for [`Trace::vjp`].
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn trace(&self, known: &Values) -> Result<Trace<'_>, EvalError> {
        let (mut values, symbols) = self.start(known)?;
        execute(
            self.graph,
            &self.nodes,
            &mut values,
            &|w| self.weight(w),
            &symbols,
            None,
            None,
        )?;
        Ok(Trace {
            segment: self,
            values,
            symbols,
        })
    }

    /// Runs forward, then [`Trace::vjp`].
    ///
    /// # Errors
    /// As [`forward`](Self::forward) and [`Trace::vjp`].
    pub fn vjp(
        &self,
        known: &Values,
        seeds: &[(ValueId, Array)],
        wanted: &Wanted,
    ) -> Result<Gradients, EvalError> {
        self.trace(known)?.vjp(seeds, wanted)
    }
}

impl Trace<'_> {
    /// A value that the segment reads or makes.
    ///
    /// # Errors
    /// [`EvalError::Segment`] for any other.
    pub fn value(&self, id: ValueId) -> Result<Array, EvalError> {
        self.segment.array(self.segment.tensor(&self.values, id)?)
    }

    /// The gradient of `sum over seeds of seed * value` with respect to what is wanted. Each seed
    /// has the shape of its value; seeds of one value add up. Gradients that weren't asked for
    /// aren't computed.
    ///
    /// # Errors
    /// [`EvalError::Segment`] for seeds, wanted values and weights that the segment doesn't have or
    /// that are integers, and for seeds of another shape than their value's.
    pub fn vjp(&self, seeds: &[(ValueId, Array)], wanted: &Wanted) -> Result<Gradients, EvalError> {
        let segment = self.segment;
        for value in &wanted.values {
            self.float_value(*value)?;
        }
        for weight in &wanted.weights {
            if segment.weight(*weight)?.dtype().is_int() {
                return Err(EvalError::segment(
                    segment.graph,
                    format!("weight {weight} holds integers, which have no gradient"),
                ));
            }
        }
        let mut backward = Backward::new(self, wanted);
        for (value, seed) in seeds {
            let of = self.float_value(*value)?;
            if seed.as_f32().is_none() || seed.shape() != of.dims() {
                return Err(segment.misfit(
                    *value,
                    format!(
                        "is f32{:?}, its seed {}{:?}",
                        of.dims(),
                        seed.kind(),
                        seed.shape()
                    ),
                ));
            }
            let seed = seed
                .to_tensor()
                .and_then(|seed| add(&mut backward.values, *value, seed));
            seed.map_err(|e| segment.failed(&e))?;
        }
        for id in segment.nodes.iter().rev() {
            backward.through(*id)?;
        }
        backward.finish()
    }

    fn float_value(&self, id: ValueId) -> Result<&Tensor, EvalError> {
        let tensor = self.segment.tensor(&self.values, id)?;
        if tensor.dtype().is_int() {
            Err(self
                .segment
                .misfit(id, "holds integers, which have no gradient"))
        } else {
            Ok(tensor)
        }
    }
}

/// Gradients while they are passed back from node to node.
struct Backward<'t> {
    trace: &'t Trace<'t>,
    wanted_values: BTreeSet<ValueId>,
    wanted_weights: BTreeSet<WeightId>,
    /// Values that depend on something wanted; gradients of others aren't computed.
    dependent: BTreeSet<ValueId>,
    values: Tensors,
    weights: BTreeMap<WeightId, Tensor>,
}

impl<'t> Backward<'t> {
    fn new(trace: &'t Trace<'t>, wanted: &Wanted) -> Self {
        let wanted_values: BTreeSet<ValueId> = wanted.values.iter().copied().collect();
        let dependent = wanted_values.clone();
        let wanted_weights = wanted.weights.iter().copied().collect();
        let mut backward = Self {
            trace,
            wanted_values,
            wanted_weights,
            dependent,
            values: Tensors::new(),
            weights: BTreeMap::new(),
        };
        for id in &trace.segment.nodes {
            let node = trace.segment.graph.node(*id);
            if node.inputs.iter().any(|operand| backward.needs(*operand)) {
                backward.dependent.extend(&node.outputs);
            }
        }
        backward
    }

    fn needs(&self, operand: Operand) -> bool {
        match operand {
            Operand::Value(value) => self.dependent.contains(&value),
            Operand::Weight(weight) => self.wanted_weights.contains(&weight),
        }
    }

    /// Passes the gradients of a node's outputs on to its inputs.
    fn through(&mut self, id: NodeId) -> Result<(), EvalError> {
        let Trace {
            segment,
            values,
            symbols,
        } = self.trace;
        let node = segment.graph.node(id);
        let needed: Vec<bool> = node
            .inputs
            .iter()
            .map(|operand| self.needs(*operand))
            .collect();
        let mut upstream = Vec::new();
        for value in &node.outputs {
            // The nodes after have all been passed: the gradient is complete.
            upstream.push(if self.wanted_values.contains(value) {
                self.values.get(value).cloned()
            } else {
                self.values.remove(value)
            });
        }
        if !needed.contains(&true) || upstream.iter().all(Option::is_none) {
            return Ok(());
        }
        let inputs = fetch(segment.graph, id, values, &|weight| segment.weight(weight))?;
        let downstream = pullback(&node.op, &inputs, &upstream, &needed, symbols)
            .map_err(|e| e.at(segment.graph, id))?;
        for (operand, gradient) in node.inputs.iter().zip(downstream) {
            if let Some(gradient) = gradient {
                let added = match operand {
                    Operand::Value(value) => add(&mut self.values, *value, gradient),
                    Operand::Weight(weight) => add(&mut self.weights, *weight, gradient),
                };
                added.map_err(|e| segment.failed(&e))?;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Gradients, EvalError> {
        let Trace {
            segment, values, ..
        } = self.trace;
        let array = |gradient: Option<Tensor>, like: &Tensor| match gradient {
            Some(gradient) => segment.array(&gradient),
            None => segment.array(&like.zeros_like().map_err(|e| segment.failed(&e))?),
        };
        let mut gradients = Gradients::default();
        for value in &self.wanted_values {
            let gradient = array(self.values.remove(value), segment.tensor(values, *value)?)?;
            gradients.values.insert(*value, gradient);
        }
        for weight in &self.wanted_weights {
            let gradient = array(self.weights.remove(weight), &segment.weight(*weight)?)?;
            gradients.weights.insert(*weight, gradient);
        }
        Ok(gradients)
    }
}

fn add<K: Ord>(
    sums: &mut BTreeMap<K, Tensor>,
    key: K,
    gradient: Tensor,
) -> candle_core::Result<()> {
    let sum = match sums.remove(&key) {
        Some(sum) => (sum + gradient)?,
        None => gradient,
    };
    sums.insert(key, sum);
    Ok(())
}
