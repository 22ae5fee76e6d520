//! How many tokens to propose: fixed, or what pays by the acceptance measured so far and the
//! draft's own confidence.
//!
//! A round that proposes k tokens costs `k c + v(k + 1)` target steps by the [`CostTable`] and
//! yields `1 + a + a^2 + .. + a^k` tokens; the k with the best quotient is taken, and none if no
//! quotient beats 1, which is plain decoding. Where guesses are looked up, each has its own a: the
//! share of the places at which it followed, times the acceptance of matches as long. While
//! drafting, a token is proposed, and another one drafted, as long as the expected gain is worth
//! its cost at that quotient. What doesn't pay is tried again now and then, out of a budget of a
//! few hundredths of the decoding itself. Nothing here reads a clock, and nothing looks at a token
//! drawn in the same round: the prefix and earlier rounds decide, so the output's distribution
//! stays the target's.

use crate::speculation::{CostTable, Guess, best_gamma};

/// Most proposals of a round.
pub(super) const MOST: usize = 16;
/// Weight of an older judgement against the next one.
const MEMORY: f64 = 0.97;
/// Judgements that the assumption at the start counts for.
const TRUST: f64 = 4.0;
/// Share of the decoding that may be spent on trying a source that doesn't pay.
const TRIAL_SHARE: f64 = 0.02;
/// Rounds over which catching up with the text pays off.
const CATCH_UP_ROUNDS: f64 = 8.0;
/// Acceptance that is assumed of a draft of which nothing is known.
pub(super) const DRAFT_ACCEPTANCE: f64 = 0.8;
/// Upper ends of the classes of confidence, with the acceptance assumed at the start of a draft of
/// which nothing is known.
const CONFIDENCE: [(f32, f64); 6] = [
    (0.3, 0.25),
    (0.5, 0.4),
    (0.7, 0.6),
    (0.85, 0.75),
    (0.95, 0.9),
    (f32::INFINITY, 0.97),
];
/// Longest matches of the classes of lookups, likewise, of guesses that followed every time.
const MATCHES: [(usize, f64); 6] = [
    (1, 0.2),
    (2, 0.35),
    (3, 0.45),
    (6, 0.6),
    (12, 0.75),
    (usize::MAX, 0.85),
];

/// How many tokens a round may propose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DraftLength {
    /// Always this many, if there is room, and so many are found where they are looked up; 0 is
    /// plain decoding.
    Fixed(usize),
    /// As many as pay, by costs and acceptance.
    Adaptive,
}

/// A discounted share of accepted proposals.
#[derive(Debug, Clone, Copy)]
struct Acceptance {
    accepted: f64,
    judged: f64,
}

impl Acceptance {
    fn assumed(share: f64) -> Self {
        Self {
            accepted: share * TRUST,
            judged: TRUST,
        }
    }

    fn learn(&mut self, accepted: bool) {
        self.accepted = self.accepted * MEMORY + f64::from(u8::from(accepted));
        self.judged = self.judged * MEMORY + 1.0;
    }

    fn share(self) -> f64 {
        self.accepted / self.judged
    }
}

/// What earlier rounds of one decoder taught.
#[derive(Debug)]
pub(super) struct Planner {
    length: DraftLength,
    costs: CostTable,
    draft: Acceptance,
    confidence: [Acceptance; CONFIDENCE.len()],
    lookup: [Acceptance; MATCHES.len()],
    draft_budget: f64,
    lookup_budget: f64,
}

/// A number of tokens to propose, and what it should yield per target step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Plan {
    pub tokens: usize,
    pub pace: f64,
}

impl Planner {
    pub fn new(length: DraftLength, acceptance: f64, costs: CostTable) -> Self {
        // A draft that errs half as often as usual is taken to do so at any confidence.
        let misses = (1.0 - acceptance) / (1.0 - DRAFT_ACCEPTANCE);
        Self {
            length,
            costs,
            draft: Acceptance::assumed(acceptance),
            confidence: CONFIDENCE
                .map(|class| Acceptance::assumed((1.0 - misses * (1.0 - class.1)).max(0.0))),
            lookup: MATCHES.map(|class| Acceptance::assumed(class.1)),
            draft_budget: 0.0,
            lookup_budget: 0.0,
        }
    }

    /// Whether the draft should read a prompt beforehand.
    pub fn draft_pays(&self) -> bool {
        self.draft_plan(1, MOST).tokens > 0
    }

