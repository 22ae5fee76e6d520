//! The graphs of a schedule: one for each pattern of steps, in which reused values are inputs and
//! remembered ones outputs.

use std::collections::HashMap;

use dlc_ir::schedule::memory;
use dlc_ir::{
    BlockId, Def, Dim, Evaluation, Graph, GraphBuilder, IrError, NodeId, Op, Operand, Reuse,
    ValueId, ValueType, WeightTable,
};

use super::close::Step;
use super::net::SkipNet;

/// The graphs of some steps, and which one each step runs.
#[derive(Debug)]
pub(crate) struct Subnets {
    pub graphs: Vec<Graph>,
    pub evaluations: Vec<Evaluation>,
}

/// What makes two steps run the same graph: what they read, how many earlier values of each, and
/// what they remember.
type Pattern = (Vec<(usize, usize)>, Vec<usize>);

fn pattern(step: &Step) -> Pattern {
    (
        step.reads
            .iter()
            .map(|r| (r.value, r.events.len()))
            .collect(),
        step.remembers.clone(),
    )
}

/// How many graphs the steps need.
pub(crate) fn patterns(steps: &[Step]) -> usize {
    let mut all: Vec<Pattern> = steps.iter().map(pattern).collect();
    all.sort();
    all.dedup();
    all.len()
}

/// Builds a graph for each pattern, called `step.N` in the order in which they first run.
pub(crate) fn build(net: &SkipNet<'_>, reuse: Reuse, steps: &[Step]) -> Result<Subnets, IrError> {
    let mut subnets = Subnets {
        graphs: Vec::new(),
        evaluations: Vec::new(),
    };
    let mut known: HashMap<Pattern, String> = HashMap::new();
    for (number, step) in steps.iter().enumerate() {
        let pattern = pattern(step);
        let graph = if step.is_whole() {
            net.graph.name.clone()
        } else if let Some(name) = known.get(&pattern) {
            name.clone()
        } else {
            let name = format!("step.{}", subnets.graphs.len());
            subnets.graphs.push(subnet(net, reuse, step, &name)?);
            known.insert(pattern, name.clone());
            name
        };
        let forecast = if reuse == Reuse::Hold {
            vec![]
        } else {
            step.reads
                .iter()
                .flat_map(|r| Reuse::weights(&r.events, number))
                .collect()
        };
        subnets.evaluations.push(Evaluation { graph, forecast });
    }
    Ok(subnets)
}

fn subnet(net: &SkipNet<'_>, reuse: Reuse, step: &Step, name: &str) -> Result<Graph, IrError> {
    let live = step.live(net);
    let mut copy = Copier::new(net.graph, net.weights, name);
    for (at, input) in net.graph.inputs().iter().enumerate() {
        let read = net.graph.nodes().any(|(id, node)| {
            live.nodes.contains(&id) && node.inputs.contains(&Operand::Value(input.value))
        });
        if read || net.graph.outputs().iter().any(|o| o.value == input.value) {
            copy.input(at)?;
        }
    }
    let mut memories = Vec::new();
    for read in &step.reads {
        let value = &net.values[read.value];
        let ty = net.graph.value(value.value).ty.clone();
        for age in 0..read.events.len() {
            memories.push((
                value.value,
                copy.builder
                    .input(&memory::input(&value.name, age), ty.clone(), None)?,
            ));
        }
    }
    if reuse != Reuse::Hold && !memories.is_empty() {
        forecast(&mut copy, &memories)?;
    } else {
        for (value, remembered) in memories {
            copy.put(value, remembered.into());
        }
    }
    for (id, _) in net.graph.nodes().filter(|(id, _)| live.nodes.contains(id)) {
        copy.node(id, |block| {
            live_end(net.graph, block).is_some_and(|n| live.nodes.contains(&n))
        })?;
    }
    let remembered = step
        .remembers
        .iter()
        .map(|&v| (memory::output(&net.values[v].name), net.values[v].value));
    copy.finish(remembered.collect())
}

/// The node that makes a block's output.
pub(super) fn live_end(graph: &Graph, block: BlockId) -> Option<NodeId> {
    if let Def::Node(node, _) = graph.value(graph.block(block).output).def {
        Some(node)
    } else {
        None
    }
}

/// Sums of remembered values, each times its entry of the input `forecast`.
fn forecast(copy: &mut Copier<'_>, memories: &[(ValueId, ValueId)]) -> Result<(), IrError> {
    let Some(&(_, first)) = memories.first() else {
        return Ok(());
    };
    let ty = ValueType::new(
        copy.builder.value_type(first).dtype,
        [memories.len().into()],
    );
    let weights = copy.builder.input(memory::FORECAST, ty, None)?;
    for (at, &(value, remembered)) in memories.iter().enumerate() {
        let weight = copy.builder.add(
            Op::Slice {
                axis: 0,
                start: at,
                len: 1,
            },
            [weights.into()],
        )?;
        let mut sum = copy
            .builder
            .add(Op::Mul, [remembered.into(), weight.into()])?;
        if let Some(&Operand::Value(so_far)) = copy.made.get(&value) {
            sum = copy.builder.add(Op::Add, [so_far.into(), sum.into()])?;
        }
        copy.put(value, sum.into());
    }
    Ok(())
}

