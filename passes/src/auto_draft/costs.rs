//! What a step of any draft of a model costs: measured on a few drafts of it, and put together from
//! there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dlc_ir::{BlockKind, Graph, Module};
use dlc_methods::speculation::{ByFormat, DraftCosts, StepCosts};

use super::recipe::{Action, Format, Recipe, vocabulary};
use super::{NAME, unsupported};
use crate::context::PassContext;
use crate::error::PassError;
use crate::sources::Machine;

/// The number for what an action leaves; 0 for nothing.
pub(super) fn cost_of(costs: &ByFormat, action: Action) -> f64 {
    match action {
        Action::Keep => costs.whole,
        Action::Int8 => costs.int8,
        Action::Int4 => costs.int4,
        Action::Drop => 0.0,
    }
}

fn cost_at(costs: &mut ByFormat, action: Action) -> &mut f64 {
    match action {
        Action::Int8 => &mut costs.int8,
        Action::Int4 => &mut costs.int4,
        Action::Keep | Action::Drop => &mut costs.whole,
    }
}

/// What a block as it is costs.
pub(crate) fn whole_block(costs: &DraftCosts, kind: BlockKind) -> f64 {
    block_cost(costs, kind, Action::Keep)
}

/// What an action leaves of a block's cost.
pub(super) fn block_cost(costs: &DraftCosts, kind: BlockKind, action: Action) -> f64 {
    costs
        .blocks
        .get(kind.name())
        .map_or(0.0, |costs| cost_of(costs, action))
}

/// Share of the vocabulary that the probe with a trimmed head keeps.
const TRIMMED: f64 = 0.125;

/// What steps of drafts cost, and where that is known from: `file`, or `machine`, which is timed once.
///
/// # Errors
/// [`PassError::Costs`] for a file of another model, [`PassError::Interrupted`], and as
/// [`draft_costs`].
pub(crate) fn known_costs(
    file: Option<&Path>,
    module: &Module,
    target: &Graph,
    machine: &dyn Machine,
    cx: &PassContext<'_>,
) -> Result<(DraftCosts, String), PassError> {
    if let Some(file) = file {
        let (costs, place) = (machine.read_costs(file)?, file.display().to_string());
        if let Some((_, block)) = target
            .blocks()
            .find(|(_, block)| !costs.blocks.contains_key(block.kind.name()))
        {
            let problem = format!(
                "holds no costs of blocks of kind {}: was it measured on another model?",
                block.kind.name()
            );
            return Err(PassError::Costs { place, problem });
        }
        return Ok((costs, format!("of {place}")));
    }
    let name = machine.name()?;
    let costs = timing(cx, || {
        cx.cached(
            &costs_key(module, target, &name),
            DraftCosts::is_sound,
            || draft_costs(module, machine),
        )
    })?;
    Ok((costs, format!("measured on {name}")))
}

/// The name under which the costs of a model's drafts are kept: they go by its shapes, not by its
/// weights.
pub fn costs_key(module: &Module, target: &Graph, machine: &str) -> String {
    let cost = dlc_ir::cost::cost(target, &module.weights);
    let (layers, model) = (target.blocks().count(), &module.model);
    format!(
        "{NAME} costs 3 {machine} {} blocks={layers} hidden={} vocabulary={} parameters={} bytes={} cache={}",
        model.family,
        model.hidden_size,
        model.vocab_size,
        cost.parameters,
        cost.weight_bytes,
        cost.cache_bytes_per_token
    )
}

/// Reports that steps are timed, which has no steps.
pub(super) fn timing<T>(
    cx: &PassContext<'_>,
    time: impl FnOnce() -> Result<T, PassError>,
) -> Result<T, PassError> {
    cx.progress.update("timing steps", 0, 1);
    let timed = time()?;
    cx.progress.update("timing steps", 1, 1);
    if cx.progress.interrupted() {
        Err(PassError::Interrupted)
    } else {
        Ok(timed)
    }
}

/// Measures the costs of the drafts of `module` on `machine`: in each format all of it, and all but
/// every second block of a kind; and a smaller head.
///
/// # Errors
/// [`PassError::Unsupported`] for a model without layers or head, or one that is in neither f32
/// nor f16; and what the machine says.
pub fn draft_costs(module: &Module, machine: &dyn Machine) -> Result<DraftCosts, PassError> {
    let target = module
        .graph("target")
        .ok_or_else(|| unsupported("the module has no graph `target`"))?;
    let probes = Probes::of(target)?;
    let measured = time(probes.module(module, target)?, machine)?;
    Ok(probes.solve(&measured.steps, measured.verify))
}

/// Refuses a target whose drafts can't be timed.
pub(super) fn check(target: &Graph) -> Result<(), PassError> {
    Probes::of(target).map(drop)
}

