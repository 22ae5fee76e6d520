//! What speculative decoding should gain, before it is run: for the pass that chooses a draft, and
//! for the loop that uses it.
//!
//! The expected number of tokens of a round and the speedup follow Leviathan, Kalman and Matias, *Fast
//! Inference from Transformers via Speculative Decoding* (ICML 2023), equation 1 and theorem 3.8,
//! with the verification's own cost kept: on a CPU a pass over several tokens isn't free. Never
//! measures anything.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What passes cost, in units of one target pass over one token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostTable {
    /// c: a draft pass over one token.
    pub draft: f64,
    /// v(k): a target pass over k tokens, as (k, v(k)) by ascending k, the first being (1, 1).
    pub verify: Vec<(usize, f64)>,
}

impl Default for CostTable {
    /// A draft of half the target, and the passes of a 135M model in f32 on two cores.
    fn default() -> Self {
        Self {
            draft: 0.5,
            verify: vec![(1, 1.0), (4, 1.23), (6, 1.37), (8, 1.53), (16, 2.03)],
        }
    }
}

impl CostTable {
    /// Whether the numbers can be costs at all: a file may hold anything.
    pub fn is_sound(&self) -> bool {
        is_cost(self.draft) && are_pass_costs(&self.verify)
    }

    /// v(k), on straight lines through the table, the last one going on; never less than v of fewer
    /// tokens.
    pub fn pass(&self, k: usize) -> f64 {
        let at = self
            .verify
            .iter()
            .position(|&(tokens, _)| tokens >= k)
            .unwrap_or(self.verify.len().saturating_sub(1));
        match (
            at.checked_sub(1).and_then(|before| self.verify.get(before)),
            self.verify.get(at),
        ) {
            (Some(&(k0, v0)), Some(&(k1, v1))) => {
                v0 + (v1 - v0).max(0.0) * (k as f64 - k0 as f64) / (k1 as f64 - k0 as f64)
            }
            (None, Some(&(_, v))) => v,
            _ => 1.0,
        }
    }
}

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
    /// Numbers in the model's element type.
    pub whole: f64,
    /// 8 bits.
    pub int8: f64,
    /// 4 bits.
    pub int4: f64,
}

impl ByFormat {
    /// The numbers of all formats.
    pub fn all(&self) -> [f64; 3] {
        [self.whole, self.int8, self.int4]
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
}

fn is_cost(x: f64) -> bool {
    x.is_finite() && x > 0.0
}

/// Whether `verify`, as in [`CostTable::verify`], can be costs of passes at all.
pub fn are_pass_costs(verify: &[(usize, f64)]) -> bool {
    let ascending = verify.windows(2).all(|pair| pair[0].0 < pair[1].0);
    ascending
        && verify.first().is_some_and(|first| first.0 == 1)
        && verify.iter().all(|&(_, v)| is_cost(v))
}

/// What passes cost, in target passes over one token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepCosts {
    /// A pass of each graph after the target over one token.
    pub steps: Vec<f64>,
    /// v(k): a target pass over k tokens, as (k, v(k)) by ascending k, the first being (1, 1).
    pub verify: Vec<(usize, f64)>,
    /// How far the timings of each step lay apart: the middle half of them, as a share of their
    /// median. Empty, or none, where that isn't known.
    #[serde(default)]
    pub spreads: Vec<Option<f64>>,
}

impl StepCosts {
    /// Whether the numbers can be costs at all.
    pub fn is_sound(&self) -> bool {
        self.steps.iter().all(|step| is_cost(*step)) && are_pass_costs(&self.verify)
    }
}

/// Expected tokens of one round that drafts `gamma` tokens: `(1 - a^(gamma+1)) / (1 - a)`
/// (Leviathan et al., equation 1).
///
/// `acceptance` is the chance that one drafted token is accepted; values outside `0..=1` are
/// clamped.
pub fn expected_tokens(acceptance: f64, gamma: usize) -> f64 {
    let a = acceptance.clamp(0.0, 1.0);
    // The geometric sum itself: exact at a = 1, where the quotient is 0/0.
    (0..=gamma)
        .fold((0.0, 1.0), |(sum, power), _| (sum + power, power * a))
        .0
}

/// Speed relative to plain decoding: [`expected_tokens`] over the cost of a round, `gamma * c + v`,
/// in units of one target step.
///
/// `c` is a draft step's share of a target step, `v` the cost of the target's pass over `gamma + 1`
/// tokens in target steps.
pub fn predicted_speedup(acceptance: f64, gamma: usize, c: f64, v: f64) -> f64 {
    let cost = gamma as f64 * c + v;
    if cost > 0.0 {
        expected_tokens(acceptance, gamma) / cost
    } else {
        0.0
    }
}

/// The `gamma` in `0..=max` with the largest [`predicted_speedup`], and that speedup; 0 is plain
/// decoding.
///
/// `v(k)` is the cost of a pass over `k` tokens in target steps. Ties go to the smaller gamma.
pub fn best_gamma(acceptance: f64, c: f64, v: impl Fn(usize) -> f64, max: usize) -> (usize, f64) {
    (1..=max)
        .map(|gamma| (gamma, predicted_speedup(acceptance, gamma, c, v(gamma + 1))))
        .fold(
            (0, 1.0),
            |best, next| if next.1 > best.1 { next } else { best },
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_lie_on_lines_through_the_table() {
        let table = CostTable {
            draft: 0.5,
            verify: vec![(1, 1.0), (3, 2.0), (5, 2.5)],
        };
        for (k, v) in [(1, 1.0), (2, 1.5), (3, 2.0), (4, 2.25), (5, 2.5), (9, 3.5)] {
            assert!(
                (table.pass(k) - v).abs() < 1e-12,
                "v({k}) = {}",
                table.pass(k)
            );
        }
        assert!(table.is_sound() && CostTable::default().is_sound());
        for verify in [
            vec![],
            vec![(2, 1.0)],
            vec![(1, 1.0), (1, 2.0)],
            vec![(1, f64::NAN)],
        ] {
            assert!(!CostTable { draft: 0.5, verify }.is_sound());
        }
    }

    #[test]
    fn matches_the_published_ceilings_of_chain_drafting() {
        for (c, acceptance, expected) in [(0.5, 0.96, 1.55), (0.3, 0.90, 1.87), (0.3, 0.95, 2.18)] {
            let (_, speedup) = best_gamma(acceptance, c, |_| 1.0, 16);
            assert!(
                (speedup - expected).abs() < 0.02,
                "c={c} a={acceptance}: {speedup}"
            );
        }
    }

    #[test]
    fn a_perfect_draft_yields_every_token() {
        assert!((expected_tokens(1.0, 4) - 5.0).abs() < 1e-12);
    }

    #[test]
    fn a_useless_draft_is_not_used() {
        assert_eq!(best_gamma(0.0, 0.1, |_| 1.0, 8), (0, 1.0));
    }

    #[test]
    fn an_expensive_verification_shortens_the_draft() {
        let cheap = best_gamma(0.8, 0.2, |_| 1.0, 8).0;
        let dear = best_gamma(0.8, 0.2, |k| 1.0 + 0.2 * (k - 1) as f64, 8).0;
        assert!(dear < cheap, "{dear} < {cheap}");
    }
}