/// Copies nodes of a graph into one under construction.
pub(crate) struct Copier<'m> {
    pub source: &'m Graph,
    pub builder: GraphBuilder<&'m WeightTable>,
    pub made: HashMap<ValueId, Operand>,
    /// What stands before the names of blocks.
    pub prefix: String,
    /// A symbol of the source, and the axis that it is here.
    axis: Option<(String, Dim)>,
    open: Option<BlockId>,
}

impl<'m> Copier<'m> {
    pub fn new(source: &'m Graph, weights: &'m WeightTable, name: &str) -> Self {
        Self {
            source,
            builder: GraphBuilder::new(name, weights),
            made: HashMap::new(),
            prefix: String::new(),
            axis: None,
            open: None,
        }
    }

    /// With `dim` in the place of every `symbol` of the source.
    pub fn with_axis(self, symbol: &str, dim: Dim) -> Self {
        Self {
            axis: Some((symbol.to_owned(), dim)),
            ..self
        }
    }

    /// What stands for a value from now on.
    pub fn put(&mut self, value: ValueId, operand: Operand) {
        self.made.insert(value, operand);
    }

    /// Takes over the input at a position.
    pub fn input(&mut self, at: usize) -> Result<ValueId, IrError> {
        let input = &self.source.inputs()[at];
        let mut ty = self.source.value(input.value).ty.clone();
        if let Some((symbol, dim)) = &self.axis {
            ty.shape = ty.shape.substitute(symbol, dim);
        }
        let copy = self.builder.input(&input.name, ty, input.cache)?;
        self.put(input.value, copy.into());
        Ok(copy)
    }

    /// Copies a node, and its block as far as the block's input is there and `is_whole` says that
    /// its output will be.
    pub fn node(&mut self, id: NodeId, is_whole: impl Fn(BlockId) -> bool) -> Result<(), IrError> {
        let node = self.source.node(id);
        let block = node
            .block
            .filter(|b| self.made.contains_key(&self.source.block(*b).input) && is_whole(*b));
        if block != self.open {
            self.close_block()?;
            if let Some(Operand::Value(input)) =
                block.and_then(|b| self.made.get(&self.source.block(b).input).copied())
            {
                let data = block.map(|b| self.source.block(b));
                data.map_or(Ok(()), |b| {
                    self.builder.open_block(
                        &format!("{}{}", self.prefix, b.name),
                        b.kind,
                        b.layer,
                        input,
                    )
                })?;
                self.open = block;
            }
        }
        let inputs = node.inputs.iter().map(|o| match o {
            Operand::Value(v) => self
                .made
                .get(v)
                .copied()
                .ok_or_else(|| missing(self.source, *v)),
            weight @ Operand::Weight(_) => Ok(*weight),
        });
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
        let op = self.axis.as_ref().map_or_else(
            || node.op.clone(),
            |(symbol, dim)| node.op.substitute(symbol, dim),
        );
        let outputs = self.builder.add_node(op, inputs)?;
        for (value, copy) in node.outputs.iter().zip(outputs) {
            // What stands in a value's place already, from memory, stays there.
            self.made.entry(*value).or_insert(copy.into());
        }
        Ok(())
    }

    /// Closes the block that the last node was in.
    pub fn close_block(&mut self) -> Result<(), IrError> {
        let Some(block) = self.open.take() else {
            return Ok(());
        };
        let output = self.source.block(block).output;
        match self.made.get(&output) {
            Some(Operand::Value(value)) => self.builder.close_block(*value),
            _ => Err(missing(self.source, output)),
        }
    }

    /// The graph with the source's outputs, and further ones for values of the source.
    pub fn finish(mut self, more: Vec<(String, ValueId)>) -> Result<Graph, IrError> {
        self.close_block()?;
        let own = self
            .source
            .outputs()
            .iter()
            .map(|o| (o.name.clone(), o.value));
        for (name, value) in own.chain(more) {
            match self.made.get(&value) {
                Some(Operand::Value(copy)) => self.builder.output(&name, *copy, None),
                _ => return Err(missing(self.source, value)),
            }
        }
        self.builder.finish()
    }
}

fn missing(graph: &Graph, value: ValueId) -> IrError {
    IrError::Missing {
        graph: graph.name.clone(),
        value: format!("%{}", &graph.value_names()[value]),
    }
}
