//! A denoiser as units that can be skipped, and the values that are remembered of them.

use std::collections::{BTreeMap, HashSet};

use dlc_ir::cost::{image_sizes, macs};
use dlc_ir::{
    BlockId, Def, Diffusion, Granularity, Graph, NodeId, Op, Operand, ValueId, WeightTable,
};
use dlc_methods::diffusion::DenoiserInput;

use crate::error::PassError;

/// Blocks that are computed or reused as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkipUnit {
    /// Name: `layers.3`, `layers.3.attn`, `down.0`.
    pub name: String,
    /// Its blocks, in the order of the graph.
    pub blocks: Vec<BlockId>,
}

/// A value that is remembered where its unit is computed, and taken from memory where it is reused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SkipValue {
    /// Its name in the boundary names: that of the block that makes it.
    pub name: String,
    pub value: ValueId,
    pub unit: usize,
}

/// What a denoiser is fed.
#[derive(Debug, Clone)]
pub(crate) struct Inputs {
    pub image: ValueId,
    pub timestep: ValueId,
    pub labels: Option<ValueId>,
    /// What else the image is conditioned on, by name: a text, sizes.
    pub conditioning: Vec<(String, ValueId)>,
}

impl Inputs {
    /// Those of `graph`, by their names.
    ///
    /// # Errors
    /// [`PassError::Unsupported`] for a graph that is no denoiser.
    pub fn find(pass: &'static str, graph: &Graph) -> Result<Self, PassError> {
        let (mut image, mut timestep, mut labels, mut conditioning) =
            (None, None, None, Vec::new());
        for input in graph.inputs() {
            match DenoiserInput::of(&input.name) {
                DenoiserInput::Image => image = Some(input.value),
                DenoiserInput::Timestep => timestep = Some(input.value),
                DenoiserInput::Class => labels = Some(input.value),
                DenoiserInput::Conditioning => {
                    conditioning.push((input.name.clone(), input.value));
                }
            }
        }
        let problem = "the target isn't fed latents and a timestep".to_owned();
        let (image, timestep) = image
            .zip(timestep)
            .ok_or(PassError::Unsupported { pass, problem })?;
        Ok(Self {
            image,
            timestep,
            labels,
            conditioning,
        })
    }

    /// Those of another graph, in which `to` says what each value is.
    pub fn map(self, to: impl Fn(ValueId) -> ValueId) -> Self {
        let conditioning = self.conditioning.into_iter();
        Self {
            image: to(self.image),
            timestep: to(self.timestep),
            labels: self.labels.map(&to),
            conditioning: conditioning
                .map(|(name, value)| (name, to(value)))
                .collect(),
        }
    }
}

/// A graph with its units.
#[derive(Debug)]
pub(crate) struct SkipNet<'m> {
    pub graph: &'m Graph,
    pub weights: &'m WeightTable,
    pub granularity: Granularity,
    pub units: Vec<SkipUnit>,
    pub values: Vec<SkipValue>,
    /// Multiply-adds of every node.
    macs: Vec<u64>,
}

/// What is alive when some values are taken from memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Live {
    pub nodes: HashSet<NodeId>,
    /// The values of the cut that are read, by index.
    pub read: Vec<usize>,
}

impl<'m> SkipNet<'m> {
    /// The units of `graph`.
    ///
    /// # Errors
    /// [`PassError::Unsupported`] for a graph without blocks.
    pub fn new(
        pass: &'static str,
        graph: &'m Graph,
        weights: &'m WeightTable,
        diffusion: &Diffusion,
        granularity: Granularity,
    ) -> Result<Self, PassError> {
        let units = units(graph, granularity);
        let unsupported = |problem: &str| PassError::Unsupported {
            pass,
            problem: problem.into(),
        };
        if units.is_empty() {
            return Err(unsupported("the target has no blocks to skip"));
        }
        let sizes = image_sizes(Some(diffusion));
        let costs: Option<Vec<u64>> = graph
            .nodes()
            .map(|(_, node)| macs(graph, weights, node, &sizes))
            .collect();
        let costs = costs.ok_or_else(|| unsupported("the target is larger than dlc can count"))?;
        let mut net = Self {
            graph,
            weights,
            granularity,
            units,
            values: Vec::new(),
            macs: costs,
        };
        for unit in 0..net.units.len() {
            let found = net.values_of(unit);
            net.values.extend(found);
        }
        Ok(net)
    }

    /// What the unit's nodes make and others read; of a branch that is added to its residual, the
    /// branch in the sum's place.
    fn values_of(&self, unit: usize) -> Vec<SkipValue> {
        let mut found: Vec<(BlockId, ValueId)> = Vec::new();
        let blocks = &self.units[unit].blocks;
        for &block in blocks {
            let branch = if self.granularity == Granularity::Branch {
                branch(self.graph, block)
            } else {
                None
            };
            let sum = branch.map(|_| self.graph.block(block).output);
            let made = self
                .graph
                .block_nodes(block)
                .flat_map(|(_, node)| node.outputs.iter().copied());
            let outside = made.filter(|v| Some(*v) != sum && self.is_read_outside(*v, blocks));
            found.extend(
                branch
                    .into_iter()
                    .chain(outside.filter(|v| Some(*v) != branch))
                    .map(|value| (block, value)),
            );
        }
        let mut numbers: BTreeMap<BlockId, usize> = BTreeMap::new();
        let name = |(block, value): (BlockId, ValueId)| {
            let number = numbers.entry(block).or_default();
            *number += 1;
            let name = &self.graph.block(block).name;
            let name = if *number == 1 {
                name.clone()
            } else {
                format!("{name}.{number}")
            };
            SkipValue { name, value, unit }
        };
        found.into_iter().map(name).collect()
    }

