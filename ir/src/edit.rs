//! Checked edits: the only ways to change a graph. Each leaves a graph that verifies, or an error
//! and the graph as it was.

use std::collections::HashMap;

use crate::block::Block;
use crate::error::IrError;
use crate::graph::{Def, Graph, Input, Node, Operand, Output, Value};
use crate::index::{BlockId, EntityId, IndexVec, NodeId, ValueId, WeightId};
use crate::infer::infer;
use crate::op::Op;
use crate::verify;
use crate::weight::{Weight, WeightTable};

impl Graph {
    /// Reconnects everybody who reads the block's output to its residual input, and drops the
    /// block's cache outputs.
    ///
    /// The block's nodes stay, dead, until [`remove_dead`](Self::remove_dead).
    ///
    /// # Errors
    /// [`IrError::Edit`] if another output of the graph stands inside the block, or if its output
    /// is of another type than its residual input.
    pub fn bypass(&mut self, block: BlockId) -> Result<(), IrError> {
        let Block {
            name,
            input,
            output,
            ..
        } = self.blocks[block].clone();
        let (from, to) = (&self.values[input].ty, &self.values[output].ty);
        if from != to {
            return Err(self.edit_error(format!(
                "block {name} can't be bypassed: it makes {to} of {from}, and only a block that keeps its type can"
            )));
        }
        let inside = |graph: &Self, value: ValueId| matches!(graph.values[value].def, Def::Node(n, _) if graph.nodes[n].block == Some(block));
        let held = self
            .outputs
            .iter()
            .find(|o| o.cache.is_none() && o.value != output && inside(self, o.value));
        if let Some(held) = held {
            return Err(self.edit_error(format!(
                "block {name} can't be bypassed: output {} is made inside it, and would be left without a value",
                held.name
            )));
        }
        let kept = self
            .outputs
            .iter()
            .filter(|o| o.cache.is_none() || !inside(self, o.value))
            .cloned()
            .collect();
        self.outputs = kept;
        let redirect = |value: &mut ValueId| {
            if *value == output {
                *value = input;
            }
        };
        for node in self.nodes.iter_mut().filter(|n| n.block != Some(block)) {
            node.inputs.iter_mut().for_each(|o| {
                if let Operand::Value(v) = o {
                    redirect(v);
                }
            });
        }
        self.outputs.iter_mut().for_each(|o| redirect(&mut o.value));
        for (id, other) in self.blocks.ids().zip(self.blocks.iter_mut()) {
            if id != block {
                redirect(&mut other.input);
            }
        }
        Ok(())
    }

    /// Puts other ops or operands in place of those of some nodes; all types are inferred anew.
    /// `replace` gets each node and returns what stands there instead, with as many outputs.
    ///
    /// # Errors
    /// [`IrError::Type`] for operands that don't fit their op; [`IrError::Missing`] for one that
    /// isn't defined; [`IrError::Edit`] where something else comes out than before;
    /// [`IrError::Invalid`] for a graph that breaks an invariant.
    pub fn replace_nodes(
        &mut self,
        weights: &WeightTable,
        mut replace: impl FnMut(NodeId, &Node) -> Option<(Op, Vec<Operand>)>,
    ) -> Result<(), IrError> {
        let mut made = Self {
            nodes: IndexVec::new(),
            values: IndexVec::new(),
            ..self.clone()
        };
        for input in &self.inputs {
            made.values.push(self.values[input.value].clone());
        }
        for (id, old) in self.nodes.entries() {
            let (op, inputs) =
                replace(id, old).unwrap_or_else(|| (old.op.clone(), old.inputs.clone()));
            if made.append(weights, op, inputs, old.block)? != old.outputs {
                return Err(self.edit_error(format!(
                    "node {id} ({}) makes other values than what takes its place; replace it by a node of as many outputs",
                    old.op.name()
                )));
            }
        }
        verify::check(&made, weights)?;
        *self = made;
        Ok(())
    }

