//! The whole sampler as one graph: the network once for each evaluation, the scheduler's sums
//! between them, guidance included.
//!
//! A value that is reused is an operand that an earlier evaluation made, or a sum of such; nothing
//! is an input or output only because it is remembered. What neither the image nor the noise level
//! changes, as keys and values of a text, is computed once.

mod terms;

use std::collections::{HashMap, HashSet, VecDeque};

use dlc_ir::schedule::{SAMPLER_INPUT, SAMPLER_OUTPUT};
use dlc_ir::{
    BlockId, DType, Def, Diffusion, Dim, Expr, Graph, IrError, Node, NodeId, Op, Operand, Reuse,
    Shape, ValueId, ValueType, WeightId, WeightTable, sym,
};
use dlc_methods::diffusion::{Arithmetic, SamplingPlan, Trajectory, guided};

use self::terms::{cast, zeros};
use super::Driver;
use super::close::Step;
use super::net::{Inputs, SkipNet};
use super::options::{SamplerOptions, is_guided};
use super::subnet::{Copier, live_end};
use crate::error::PassError;

/// Name of the graph.
pub(crate) const SAMPLER: &str = "sampler";
/// The weight that holds the noise levels.
const TIMESTEPS: &str = "sampler.timesteps";
const BATCH: &str = "batch";

/// Takes `latents [batch, channels, height, width]`, noise of unit variance, and what the target is
/// conditioned on beside image and noise level; gives the sample, `out_latents`. With guidance
/// every image has two rows of its conditioning, first all those with it and then all those
/// without, so that the first axis of such inputs is `2*batch`. Returns the graph and the weights
/// with the noise levels among them.
pub(crate) fn unroll(
    pass: &'static str,
    net: &SkipNet<'_>,
    driver: &Driver<'_>,
    sampler: &SamplerOptions,
    steps: &[Step],
) -> Result<(Graph, WeightTable), PassError> {
    let mut weights = net.weights.clone();
    let inputs = Inputs::find(pass, net.graph)?;
    let timesteps = timesteps(
        &mut weights,
        net.graph.value(inputs.timestep).ty.dtype,
        &driver.plan,
    )?;
    let graph = Unroller::start(net, driver, sampler, &weights, inputs, timesteps)?.run(steps)?;
    Ok((graph, weights))
}

fn timesteps(
    weights: &mut WeightTable,
    dtype: DType,
    plan: &SamplingPlan,
) -> Result<WeightId, IrError> {
    let bytes = plan
        .steps
        .iter()
        .flat_map(|step| (step.timestep as f32).to_le_bytes())
        .collect();
    weights.add(
        TIMESTEPS,
        &[plan.steps.len()],
        Expr::constant(bytes, DType::F32).cast(dtype),
    )
}

struct Unroller<'m> {
    net: &'m SkipNet<'m>,
    driver: &'m Driver<'m>,
    sampler: &'m SamplerOptions,
    copy: Copier<'m>,
    inputs: Inputs,
    /// A zero for each row of the network's input.
    zeros: ValueId,
    timesteps: WeightId,
    /// What is the same in every evaluation.
    steady: HashMap<ValueId, Operand>,
    trajectory: Trajectory<'m, ValueId>,
    /// For each value of the net what earlier evaluations made of it, the last one first.
    remembered: Vec<VecDeque<Operand>>,
}