    fn is_read_outside(&self, value: ValueId, blocks: &[BlockId]) -> bool {
        let by_node = self.graph.nodes().any(|(_, node)| {
            node.block.is_none_or(|b| !blocks.contains(&b))
                && node.inputs.contains(&Operand::Value(value))
        });
        by_node || self.graph.outputs().iter().any(|o| o.value == value)
    }

    /// What must be computed for the outputs and for the values `wanted`, when the values `cut`
    /// come from memory. Both by index.
    pub fn live(&self, wanted: &[usize], cut: &[bool]) -> Live {
        let by_value: BTreeMap<ValueId, usize> = self
            .values
            .iter()
            .enumerate()
            .filter(|(i, _)| cut[*i])
            .map(|(i, v)| (v.value, i))
            .collect();
        let roots = self.graph.outputs().iter().map(|o| o.value);
        let mut pending: Vec<ValueId> = roots
            .chain(wanted.iter().map(|&i| self.values[i].value))
            .collect();
        let mut live = Live::default();
        let mut seen = HashSet::new();
        while let Some(value) = pending.pop() {
            if !seen.insert(value) {
                continue;
            }
            if let Some(&i) = by_value.get(&value) {
                live.read.push(i);
            } else if let Def::Node(node, _) = self.graph.value(value).def
                && live.nodes.insert(node)
            {
                pending.extend(self.graph.node(node).inputs.iter().filter_map(|o| {
                    if let Operand::Value(v) = o {
                        Some(*v)
                    } else {
                        None
                    }
                }));
            }
        }
        live.read.sort_unstable();
        live
    }

    /// Whether the node that makes the value is alive.
    pub fn is_made(&self, value: usize, live: &Live) -> bool {
        matches!(self.graph.value(self.values[value].value).def, Def::Node(node, _) if live.nodes.contains(&node))
    }

    /// Multiply-adds of the nodes that are alive.
    pub fn macs(&self, live: &Live) -> u64 {
        let alive = self
            .graph
            .nodes()
            .zip(&self.macs)
            .filter(|((id, _), _)| live.nodes.contains(id));
        alive.map(|(_, macs)| macs).sum()
    }

    /// Multiply-adds of the whole graph.
    pub fn full_macs(&self) -> u64 {
        self.macs(&self.live(&[], &vec![false; self.values.len()]))
    }

    /// For each unit the share of multiply-adds that reusing it alone frees, what only it reads
    /// included.
    pub fn freed(&self) -> Vec<f64> {
        let full = self.full_macs();
        let without = |unit: usize| {
            let cut: Vec<bool> = self.values.iter().map(|v| v.unit == unit).collect();
            full - self.macs(&self.live(&[], &cut))
        };
        (0..self.units.len())
            .map(|unit| without(unit) as f64 / full.max(1) as f64)
            .collect()
    }

    /// The units' names.
    pub fn names(&self) -> Vec<String> {
        self.units.iter().map(|u| u.name.clone()).collect()
    }
}

/// The units of a graph: its blocks, or those of a layer or stage together.
fn units(graph: &Graph, granularity: Granularity) -> Vec<SkipUnit> {
    let mut units: Vec<(u32, SkipUnit)> = Vec::new();
    for (id, block) in graph.blocks() {
        match units.last_mut() {
            Some((layer, unit)) if granularity == Granularity::Layer && *layer == block.layer => {
                unit.blocks.push(id);
            }
            _ => {
                let name = if granularity == Granularity::Layer {
                    stage(&block.name)
                } else {
                    block.name.clone()
                };
                units.push((
                    block.layer,
                    SkipUnit {
                        name,
                        blocks: vec![id],
                    },
                ));
            }
        }
    }
    units.into_iter().map(|(_, unit)| unit).collect()
}

/// The layer or stage that a block's name begins with: `layers.3` of `layers.3.attn`, `mid` of
/// `mid.resnet.0`.
fn stage(block: &str) -> String {
    let mut parts = block.split('.');
    let first = parts.next().unwrap_or_default();
    match parts.next() {
        Some(number) if number.bytes().all(|b| b.is_ascii_digit()) => format!("{first}.{number}"),
        _ => first.to_owned(),
    }
}

/// What a block adds to its residual, if its last node is that sum.
fn branch(graph: &Graph, block: BlockId) -> Option<ValueId> {
    let block_data = graph.block(block);
    let Def::Node(node, _) = graph.value(block_data.output).def else {
        return None;
    };
    let node = graph.node(node);
    let inside = |value: ValueId| matches!(graph.value(value).def, Def::Node(maker, _) if graph.node(maker).block == Some(block));
    match (&node.op, &node.inputs[..]) {
        (Op::Add, &[Operand::Value(a), Operand::Value(b)]) if node.block == Some(block) => {
            let other = if a == block_data.input {
                Some(b)
            } else {
                Some(a).filter(|_| b == block_data.input)
            };
            other.filter(|v| inside(*v) && graph.value(*v).ty == graph.value(block_data.output).ty)
        }
        _ => None,
    }
}