    /// How many of the guesses of an index to take.
    pub fn lookup_plan(&self, guesses: &[Guess]) -> Plan {
        if let DraftLength::Fixed(tokens) = self.length {
            return Plan {
                tokens: tokens.min(guesses.len()),
                pace: 0.0,
            };
        }
        let mut best = Plan {
            tokens: 0,
            pace: 1.0,
        };
        let (mut reach, mut expected) = (1.0, 1.0);
        for (tokens, guess) in (1..=MOST).zip(guesses) {
            reach *= guess.share * self.lookup[match_class(guess.matched)].share();
            expected += reach;
            let pace = expected / self.costs.pass(tokens + 1);
            if pace > best.pace {
                best = Plan { tokens, pace };
            }
        }
        best
    }

    /// How many of at most `most` tokens to draft, where the draft has `pending` tokens to read
    /// first.
    pub fn draft_plan(&self, pending: usize, most: usize) -> Plan {
        let catch_up = self.costs.draft * (self.costs.pass(pending) - 1.0) / CATCH_UP_ROUNDS;
        self.plan(self.draft.share(), most, self.costs.draft, catch_up)
    }

    /// The best plan where a token costs `step` and the round `once` on top.
    fn plan(&self, acceptance: f64, most: usize, step: f64, once: f64) -> Plan {
        if let DraftLength::Fixed(tokens) = self.length {
            return Plan {
                tokens: tokens.min(most),
                pace: 0.0,
            };
        }
        let (tokens, pace) = best_gamma(
            acceptance,
            step,
            |k| once + self.costs.pass(k),
            most.min(MOST),
        );
        Plan { tokens, pace }
    }

    /// A token from a lookup that doesn't seem to pay, if the budget allows one.
    pub fn try_lookup(&mut self) -> usize {
        usize::from(self.is_adaptive() && spend(&mut self.lookup_budget, self.costs.pass(2) - 1.0))
    }

    /// Tokens of a draft that doesn't seem to pay, if the budget allows them.
    pub fn try_draft(&mut self, pending: usize, most: usize) -> usize {
        const TRIED: usize = 2;
        let tokens = if self.is_adaptive() {
            TRIED.min(most)
        } else {
            0
        };
        let drafting = self.costs.draft * (self.costs.pass(pending) + tokens as f64 - 1.0);
        if tokens > 0
            && spend(
                &mut self.draft_budget,
                drafting + self.costs.pass(tokens + 1) - 1.0,
            )
        {
            tokens
        } else {
            0
        }
    }

    /// Whether token number `proposed` of a round is worth judging, and another one worth drafting.
    /// `reach` is the chance that it is judged at all, and is multiplied by that of its acceptance.
    pub fn go_on(
        &self,
        plan: Plan,
        proposed: usize,
        confidence: f32,
        reach: &mut f64,
    ) -> (bool, bool) {
        let step = |k: usize| self.costs.pass(k + 1) - self.costs.pass(k);
        let gain = *reach * self.confidence[confidence_class(confidence)].share();
        if gain < plan.pace * step(proposed + 1) {
            return (false, false);
        }
        *reach = gain;
        let next = gain * self.draft.share();
        (
            true,
            next >= plan.pace * (self.costs.draft + step(proposed + 2)),
        )
    }

    /// Whether proposals stop by themselves.
    pub fn is_adaptive(&self) -> bool {
        self.length == DraftLength::Adaptive
    }

    pub fn learn_draft(&mut self, confidence: f32, accepted: bool) {
        self.draft.learn(accepted);
        self.confidence[confidence_class(confidence)].learn(accepted);
    }

    pub fn learn_lookup(&mut self, guess: &Guess, accepted: bool) {
        self.lookup[match_class(guess.matched)].learn(accepted);
    }

    /// What a round cost by the table: a draft that read `pending` tokens and made `steps` steps,
    /// and the pass over `proposed` and one more.
    pub fn count(&mut self, pending: usize, steps: usize, proposed: usize) -> f64 {
        self.draft_budget += TRIAL_SHARE;
        self.lookup_budget += TRIAL_SHARE;
        let drafting = if steps > 0 {
            self.costs.draft * (self.costs.pass(pending) + steps as f64 - 1.0)
        } else {
            0.0
        };
        drafting + self.costs.pass(proposed + 1)
    }

    /// What `leaves` more tokens would cost in the pass over `proposed` and one more.
    pub fn widening(&self, proposed: usize, leaves: usize) -> f64 {
        self.costs.pass(proposed + leaves + 1) - self.costs.pass(proposed + 1)
    }
}

fn spend(budget: &mut f64, cost: f64) -> bool {
    let allowed = *budget >= cost;
    if allowed {
        *budget -= cost;
    }
    allowed
}

fn confidence_class(confidence: f32) -> usize {
    CONFIDENCE
        .iter()
        .position(|class| confidence < class.0)
        .unwrap_or(CONFIDENCE.len() - 1)
}

fn match_class(length: usize) -> usize {
    MATCHES
        .iter()
        .position(|class| length <= class.0)
        .unwrap_or(MATCHES.len() - 1)
}