    /// Makes the output `name` what `op` makes of its value and of the operands in `more`.
    ///
    /// # Errors
    /// [`IrError::Edit`] if there is no such output; else as
    /// [`replace_nodes`](Self::replace_nodes).
    pub fn extend_output(
        &mut self,
        weights: &WeightTable,
        name: &str,
        op: Op,
        more: &[Operand],
    ) -> Result<(), IrError> {
        let Some(at) = self.outputs.iter().position(|o| o.name == name) else {
            let names: Vec<&str> = self.outputs.iter().map(|o| o.name.as_str()).collect();
            return Err(self.edit_error(format!(
                "there is no output {name}, but {}",
                names.join(", ")
            )));
        };
        let mut made = self.clone();
        let inputs = [&[Operand::Value(self.outputs[at].value)], more].concat();
        let outputs = made.append(weights, op, inputs, None)?;
        made.outputs[at].value = *outputs
            .first()
            .ok_or_else(|| self.missing(format!("what output {name} is to be")))?;
        verify::check(&made, weights)?;
        *self = made;
        Ok(())
    }

    /// Calls the input `old` `new`.
    ///
    /// # Errors
    /// [`IrError::Missing`] if there is no such input; [`IrError::Invalid`] for a name that is taken.
    pub fn rename_input(
        &mut self,
        weights: &WeightTable,
        old: &str,
        new: &str,
    ) -> Result<(), IrError> {
        let mut made = self.clone();
        let found = made.inputs.iter_mut().find(|input| input.name == old);
        let input = found.ok_or_else(|| self.missing(format!("input {old}")))?;
        new.clone_into(&mut input.name);
        verify::check(&made, weights)?;
        *self = made;
        Ok(())
    }

    /// Gives the graph these outputs, in this order, instead of its own.
    ///
    /// # Errors
    /// [`IrError::Invalid`] for names that stand twice and values that aren't there.
    pub fn set_outputs(
        &mut self,
        weights: &WeightTable,
        outputs: Vec<Output>,
    ) -> Result<(), IrError> {
        let made = Self {
            outputs,
            ..self.clone()
        };
        verify::check(&made, weights)?;
        *self = made;
        Ok(())
    }

    /// Adds a node after all others; returns what it makes.
    pub(crate) fn append(
        &mut self,
        weights: &WeightTable,
        op: Op,
        inputs: Vec<Operand>,
        block: Option<BlockId>,
    ) -> Result<Vec<ValueId>, IrError> {
        let ty = |operand: &Operand| match operand {
            Operand::Value(v) => self.values.get(*v).map(|v| v.ty.clone()),
            Operand::Weight(w) => weights.get(*w).map(Weight::ty),
        };
        let missing = |at: usize| self.missing(format!("operand {at} of {}", op.name()));
        let types = inputs
            .iter()
            .enumerate()
            .map(|(at, operand)| ty(operand).ok_or_else(|| missing(at)))
            .collect::<Result<Vec<_>, _>>()?;
        let node = self.nodes.next_id();
        let made = infer(&op, &types)?.into_iter().enumerate();
        let outputs: Vec<ValueId> = made
            .map(|(slot, ty)| {
                self.values.push(Value {
                    ty,
                    def: Def::Node(node, slot),
                })
            })
            .collect();
        self.nodes.push(Node {
            op,
            inputs,
            outputs: outputs.clone(),
            block,
        });
        Ok(outputs)
    }

    /// Drops the nodes that no output depends on, and the blocks that became empty; returns how
    /// many nodes these were.
    pub fn remove_dead(&mut self) -> usize {
        let mut live = vec![false; self.nodes.len()];
        let mut wanted: Vec<ValueId> = self.outputs.iter().map(|o| o.value).collect();
        while let Some(value) = wanted.pop() {
            if let Def::Node(node, _) = self.values[value].def
                && !std::mem::replace(&mut live[node.index()], true)
            {
                wanted.extend(self.nodes[node].inputs.iter().filter_map(|o| {
                    if let Operand::Value(v) = o {
                        Some(*v)
                    } else {
                        None
                    }
                }));
            }
        }
        let dead = live.iter().filter(|l| !**l).count();
        let inputs = vec![true; self.inputs.len()];
        self.compact(&live, &inputs);
        dead
    }

    /// Drops the inputs that no node and no output reads; returns their names.
    pub fn remove_unused_inputs(&mut self) -> Vec<String> {
        let read = |value: ValueId| {
            self.outputs.iter().any(|o| o.value == value)
                || self
                    .nodes
                    .iter()
                    .any(|n| n.inputs.contains(&Operand::Value(value)))
        };
        let keep: Vec<bool> = self.inputs.iter().map(|i| read(i.value)).collect();
        let dropped = self
            .inputs
            .iter()
            .zip(&keep)
            .filter(|(_, k)| !**k)
            .map(|(i, _)| i.name.clone())
            .collect();
        let live = vec![true; self.nodes.len()];
        self.compact(&live, &keep);
        dropped
    }

