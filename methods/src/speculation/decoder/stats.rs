//! What a continuation took: counts and times, no judgement.

use std::time::Duration;

/// Counts of one source of proposals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SourceStats {
    /// Rounds with proposals of this source.
    pub rounds: usize,
    /// Tokens that it proposed.
    pub drafted: usize,
    /// Proposals that were judged: those after the first rejection of a round aren't.
    pub tested: usize,
    /// Proposals that were accepted.
    pub accepted: usize,
    /// Rejected proposals of a draft whose second choice was the target's token; counted in greedy
    /// decoding.
    pub runner_up: usize,
}

/// Counts and times of one [`super::Decoder::generate`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// Passes of the target while decoding.
    pub rounds: usize,
    /// What the draft proposed.
    pub draft: SourceStats,
    /// What was looked up.
    pub lookup: SourceStats,
    /// What the grammar left no choice of.
    pub forced: SourceStats,
    /// What the rounds should have cost, in target steps, by [`crate::speculation::CostTable`].
    pub cost: f64,
    /// The same, had each pass also judged the draft's second choice beside each of its proposals.
    pub tree_cost: f64,
    /// Tokens written.
    pub tokens: usize,
    /// Those of them that rounding chose between two of nearly equal logits
    /// ([`TIE`](crate::speculation::TIE)).
    pub ties: usize,
    /// Time spent reading the prompt, both models.
    pub prefill_time: Duration,
    /// Time spent in the draft and in lookups while decoding.
    pub draft_time: Duration,
    /// Time spent in the target while decoding.
    pub verify_time: Duration,
}

impl Stats {
    /// Tokens that were proposed, by any source.
    pub fn drafted(&self) -> usize {
        self.draft.drafted + self.lookup.drafted + self.forced.drafted
    }

    /// Proposals that were judged.
    pub fn tested(&self) -> usize {
        self.draft.tested + self.lookup.tested + self.forced.tested
    }

    /// Proposals that were accepted.
    pub fn accepted(&self) -> usize {
        self.draft.accepted + self.lookup.accepted + self.forced.accepted
    }

    /// Share of the judged proposals that were accepted: the estimate of Leviathan et al.'s alpha,
    /// which [`crate::speculation::expected_tokens`] takes. 0 without proposals.
    pub fn acceptance(&self) -> f64 {
        ratio(self.accepted(), self.tested())
    }

    /// The speedup over plain decoding that the cost table expects of these rounds; 0 without
    /// rounds.
    pub fn predicted_speedup(&self) -> f64 {
        if self.cost > 0.0 {
            self.tokens as f64 / self.cost
        } else {
            0.0
        }
    }

    /// The most that a tree of drafts could gain over the chain that was run, as a quotient of
    /// speeds, the greedy draft's second choice standing beside each of its proposals as a leaf and
    /// judged in the same pass (token trees: Miao et al. 2024):
    ///
    /// ```text
    /// (1 + H / R) * C / C_tree     H: runner-ups, R: rounds, C: cost, C_tree: the same with v(2k + 1) for v(k + 1) where k tokens were drafted
    /// ```
    ///
    /// A hit decides one token more, what the target says after the leaf, and so saves at most one
    /// round: what a greedy draft proposes follows from the text, hence a round that begins later
    /// never ends earlier, and the round that is left out decides that token at least. R rounds
    /// with H / R hits each become no fewer than R / (1 + H / R).
    ///
    /// Assumed: the tree hits as often in a round as the chain would have, and drafts as many
    /// tokens. Left out, all at the tree's expense: a mask and positions for each token, and moving
    /// a leaf's keys and values to where they belong. 1 where nothing was drafted.
    pub fn tree_gain_at_most(&self) -> f64 {
        self.tree_gain(self.rounds)
    }

    /// What that tree should gain if a round after a hit decides as many tokens as any other:
    /// [`Self::tree_gain_at_most`] with `1 + H / T`, T being the tokens written.
    pub fn tree_gain_expected(&self) -> f64 {
        self.tree_gain(self.tokens)
    }

    fn tree_gain(&self, whole: usize) -> f64 {
        if self.tree_cost > 0.0 {
            (1.0 + ratio(self.draft.runner_up, whole)) * self.cost / self.tree_cost
        } else {
            1.0
        }
    }

    /// Tokens written per pass of the target; 1 is plain decoding.
    pub fn tokens_per_round(&self) -> f64 {
        ratio(self.tokens, self.rounds)
    }

    /// Tokens written per second of drafting and verifying.
    pub fn tokens_per_second(&self) -> f64 {
        let seconds = (self.draft_time + self.verify_time).as_secs_f64();
        if seconds > 0.0 {
            self.tokens as f64 / seconds
        } else {
            0.0
        }
    }

    /// Adds the counts and times of another continuation.
    pub fn add(&mut self, other: &Self) {
        self.rounds += other.rounds;
        self.draft.add(&other.draft);
        self.lookup.add(&other.lookup);
        self.forced.add(&other.forced);
        self.cost += other.cost;
        self.tree_cost += other.tree_cost;
        self.tokens += other.tokens;
        self.prefill_time += other.prefill_time;
        self.draft_time += other.draft_time;
        self.verify_time += other.verify_time;
    }
}

impl SourceStats {
    /// Share of the judged proposals that were accepted; 0 without proposals.
    pub fn acceptance(&self) -> f64 {
        ratio(self.accepted, self.tested)
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.rounds += other.rounds;
        self.drafted += other.drafted;
        self.tested += other.tested;
        self.accepted += other.accepted;
        self.runner_up += other.runner_up;
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}