impl<'m> Unroller<'m> {
    fn start(
        net: &'m SkipNet<'m>,
        driver: &'m Driver<'m>,
        sampler: &'m SamplerOptions,
        weights: &'m WeightTable,
        inputs: Inputs,
        timesteps: WeightId,
    ) -> Result<Self, IrError> {
        let guided = is_guided(driver.guidance);
        let rows = if guided {
            sym(BATCH).plus(&sym(BATCH))
        } else {
            sym(BATCH)
        };
        let mut copy = Copier::new(net.graph, weights, SAMPLER).with_axis(BATCH, rows);
        let noise = ValueType::new(DType::F32, image_dims(net, &inputs));
        let noise = copy.builder.input(SAMPLER_INPUT, noise, None)?;
        let conditions = net
            .graph
            .inputs()
            .iter()
            .enumerate()
            .filter(|(_, i)| i.value != inputs.image && i.value != inputs.timestep);
        for (at, _) in conditions {
            copy.input(at)?;
        }
        let trajectory = Trajectory::start(&driver.plan, &mut copy, &noise, None)?;
        let doubled = if guided {
            copy.builder
                .add(Op::Concat { axis: 0 }, [noise.into(), noise.into()])?
        } else {
            noise
        };
        let zeros = zeros(
            &mut copy,
            doubled,
            net.graph.value(inputs.timestep).ty.dtype,
        )?;
        let steady = copy.made.clone();
        Ok(Self {
            net,
            driver,
            sampler,
            copy,
            inputs,
            zeros,
            timesteps,
            steady,
            trajectory,
            remembered: vec![VecDeque::new(); net.values.len()],
        })
    }

    fn run(mut self, steps: &[Step]) -> Result<Graph, IrError> {
        let live: Vec<HashSet<NodeId>> =
            steps.iter().map(|step| step.live(self.net).nodes).collect();
        self.compute_steady(&live)?;
        for (number, (step, live)) in steps.iter().zip(&live).enumerate() {
            let output = self.evaluate(number, step, live)?;
            let due = &self.driver.plan.steps[number];
            self.trajectory
                .advance(&mut self.copy, due, &output, None)?;
        }
        let Some(&sample) = self.trajectory.latents() else {
            return Err(missing("the sample after the last step"));
        };
        self.copy.builder.output(SAMPLER_OUTPUT, sample, None);
        self.copy.builder.finish()
    }

    /// Copies the nodes that depend on neither image nor noise level, as far as some step needs
    /// them.
    fn compute_steady(&mut self, live: &[HashSet<NodeId>]) -> Result<(), IrError> {
        for (id, node) in self
            .net
            .graph
            .nodes()
            .filter(|(id, _)| live.iter().any(|step| step.contains(id)))
        {
            let is_steady = |operand: &Operand| matches!(operand, Operand::Value(v) if self.copy.made.contains_key(v));
            if node
                .inputs
                .iter()
                .all(|o| matches!(o, Operand::Weight(_)) || is_steady(o))
            {
                self.copy.node(id, |_| false)?;
            }
        }
        self.steady.clone_from(&self.copy.made);
        Ok(())
    }

    /// One evaluation of the network: its guided output in single precision, without a learned
    /// variance.
    fn evaluate(
        &mut self,
        number: usize,
        step: &Step,
        live: &HashSet<NodeId>,
    ) -> Result<ValueId, IrError> {
        let net = self.net;
        self.copy.made.clone_from(&self.steady);
        self.copy.prefix = format!("step.{number}.");
        let (image, timestep) = (self.image(number)?, self.timestep(number)?);
        self.copy.put(self.inputs.image, image.into());
        self.copy.put(self.inputs.timestep, timestep.into());
        for read in &step.reads {
            let operand = self.recall(read.value, &read.events, number)?;
            self.copy.put(net.values[read.value].value, operand);
        }
        let open: HashSet<BlockId> = step
            .remembers
            .iter()
            .filter_map(|&v| opened(net.graph, net.values[v].value))
            .collect();
        let is_steady = |node: &Node| {
            node.outputs
                .iter()
                .any(|value| self.steady.contains_key(value))
        };
        for (id, _) in net
            .graph
            .nodes()
            .filter(|(id, node)| live.contains(id) && !is_steady(node))
        {
            self.copy.node(id, |block| {
                !open.contains(&block)
                    && live_end(net.graph, block).is_some_and(|n| live.contains(&n))
            })?;
        }
        self.copy.close_block()?;
        for &v in &step.remembers {
            let made = self.copy.made.get(&net.values[v].value).copied();
            self.remembered[v].push_front(made.ok_or_else(|| missing("a value to remember"))?);
        }
        let output = net
            .graph
            .outputs()
            .first()
            .and_then(|o| self.copy.made.get(&o.value).copied());
        let Some(Operand::Value(output)) = output else {
            return Err(missing("the network's output"));
        };
        self.guided(output)
    }