    /// Numbers the cache inputs and outputs from 0 in the order of their layers; returns `layer`
    /// for each number.
    pub fn renumber_caches(&mut self) -> Vec<u32> {
        let mut layers: Vec<u32> = self
            .inputs
            .iter()
            .filter_map(|i| i.cache.map(|c| c.layer))
            .collect();
        layers.extend(self.outputs.iter().filter_map(|o| o.cache.map(|c| c.layer)));
        layers.sort_unstable();
        layers.dedup();
        let slot = |layer: u32| layers.binary_search(&layer).unwrap_or_default();
        for input in &mut self.inputs {
            if let Some(cache) = input.cache {
                input.name = format!(
                    "past_key_values.{}.{}",
                    slot(cache.layer),
                    cache.part.name()
                );
            }
        }
        for output in &mut self.outputs {
            if let Some(cache) = output.cache {
                output.name = format!("present.{}.{}", slot(cache.layer), cache.part.name());
            }
        }
        layers
    }

    pub(crate) fn move_weights(&mut self, moved: &HashMap<WeightId, WeightId>) {
        for operand in self.nodes.iter_mut().flat_map(|n| &mut n.inputs) {
            if let Operand::Weight(w) = operand
                && let Some(new) = moved.get(w)
            {
                *w = *new;
            }
        }
    }

    /// Rebuilds the arenas with the nodes and inputs that are kept. Nothing kept may read anything
    /// dropped.
    fn compact(&mut self, keep_nodes: &[bool], keep_inputs: &[bool]) {
        let old = std::mem::replace(
            self,
            Self {
                name: self.name.clone(),
                ..empty()
            },
        );
        let mut values: HashMap<ValueId, ValueId> = HashMap::new();
        for input in old
            .inputs
            .iter()
            .zip(keep_inputs)
            .filter(|(_, k)| **k)
            .map(|(i, _)| i)
        {
            let def = Def::Input(self.inputs.len());
            let value = self.values.push(Value {
                ty: old.values[input.value].ty.clone(),
                def,
            });
            values.insert(input.value, value);
            self.inputs.push(Input {
                value,
                ..input.clone()
            });
        }
        let mut blocks: HashMap<BlockId, BlockId> = HashMap::new();
        for (id, node) in old.nodes.entries().filter(|(id, _)| keep_nodes[id.index()]) {
            let block = node.block.map(|b| {
                *blocks
                    .entry(b)
                    .or_insert_with(|| self.blocks.push(old.blocks[b].clone()))
            });
            self.copy_node(&old, id, block, &mut values);
        }
        let follow = |value: ValueId| values.get(&value).copied().unwrap_or(value);
        for block in &mut self.blocks {
            (block.input, block.output) = (follow(block.input), follow(block.output));
        }
        self.outputs = old
            .outputs
            .iter()
            .map(|o| Output {
                value: follow(o.value),
                ..o.clone()
            })
            .collect();
    }

    fn copy_node(
        &mut self,
        old: &Self,
        id: NodeId,
        block: Option<BlockId>,
        values: &mut HashMap<ValueId, ValueId>,
    ) {
        let node = &old.nodes[id];
        let new_id = self.nodes.next_id();
        let inputs = node.inputs.iter().map(|operand| match operand {
            Operand::Value(v) => Operand::Value(values.get(v).copied().unwrap_or(*v)),
            weight @ Operand::Weight(_) => *weight,
        });
        let inputs = inputs.collect();
        let mut outputs = Vec::new();
        for (slot, &value) in node.outputs.iter().enumerate() {
            let copy = self.values.push(Value {
                ty: old.values[value].ty.clone(),
                def: Def::Node(new_id, slot),
            });
            values.insert(value, copy);
            outputs.push(copy);
        }
        self.nodes.push(Node {
            op: node.op.clone(),
            inputs,
            outputs,
            block,
        });
    }

    pub(crate) fn missing(&self, value: String) -> IrError {
        IrError::Missing {
            graph: self.name.clone(),
            value,
        }
    }

    fn edit_error(&self, problem: String) -> IrError {
        IrError::Edit {
            graph: self.name.clone(),
            problem,
        }
    }
}

fn empty() -> Graph {
    Graph {
        name: String::new(),
        nodes: IndexVec::new(),
        values: IndexVec::new(),
        blocks: IndexVec::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
    }
}
