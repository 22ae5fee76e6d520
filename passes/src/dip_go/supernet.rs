//! The SuperNet of DiP-GO (arXiv 2410.16942, section 3.2) for one evaluation: the target in which
//! every value that may be reused is `backup + gate * (fresh - backup)`, the backup being an input.

use std::collections::HashMap;

use dlc_eval::{Array, Gradients, Segment, Values, Wanted};
use dlc_ir::{DType, Diffusion, Dim, Factor, Graph, IrError, Op, ValueId, ValueType, WeightTable};

use crate::error::PassError;
use crate::sampling::Feed;
use crate::skip::{Copier, Inputs, SkipNet};

/// Name of the graph.
const SUPERNET: &str = "supernet";

/// The graph of one evaluation with its gates.
#[derive(Debug)]
pub(super) struct SuperNet {
    pub graph: Graph,
    inputs: Inputs,
    output: ValueId,
    /// For each value that may be reused: its backup, and what others read in its place.
    backups: Vec<ValueId>,
    mixed: Vec<ValueId>,
    /// For each unit its gate, `[1]`.
    gates: Vec<ValueId>,
    /// The unit of each value.
    unit_of: Vec<usize>,
}

/// What one evaluation is fed.
#[derive(Debug, Clone)]
pub(super) struct GatedFeed<'a> {
    pub network: Feed<'a>,
    /// For each unit how much of its fresh values is taken, 0 to 1.
    pub gates: &'a [f32],
    /// The backup of each value; zeros where there is none yet.
    pub backups: Vec<Option<Array>>,
}

/// What one evaluation gives.
#[derive(Debug)]
pub(super) struct NetOutput {
    pub output: Array,
    pub mixed: Vec<Array>,
}

/// Gradients of one evaluation.
#[derive(Debug)]
pub(super) struct Adjoints {
    pub latents: Array,
    pub backups: Vec<Array>,
    pub gates: Vec<f64>,
}

impl SuperNet {
    pub fn new(
        pass: &'static str,
        net: &SkipNet<'_>,
        diffusion: &Diffusion,
    ) -> Result<Self, PassError> {
        let mut copy = Copier::new(net.graph, net.weights, SUPERNET);
        let inputs = Inputs::find(pass, net.graph)?;
        let mut copies: HashMap<ValueId, ValueId> = HashMap::new();
        for (at, input) in net.graph.inputs().iter().enumerate() {
            copies.insert(input.value, copy.input(at)?);
        }
        let mut backups = Vec::new();
        for (at, value) in net.values.iter().enumerate() {
            backups.push(copy.builder.input(
                &format!("backup.{at}"),
                net.graph.value(value.value).ty.clone(),
                None,
            )?);
        }
        let mut gates = Vec::new();
        for unit in 0..net.units.len() {
            let dtype = net
                .values
                .iter()
                .find(|v| v.unit == unit)
                .map_or(DType::F32, |v| net.graph.value(v.value).ty.dtype);
            gates.push(copy.builder.input(
                &format!("gate.{unit}"),
                ValueType::new(dtype, [Dim::from(1)]),
                None,
            )?);
        }
        let mut mixed = vec![None; net.values.len()];
        for (id, node) in net.graph.nodes() {
            copy.node(id, |_| false)?;
            for (at, value) in net
                .values
                .iter()
                .enumerate()
                .filter(|(_, v)| node.outputs.contains(&v.value))
            {
                mixed[at] = Some(mix(&mut copy, value.value, backups[at], gates[value.unit])?);
            }
        }
        let unsupported = |problem: &str| PassError::Unsupported {
            pass,
            problem: problem.into(),
        };
        let mixed = mixed
            .into_iter()
            .collect::<Option<Vec<ValueId>>>()
            .ok_or_else(|| missing("a value that is reused"))?;
        let inputs = inputs.map(|value| copies[&value]);
        if inputs.labels.is_some() != diffusion.classes.is_some() {
            return Err(unsupported(
                "the target's classes aren't those of its configuration",
            ));
        }
        let graph = copy.finish(vec![])?;
        let output = graph
            .outputs()
            .first()
            .map(|o| o.value)
            .ok_or_else(|| unsupported("the target has no output"))?;
        let unit_of = net.values.iter().map(|v| v.unit).collect();
        Ok(Self {
            graph,
            inputs,
            output,
            backups,
            mixed,
            gates,
            unit_of,
        })
    }