/// Times a step of each graph after the first, once what they don't use is gone.
pub(super) fn time(mut drafts: Module, machine: &dyn Machine) -> Result<StepCosts, PassError> {
    for graph in &mut drafts.graphs {
        graph.remove_dead();
        graph.remove_unused_inputs();
        graph.renumber_caches();
    }
    drafts.remove_unused_weights();
    let measured = machine.step_costs(&drafts)?;
    if measured.steps.len() + 1 == drafts.graphs.len() && measured.is_sound() {
        Ok(measured)
    } else {
        Err(unsupported(
            "the machine timed other graphs than it was given",
        ))
    }
}

/// The kinds of blocks, and which blocks of each kind a probe lacks.
struct Probes {
    blocks: usize,
    kinds: Vec<Kind>,
}

struct Kind {
    of: BlockKind,
    all: usize,
    dropped: BTreeSet<usize>,
}

impl Probes {
    fn of(target: &Graph) -> Result<Self, PassError> {
        let mut kinds: BTreeMap<BlockKind, Vec<usize>> = BTreeMap::new();
        for (at, (_, block)) in target.blocks().enumerate() {
            kinds.entry(block.kind).or_default().push(at);
        }
        let kind = |(kind, all): (BlockKind, Vec<usize>)| Kind {
            of: kind,
            all: all.len(),
            dropped: all.iter().skip(1).step_by(2).copied().collect(),
        };
        let kinds: Vec<Kind> = kinds.into_iter().map(kind).collect();
        if kinds.is_empty() || kinds.iter().any(|kind| kind.dropped.is_empty()) {
            return Err(unsupported(
                "the target has fewer than two layers: there is nothing to make cheaper",
            ));
        }
        Ok(Self {
            blocks: target.blocks().count(),
            kinds,
        })
    }

    /// The target and all probes: of each format the whole, and without blocks of each kind; last,
    /// one with a smaller head.
    fn module(&self, module: &Module, target: &Graph) -> Result<Module, PassError> {
        let format = Format {
            group_size: 32,
            refined: false,
        };
        let mut probes = Module {
            graphs: vec![target.clone()],
            ..module.clone()
        };
        // A draft that the module has may be quantised under the same names.
        probes.remove_unused_weights();
        let target = &probes.graphs[0].clone();
        let mut add = |recipe: &Recipe, kept: Option<&[u32]>| -> Result<(), PassError> {
            let graph = recipe.draft(
                &format!("probe.{}", probes.graphs.len()),
                target,
                &mut probes.weights,
                &format,
                kept,
            )?;
            probes.graphs.push(graph);
            Ok(())
        };
        for action in Action::FORMATS {
            if action != Action::Keep {
                add(&Recipe::all(self.blocks, action), None)?;
            }
            for kind in &self.kinds {
                let without = |at| {
                    if kind.dropped.contains(&at) {
                        Action::Drop
                    } else {
                        action
                    }
                };
                add(
                    &Recipe {
                        blocks: (0..self.blocks).map(without).collect(),
                        head: action,
                    },
                    None,
                )?;
            }
        }
        let kept: Vec<u32> = (0..(vocabulary(target)? as f64 * TRIMMED).ceil() as u32).collect();
        add(&Recipe::all(self.blocks, Action::Int8), Some(&kept))?;
        Ok(probes)
    }

    /// The parts of the steps that were measured.
    fn solve(&self, steps: &[f64], verify: Vec<(usize, f64)>) -> DraftCosts {
        let mut steps = steps.iter().copied();
        let mut next = || steps.next().unwrap_or_default();
        let mut blocks = vec![ByFormat::default(); self.kinds.len()];
        let (mut whole, mut rest) = (ByFormat::default(), ByFormat::default());
        for action in Action::FORMATS {
            let all = if action == Action::Keep { 1.0 } else { next() };
            let parts: Vec<f64> = self
                .kinds
                .iter()
                .map(|kind| ((all - next()) / kind.dropped.len() as f64).max(0.0))
                .collect();
            let sum: f64 = self
                .kinds
                .iter()
                .zip(&parts)
                .map(|(kind, part)| kind.all as f64 * part)
                .sum();
            // Timing noise may make the parts larger than the whole.
            let share = if sum > all { all / sum } else { 1.0 };
            for (block, part) in blocks.iter_mut().zip(parts) {
                *cost_at(block, action) = part * share;
            }
            *cost_at(&mut whole, action) = all;
            *cost_at(&mut rest, action) = (all - sum * share).max(0.0);
        }
        let head = ((whole.int8 - next()) / (1.0 - TRIMMED)).clamp(0.0, rest.int8);
        let fixed = (rest.int8 - head).min(rest.whole).min(rest.int4);
        let head = ByFormat {
            whole: rest.whole - fixed,
            int8: rest.int8 - fixed,
            int4: rest.int4 - fixed,
        };
        let name = |kind: &Kind| kind.of.name().to_owned();
        DraftCosts {
            blocks: self.kinds.iter().map(name).zip(blocks).collect(),
            head,
            fixed,
            verify,
        }
    }
}
