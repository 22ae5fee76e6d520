//! What a step of any draft of a model costs: measured on a few drafts of it, and put together from there.

use dlc_ir::Module;
use dlc_ir::speculation::CostTable;
use serde::{Deserialize, Serialize};

use super::recipe::{Action, Format, Recipe, trimmed, vocabulary};
use super::unsupported;
use crate::context::Machine;
use crate::error::PassError;

/// Costs of the parts of a draft's step on one machine, in target steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DraftCosts {
    /// A layer, its two halves by their shares of the numbers.
    pub layer: ByFormat,
    /// The head over the whole vocabulary; over fewer tokens in proportion.
    pub head: ByFormat,
    /// What is left without layers and head.
    pub fixed: f64,
    /// v(k): a target pass over k tokens, as (k, v(k)) by ascending k, the first being (1, 1).
    pub verify: Vec<(usize, f64)>,
}

/// A number for each format of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
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

    fn all(&self) -> [f64; 3] {
        [self.f32, self.int8, self.int4]
    }
}

impl DraftCosts {
    /// Whether the numbers can be costs at all: a file may hold anything.
    pub fn is_sound(&self) -> bool {
        let parts = self.layer.all().into_iter().chain(self.head.all()).chain([self.fixed]);
        parts.clone().all(|x| x.is_finite() && x >= 0.0) && parts.sum::<f64>() > 0.0 && self.table(1.0).is_sound()
    }

    /// The costs of decoding with a draft whose step costs `draft`.
    pub(super) fn table(&self, draft: f64) -> CostTable {
        CostTable { draft: draft.max(f64::MIN_POSITIVE), verify: self.verify.clone() }
    }
}

/// Share of the vocabulary that the probe with a trimmed head keeps.
const TRIMMED: f64 = 0.125;

/// Measures the costs of the drafts of `module` on `machine`: six drafts are timed.
///
/// # Errors
/// [`PassError::Unsupported`] for a model without layers or head, or one that isn't in f32; and what the machine says.
pub fn draft_costs(module: &Module, machine: &dyn Machine) -> Result<DraftCosts, PassError> {
    let target = module.graph("target").ok_or_else(|| unsupported("the module has no graph `target`"))?;
    let layers: Vec<u32> = target.blocks().map(|(_, b)| b.layer).collect();
    let dropped = |layer: u32| layer % 2 == 1;
    let half =
        |action: Action| Recipe { blocks: layers.iter().map(|&layer| if dropped(layer) { Action::Drop } else { action }).collect(), head: action };
    let mut distinct = layers.clone();
    distinct.dedup();
    let (all, gone) = (distinct.len() as f64, distinct.iter().filter(|layer| dropped(**layer)).count() as f64);
    if gone == 0.0 {
        return Err(unsupported("the target has fewer than two layers: there is nothing to make cheaper"));
    }

    let format = Format { block: 32, refined: false };
    let mut probes = Module { graphs: vec![target.clone()], ..module.clone() };
    let recipes = [Action::Keep, Action::Int8, Action::Int4].into_iter().flat_map(|action| [Recipe::all(layers.len(), action), half(action)]).skip(1);
    for (number, recipe) in recipes.enumerate() {
        let graph = recipe.draft(&format!("probe.{number}"), target, &mut probes.weights, &format)?;
        probes.graphs.push(graph);
    }
    let kept: Vec<u32> = (0..(vocabulary(target)? as f64 * TRIMMED).ceil() as u32).collect();
    let whole = Recipe::all(layers.len(), Action::Int8).draft("probe.trimmed", target, &mut probes.weights, &format)?;
    let graph = trimmed(whole, &mut probes.weights, &kept)?;
    probes.graphs.push(graph);
    for graph in &mut probes.graphs {
        graph.remove_dead();
        graph.remove_unused_inputs();
        graph.renumber_caches();
    }
    probes.remove_unused_weights();

    let measured = machine.step_costs(&probes)?;
    let &[f32_half, int8, int8_half, int4, int4_half, int8_trimmed] = &measured.steps[..] else {
        return Err(unsupported("the machine timed other graphs than it was given"));
    };
    let layer = ByFormat { f32: (1.0 - f32_half) / gone, int8: (int8 - int8_half) / gone, int4: (int4 - int4_half) / gone }.at_least_nothing();
    let rest = ByFormat { f32: 1.0 - all * layer.f32, int8: int8 - all * layer.int8, int4: int4 - all * layer.int4 };
    let fixed = (rest.int8 - (int8 - int8_trimmed) / (1.0 - TRIMMED)).max(0.0);
    let head = ByFormat { f32: rest.f32 - fixed, int8: rest.int8 - fixed, int4: rest.int4 - fixed }.at_least_nothing();
    Ok(DraftCosts { layer, head, fixed, verify: measured.verify })
}

impl ByFormat {
    /// Timing noise may make a small cost negative.
    fn at_least_nothing(self) -> Self {
        Self { f32: self.f32.max(0.0), int8: self.int8.max(0.0), int4: self.int4.max(0.0) }
    }
}