    /// All nodes with their weights, ready to run.
    pub fn load(&self, weights: &WeightTable) -> Result<Segment<'_>, PassError> {
        Ok(Segment::new(
            &self.graph,
            weights,
            self.graph.nodes().map(|(id, _)| id).collect(),
        )?)
    }

    fn known(&self, feed: &GatedFeed<'_>) -> Result<Values, PassError> {
        let shape = feed.network.latents.shape();
        let mut known = feed.network.values(&self.inputs)?;
        let part = |factor: &Factor| {
            let axis = [Diffusion::HEIGHT, Diffusion::WIDTH]
                .iter()
                .position(|symbol| **factor.symbol() == **symbol)?;
            let side = *shape.get(axis + 2)?;
            factor.rounding().divide(side, factor.divisor())
        };
        for (value, backup) in self.backups.iter().zip(&feed.backups) {
            let zeros = || {
                let dims = &self.graph.value(*value).ty.shape.0;
                let length = |dim: &Dim| dim.evaluate(part).unwrap_or(shape[0]);
                let shape: Vec<usize> = dims.iter().map(length).collect();
                let n = shape.iter().product();
                Array::f32(shape, vec![0.0; n])
            };
            known.insert(*value, backup.clone().map_or_else(zeros, Ok)?);
        }
        for (gate, level) in self.gates.iter().zip(feed.gates) {
            known.insert(*gate, Array::f32([1], vec![*level])?);
        }
        Ok(known)
    }

    /// Runs one evaluation.
    pub fn forward(
        &self,
        segment: &Segment<'_>,
        feed: &GatedFeed<'_>,
    ) -> Result<NetOutput, PassError> {
        let wanted: Vec<ValueId> = self.mixed.iter().copied().chain([self.output]).collect();
        let mut made = segment.forward(&self.known(feed)?, &wanted)?;
        let mut take = |value: ValueId| {
            made.remove(&value)
                .ok_or_else(|| missing(&format!("value {value}")))
        };
        Ok(NetOutput {
            output: take(self.output)?,
            mixed: self
                .mixed
                .iter()
                .map(|v| take(*v))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Runs one evaluation again and takes the gradients of its output and of what is remembered
    /// back to what it was fed.
    pub fn backward(
        &self,
        segment: &Segment<'_>,
        feed: &GatedFeed<'_>,
        output: Array,
        mixed: Vec<(usize, Array)>,
    ) -> Result<Adjoints, PassError> {
        let seeds: Vec<(ValueId, Array)> = [(self.output, output)]
            .into_iter()
            .chain(mixed.into_iter().map(|(at, seed)| (self.mixed[at], seed)))
            .collect();
        let values = [self.inputs.image]
            .into_iter()
            .chain(self.backups.iter().copied())
            .chain(self.gates.iter().copied())
            .collect();
        let mut gradients = segment.vjp(
            &self.known(feed)?,
            &seeds,
            &Wanted {
                values,
                weights: vec![],
            },
        )?;
        let gates = self.gates.iter().map(|gate| {
            gradient(&mut gradients, *gate).map(|g| {
                g.as_f32()
                    .map_or(0.0, |g| g.iter().map(|x| f64::from(*x)).sum())
            })
        });
        let gates = gates.collect::<Result<_, PassError>>()?;
        let backups = self
            .backups
            .iter()
            .map(|v| gradient(&mut gradients, *v))
            .collect::<Result<_, _>>()?;
        Ok(Adjoints {
            latents: gradient(&mut gradients, self.inputs.image)?,
            backups,
            gates,
        })
    }

    /// The unit of each value that may be reused.
    pub fn unit_of(&self) -> &[usize] {
        &self.unit_of
    }
}

fn gradient(gradients: &mut Gradients, value: ValueId) -> Result<Array, PassError> {
    let found = gradients.values.remove(&value);
    Ok(found.ok_or_else(|| missing(&format!("the gradient of value {value}")))?)
}

fn missing(value: &str) -> IrError {
    IrError::Missing {
        graph: SUPERNET.into(),
        value: value.into(),
    }
}

/// `backup + gate * (fresh - backup)`, which everybody reads instead of `fresh` from now on.
fn mix(
    copy: &mut Copier<'_>,
    fresh: ValueId,
    backup: ValueId,
    gate: ValueId,
) -> Result<ValueId, IrError> {
    let Some(made) = copy.made.get(&fresh).copied() else {
        return Err(missing("a value to mix"));
    };
    let less = copy
        .builder
        .add(Op::Scale { factor: -1.0 }, [backup.into()])?;
    let change = copy.builder.add(Op::Add, [made, less.into()])?;
    let gated = copy.builder.add(Op::Mul, [change.into(), gate.into()])?;
    let mixed = copy.builder.add(Op::Add, [backup.into(), gated.into()])?;
    copy.put(fresh, mixed.into());
    Ok(mixed)
}
