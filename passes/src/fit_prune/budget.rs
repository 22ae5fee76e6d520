//! Chooses the units to drop by what they cost: those of the lowest scores together, so that a step
//! of the draft takes a share of the target's (`KnapSpec`, arXiv 2602.20217, with this pass's scores).

use dlc_ir::{Graph, Module};

use super::units::Unit;
use super::{FitPrune, options_error, unsupported};
use crate::auto_draft::{known_costs, whole_block};
use crate::context::PassContext;
use crate::error::PassError;

/// Parts that the wanted saving is counted in.
const TICKS: usize = 2000;

/// What goes, and what that saves.
#[derive(Debug)]
pub(super) struct Choice {
    /// Positions of the units, ascending.
    pub dropped: Vec<usize>,
    /// A step of what is left, in target steps.
    pub step: f64,
    /// Where the costs are from.
    pub origin: String,
}

impl FitPrune<'_> {
    /// The candidates to drop so that a step takes the share `step` of the target's.
    pub(super) fn within_step(
        &self,
        step: f64,
        (module, target): (&Module, &Graph),
        (units, candidates): (&[Unit], &[usize]),
        scores: &[f64],
        cx: &PassContext<'_>,
    ) -> Result<Choice, PassError> {
        let machine = self.sources.machine.ok_or_else(|| {
            unsupported(
                "no bundle is made, so there is no machine to ask what a step costs; give drop=N",
            )
        })?;
        let file = self.options.costs.as_deref();
        let (costs, origin) = known_costs(file, module, target, machine, cx)?;
        let saving = |unit: &Unit| -> f64 {
            let kinds = unit.blocks.iter().map(|&block| target.block(block).kind);
            kinds.map(|kind| whole_block(&costs, kind)).sum()
        };
        let savings: Vec<f64> = units.iter().map(saving).collect();
        let dropped = cheapest(scores, &savings, candidates, 1.0 - step).ok_or_else(|| {
            let all: f64 = candidates.iter().map(|&unit| savings[unit]).sum();
            options_error(format!(
                "without all that may go a step still takes {:.2} of the target's, not {step}; ask for step={:.2} or more",
                1.0 - all,
                ((1.0 - all) * 100.0).ceil() / 100.0
            ))
        })?;
        let step = 1.0 - dropped.iter().map(|&unit| savings[unit]).sum::<f64>();
        Ok(Choice {
            dropped,
            step,
            origin,
        })
    }
}

/// The candidates with the lowest sum of scores that save `wanted` together, in ascending order; None
/// if all of them save less. A 0/1 knapsack: `best[t]` is the lowest sum that saves `t` ticks or more.
fn cheapest(
    scores: &[f64],
    savings: &[f64],
    candidates: &[usize],
    wanted: f64,
) -> Option<Vec<usize>> {
    let ticks = |saving: f64| (saving / wanted * TICKS as f64) as usize;
    let mut best = vec![f64::INFINITY; TICKS + 1];
    best[0] = 0.0;
    let mut takes = vec![vec![false; TICKS + 1]; candidates.len()];
    for (takes, &unit) in takes.iter_mut().zip(candidates) {
        let saved = ticks(savings[unit]);
        for wanted in (1..=TICKS).rev() {
            let with = best[wanted.saturating_sub(saved)] + scores[unit];
            if saved > 0 && with < best[wanted] {
                best[wanted] = with;
                takes[wanted] = true;
            }
        }
    }
    if best[TICKS].is_infinite() {
        return None;
    }
    let (mut left, mut dropped) = (TICKS, Vec::new());
    for (takes, &unit) in takes.iter().zip(candidates).rev() {
        if takes[left] {
            dropped.push(unit);
            left = left.saturating_sub(ticks(savings[unit]));
        }
    }
    dropped.reverse();
    Some(dropped)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::cheapest;

    #[test]
    fn cheap_units_go_only_where_they_save_something() {
        // The lowest score saves least: two others are cheaper together than it and one more.
        let (scores, savings) = ([1.0, 2.0, 2.5, 9.0], [0.05, 0.2, 0.2, 0.5]);
        let all = [0, 1, 2, 3];
        assert_eq!(cheapest(&scores, &savings, &all, 0.4), Some(vec![1, 2]));
        assert_eq!(cheapest(&scores, &savings, &all, 0.44), Some(vec![0, 1, 2]));
        assert_eq!(cheapest(&scores, &savings, &all, 0.89), Some(vec![1, 2, 3]));
        assert_eq!(cheapest(&scores, &savings, &[0, 1], 0.4), None);
    }

    proptest! {
        #[test]
        fn no_choice_is_cheaper(units in prop::collection::vec((0.01..1.0_f64, 0..8_u8), 1..9)) {
            let scores: Vec<f64> = units.iter().map(|unit| unit.0).collect();
            // Whole ticks of a saving of 1.
            let savings: Vec<f64> = units.iter().map(|unit| f64::from(unit.1) / 8.0).collect();
            let all: Vec<usize> = (0..units.len()).collect();
            let sum = |of: &[f64], set: usize| -> f64 {
                all.iter().filter(|&&i| set >> i & 1 == 1).map(|&i| of[i]).sum()
            };
            let enough = (0..1 << all.len()).filter(|&set| sum(&savings, set) >= 1.0);
            let best = enough.map(|set| sum(&scores, set)).min_by(f64::total_cmp);
            let found = cheapest(&scores, &savings, &all, 1.0);
            let set = found.map(|found| found.iter().map(|i| 1 << i).sum());
            prop_assert!(set.is_none_or(|set| sum(&savings, set) >= 1.0));
            let found = set.map(|set| sum(&scores, set));
            prop_assert_eq!(found.is_some(), best.is_some());
            prop_assert!((found.unwrap_or(0.0) - best.unwrap_or(0.0)).abs() < 1e-9);
        }
    }
}
