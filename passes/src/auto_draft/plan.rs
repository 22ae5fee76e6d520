//! Which drafts are worth measuring: those on the frontier of sensitivity and cost, by predicted
//! speedup.
//!
//! FIT bounds the divergence that an action causes, so that acceptance falls as
//! `exp(-sqrt(sum of s^2 FIT))` where s gauges an action: bits and removal lie differently far from
//! the small perturbations that FIT is exact for, and the gauges are measured.

use dlc_ir::{BlockId, Graph, WeightTable};
use dlc_methods::speculation::{CostTable, DraftCosts, best_gamma};

use super::costs::{block_cost, cost_of};
use super::recipe::{Action, Recipe};
use super::sensitivity::Sensitivity;
use crate::quantize::{Matrix, coded_matrices, matrices};

/// Longest draft that is reckoned with.
const MOST_TOKENS: usize = 16;

/// Everything that a draft is judged by, but for its acceptance.
pub(super) struct Planner<'a> {
    sensitivity: &'a Sensitivity,
    costs: &'a DraftCosts,
    /// Costs of the actions on each block, and on the head.
    steps: Vec<[f64; 4]>,
    /// Bytes that the draft has for itself, by action, of each block and of the head.
    bytes: Vec<[f64; 4]>,
    attention: Vec<bool>,
    /// Bits of the codes that the target has of each block, and of the head.
    coded: Vec<Option<usize>>,
    target_bytes: f64,
    head_bytes: f64,
}

/// What decoding with a draft should gain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outlook {
    /// A step of the draft in target steps.
    pub cost: f64,
    pub draft_tokens: usize,
    pub speedup: f64,
    /// Bytes of target and draft together, in those of the target.
    pub memory: f64,
}

impl Outlook {
    /// The same draft, if a step costs `cost` and the target's passes `verify`.
    pub fn at_cost(self, cost: f64, acceptance: f64, verify: &[(usize, f64)]) -> Self {
        let table = CostTable {
            draft: cost,
            verify: verify.to_vec(),
        };
        let (draft_tokens, speedup) = best_gamma(acceptance, cost, |k| table.pass(k), MOST_TOKENS);
        Self {
            cost,
            draft_tokens,
            speedup,
            ..self
        }
    }
}

impl<'a> Planner<'a> {
    /// `floats` is the target without codes, and its weights.
    pub fn new(
        target: &Graph,
        weights: &WeightTable,
        (floats, float_weights): (&Graph, &WeightTable),
        sensitivity: &'a Sensitivity,
        costs: &'a DraftCosts,
        group_size: usize,
    ) -> Self {
        let matrices = matrices(floats, float_weights);
        let numbers = |of: &dyn Fn(&Matrix) -> bool| -> f64 {
            matrices
                .iter()
                .filter(|m| of(m))
                .map(|m| float_weights[m.weight].elements() as f64)
                .sum()
        };
        let blocks: Vec<f64> = target
            .blocks()
            .map(|(id, _)| numbers(&|m| m.block == Some(id) && !m.is_head))
            .collect();
        let head = numbers(&|m| m.is_head);
        let steps = target
            .blocks()
            .map(|(_, block)| Action::ALL.map(|action| block_cost(costs, block.kind, action)));
        let bytes = |n: &f64| {
            Action::ALL.map(|action| {
                action.bits().map_or(0.0, |bits| {
                    n * (bits as f64 / 8.0 + 4.0 / group_size as f64)
                })
            })
        };
        let used = target
            .weights()
            .into_iter()
            .map(|id| weights[id].bytes() as f64);
        let codes = coded_matrices(target);
        let bits = |of: &dyn Fn(&Matrix) -> bool| {
            let found = codes.iter().filter(|(matrix, _)| of(matrix));
            found.map(|(_, format)| format.bits).min()
        };
        let of_block = |(id, _): (BlockId, _)| bits(&|m| m.block == Some(id) && !m.is_head);
        let head_bits = bits(&|m| m.is_head);
        let coded = target.blocks().map(of_block).chain([head_bits]).collect();
        Self {
            sensitivity,
            costs,
            steps: steps
                .chain([Action::ALL.map(|action| cost_of(&costs.head, action))])
                .collect(),
            bytes: blocks.iter().chain([&head]).map(bytes).collect(),
            attention: target
                .blocks()
                .map(|(_, b)| b.kind.has_attention())
                .collect(),
            target_bytes: used.sum(),
            head_bytes: head * head_bits.unwrap_or(32) as f64 / 8.0,
            coded,
        }
    }

    /// Whether an action does anything to a block, or to the head, the last: codes stay where it
    /// would need as many bits.
    fn acts(&self, unit: usize, action: Action) -> bool {
        match (action.bits(), self.coded.get(unit)) {
            (Some(bits), Some(&Some(coded))) => bits < coded,
            _ => true,
        }
    }