    /// The latents as the network is fed them.
    fn image(&mut self, number: usize) -> Result<ValueId, IrError> {
        let due = &self.driver.plan.steps[number];
        let mut image = self.trajectory.input(&mut self.copy, due)?;
        if is_guided(self.driver.guidance) {
            image = self
                .copy
                .builder
                .add(Op::Concat { axis: 0 }, [image.into(), image.into()])?;
        }
        cast(
            &mut self.copy,
            image,
            self.net.graph.value(self.inputs.image).ty.dtype,
        )
    }

    /// The noise level, once for each row.
    fn timestep(&mut self, number: usize) -> Result<ValueId, IrError> {
        let level = self.copy.builder.add(
            Op::Slice {
                axis: 0,
                start: number,
                len: 1,
            },
            [self.timesteps.into()],
        )?;
        self.copy
            .builder
            .add(Op::Add, [self.zeros.into(), level.into()])
    }

    /// What stands in for a value that isn't computed: the last one, or a forecast from the
    /// evaluations `events`.
    fn recall(
        &mut self,
        value: usize,
        events: &[usize],
        number: usize,
    ) -> Result<Operand, IrError> {
        let before = &self.remembered[value];
        if self.sampler.reuse == Reuse::Hold {
            return before
                .front()
                .copied()
                .ok_or_else(|| missing("a value to reuse"));
        }
        let mut values = Vec::new();
        for operand in before {
            match operand {
                Operand::Value(value) => values.push(*value),
                Operand::Weight(_) => return Err(missing("a value to forecast from")),
            }
        }
        let weights = Reuse::weights(events, number);
        let terms = weights.into_iter().zip(&values);
        self.copy.sum_of(terms, None).map(Into::into)
    }

    /// The guided output in the channels of the latents: the first half of its rows is conditional.
    fn guided(&mut self, output: ValueId) -> Result<ValueId, IrError> {
        let Diffusion {
            channels,
            out_channels,
            ..
        } = *self.driver.diffusion;
        let builder = &mut self.copy.builder;
        let output = if out_channels > channels {
            builder.add(
                Op::Slice {
                    axis: 1,
                    start: 0,
                    len: channels,
                },
                [output.into()],
            )?
        } else {
            output
        };
        let output = cast(&mut self.copy, output, DType::F32)?;
        if !is_guided(self.driver.guidance) {
            return Ok(output);
        }
        let image = image_dims(self.net, &self.inputs);
        let shape = Shape([&[2.into()], &image[..]].concat());
        let builder = &mut self.copy.builder;
        let halves = builder.add(Op::Reshape { shape }, [output.into()])?;
        let mut half = |start: usize| {
            let half = builder.add(
                Op::Slice {
                    axis: 0,
                    start,
                    len: 1,
                },
                [halves.into()],
            )?;
            builder.add(
                Op::Reshape {
                    shape: Shape(image.clone()),
                },
                [half.into()],
            )
        };
        let (with, without) = (half(0)?, half(1)?);
        guided(&mut self.copy, &with, &without, self.driver.guidance)
    }
}

/// The axes of the images that the network is fed: of latents, too.
fn image_dims(net: &SkipNet<'_>, inputs: &Inputs) -> Vec<Dim> {
    net.graph.value(inputs.image).ty.shape.0.clone()
}

/// The block that stops being one when a later evaluation reads `value`, which is made inside it
/// and isn't its output.
fn opened(graph: &Graph, value: ValueId) -> Option<BlockId> {
    let Def::Node(node, _) = graph.value(value).def else {
        return None;
    };
    graph
        .node(node)
        .block
        .filter(|block| graph.block(*block).output != value)
}

fn missing(value: &str) -> IrError {
    IrError::Missing {
        graph: SAMPLER.into(),
        value: value.into(),
    }
}
