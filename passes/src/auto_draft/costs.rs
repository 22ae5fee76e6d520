//! What a step of any draft of a model costs: measured on a few drafts of it, and put together from
//! there.

use std::collections::{BTreeMap, BTreeSet};

use dlc_ir::speculation::are_pass_costs;
use dlc_ir::{BlockKind, Graph, Module};
use serde::{Deserialize, Serialize};

use super::recipe::{Action, Format, Recipe, vocabulary};
use super::search::time;
use super::unsupported;
use crate::context::Machine;
use crate::error::PassError;

/// Costs of the parts of a draft's step on one machine, in target steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DraftCosts {
    /// A block of each kind.
    pub blocks: BTreeMap<String, ByFormat>,
    /// The head over the whole vocabulary; over fewer tokens in proportion.
    pub head: ByFormat,
    /// What is left without layers and head.
    pub fixed: f64,
    /// v(k): a target pass over k tokens, as (k, v(k)) by ascending k, the first being (1, 1).
    pub verify: Vec<(usize, f64)>,
}

/// A number for each format of a matrix.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ByFormat {
    /// Whole numbers.
    pub f32: f64,
    /// 8 bits.
    pub int8: f64,
    /// 4 bits.
    pub int4: f64,
}

impl ByFormat {
    /// The number for what an action leaves; 0 for nothing.
    pub(super) fn of(&self, action: Action) -> f64 {
        match action {
            Action::Keep => self.f32,
            Action::Int8 => self.int8,
            Action::Int4 => self.int4,
            Action::Drop => 0.0,
        }
    }

    fn at(&mut self, action: Action) -> &mut f64 {
        match action {
            Action::Int8 => &mut self.int8,
            Action::Int4 => &mut self.int4,
            Action::Keep | Action::Drop => &mut self.f32,
        }
    }

    fn all(&self) -> [f64; 3] {
        [self.f32, self.int8, self.int4]
    }
}

impl DraftCosts {
    /// Whether the numbers can be costs at all: a file may hold anything.
    pub fn is_sound(&self) -> bool {
        let parts = self
            .blocks
            .values()
            .chain([&self.head])
            .flat_map(ByFormat::all)
            .chain([self.fixed]);
        parts.clone().all(|x| x.is_finite() && x >= 0.0)
            && parts.sum::<f64>() > 0.0
            && are_pass_costs(&self.verify)
    }

    /// What an action leaves of a block's cost.
    pub(super) fn block(&self, kind: BlockKind, action: Action) -> f64 {
        self.blocks
            .get(kind.name())
            .map_or(0.0, |costs| costs.of(action))
    }
}

/// Share of the vocabulary that the probe with a trimmed head keeps.
const TRIMMED: f64 = 0.125;

/// Measures the costs of the drafts of `module` on `machine`: in each format all of it, and all but
/// every second block of a kind; and a smaller head.
///
/// # Errors
/// [`PassError::Unsupported`] for a model without layers or head, or one that isn't in f32; and
/// what the machine says.
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
            block: 32,
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
                *block.at(action) = part * share;
            }
            *whole.at(action) = all;
            *rest.at(action) = (all - sum * share).max(0.0);
        }
        let head = ((whole.int8 - next()) / (1.0 - TRIMMED)).clamp(0.0, rest.int8);
        let fixed = (rest.int8 - head).min(rest.f32).min(rest.int4);
        let head = ByFormat {
            f32: rest.f32 - fixed,
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