    /// The same action for everything that it does something to.
    pub fn all(&self, action: Action) -> Recipe {
        let blocks = self.attention.len();
        let at = |unit: usize| {
            if self.acts(unit, action) {
                action
            } else {
                Action::Keep
            }
        };
        Recipe {
            blocks: (0..blocks).map(at).collect(),
            head: at(blocks),
        }
    }

    /// Drops the tenth of the blocks that matters least and keeps the rest: what removal is gauged
    /// by.
    pub fn some_dropped(&self) -> Recipe {
        let blocks = self.attention.len();
        let fit = |i: &usize| self.sensitivity[*i][Action::Drop as usize];
        let mut order: Vec<usize> = (0..blocks).collect();
        order.sort_by(|a, b| fit(a).total_cmp(&fit(b)));
        let mut recipe = Recipe::all(blocks, Action::Keep);
        for &i in order.iter().take(blocks.div_ceil(10)) {
            recipe.blocks[i] = Action::Drop;
        }
        recipe
    }

    /// FIT of each action, summed over what it is done to.
    pub fn perturbation(&self, recipe: &Recipe) -> [f64; 4] {
        let mut sums = [0.0; 4];
        for (action, row) in recipe
            .blocks
            .iter()
            .chain([&recipe.head])
            .zip(self.sensitivity)
        {
            sums[*action as usize] += row[*action as usize];
        }
        sums
    }

    /// The acceptance that the gauges lead to.
    pub fn acceptance(&self, recipe: &Recipe, gauges: &[f64; 4]) -> f64 {
        let square: f64 = self
            .perturbation(recipe)
            .iter()
            .zip(gauges)
            .map(|(fit, gauge)| gauge * gauge * fit)
            .sum();
        (-square.sqrt()).exp()
    }

    /// What a draft with a head over the share `head` of the vocabulary gains at this acceptance.
    pub fn outlook(&self, recipe: &Recipe, head: f64, acceptance: f64) -> Outlook {
        let actions = || {
            recipe
                .blocks
                .iter()
                .chain([&recipe.head])
                .map(|action| *action as usize)
        };
        let (blocks, last) = (self.attention.len(), recipe.head as usize);
        let layers: f64 = actions()
            .zip(&self.steps)
            .take(blocks)
            .map(|(action, row)| row[action])
            .sum();
        let cost = self.costs.fixed + layers + head * self.steps[blocks][last];
        let own: f64 = actions()
            .zip(&self.bytes)
            .take(blocks)
            .map(|(action, row)| row[action])
            .sum();
        // A whole head is the target's own; some rows of it are a copy.
        let copied = if recipe.head == Action::Keep && head < 1.0 {
            self.head_bytes
        } else {
            self.bytes[blocks][last]
        };
        let memory = 1.0 + (own + head * copied) / self.target_bytes;
        Outlook {
            cost,
            draft_tokens: 0,
            speedup: 1.0,
            memory,
        }
        .at_cost(cost, acceptance, &self.costs.verify)
    }

    /// The recipes that are best for some price of a target step, the gentlest first.
    pub fn frontier(&self, gauges: &[f64; 4]) -> Vec<Recipe> {
        let loss = |unit: usize, action: Action| {
            gauges[action as usize].powi(2) * self.sensitivity[unit][action as usize]
        };
        let cost = |unit: usize, action: Action| self.steps[unit][action as usize];
        let head = self.attention.len();
        let allowed = |unit: usize| {
            Action::ALL
                .into_iter()
                .filter(move |action| unit != head || *action != Action::Drop)
                .filter(move |action| self.acts(unit, *action))
        };
        let pairs = (0..=head).flat_map(|unit| {
            allowed(unit).flat_map(move |a| allowed(unit).map(move |b| (unit, a, b)))
        });
        let mut prices: Vec<f64> = pairs
            .map(|(u, a, b)| (loss(u, b) - loss(u, a)) / (cost(u, a) - cost(u, b)))
            .filter(|p| *p > 0.0)
            .collect();
        prices.retain(|price| price.is_finite());
        prices.sort_by(f64::total_cmp);
        prices.dedup();
        let best = |unit: usize, price: f64| {
            let worth = |action: &Action| loss(unit, *action) + price * cost(unit, *action);
            allowed(unit)
                .min_by(|a, b| worth(a).total_cmp(&worth(b)))
                .unwrap_or(Action::Keep)
        };
        let recipe = |price: f64| Recipe {
            blocks: (0..head).map(|unit| best(unit, price)).collect(),
            head: best(head, price),
        };
        let mut recipes: Vec<Recipe> = prices
            .iter()
            .map(|price| recipe(price * (1.0 + 1e-9)))
            .filter(|r| self.can_run(r))
            .collect();
        recipes.dedup();
        recipes
    }

    /// A draft without attention keeps no cache, and one without any change is the target.
    pub fn can_run(&self, recipe: &Recipe) -> bool {
        let attends = recipe
            .blocks
            .iter()
            .zip(&self.attention)
            .any(|(action, attention)| *attention && *action != Action::Drop);
        attends
            && recipe
                .blocks
                .iter()
                .chain([&recipe.head])
                .any(|action| *action != Action::Keep)
    }
}
