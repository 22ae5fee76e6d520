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
}

/// Counts and times of one [`super::Decoder::generate`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// Passes of the target while decoding.
    pub rounds: usize,
    /// What the draft proposed.
    pub draft: SourceStats,
    /// What was found in the text.
    pub lookup: SourceStats,
    /// What the rounds should have cost, in target steps, by [`dlc_ir::speculation::CostTable`].
    pub cost: f64,
    /// Tokens written.
    pub tokens: usize,
    /// Time spent reading the prompt, both models.
    pub prefill_time: Duration,
    /// Time spent in the draft while decoding.
    pub draft_time: Duration,
    /// Time spent in the target while decoding.
    pub verify_time: Duration,
}

impl Stats {
    /// Tokens that were proposed, by any source.
    pub fn drafted(&self) -> usize {
        self.draft.drafted + self.lookup.drafted
    }

    /// Proposals that were judged.
    pub fn tested(&self) -> usize {
        self.draft.tested + self.lookup.tested
    }

    /// Proposals that were accepted.
    pub fn accepted(&self) -> usize {
        self.draft.accepted + self.lookup.accepted
    }

    /// Share of the judged proposals that were accepted: the estimate of Leviathan et al.'s alpha, which
    /// [`dlc_ir::speculation::expected_tokens`] takes. 0 without proposals.
    pub fn acceptance(&self) -> f64 {
        ratio(self.accepted(), self.tested())
    }

    /// The speedup over plain decoding that the cost table expects of these rounds; 0 without rounds.
    pub fn predicted_speedup(&self) -> f64 {
        if self.cost > 0.0 { self.tokens as f64 / self.cost } else { 0.0 }
    }

    /// Tokens written per pass of the target; 1 is plain decoding.
    pub fn tokens_per_round(&self) -> f64 {
        ratio(self.tokens, self.rounds)
    }

    /// Tokens written per second of drafting and verifying.
    pub fn tokens_per_second(&self) -> f64 {
        let seconds = (self.draft_time + self.verify_time).as_secs_f64();
        if seconds > 0.0 { self.tokens as f64 / seconds } else { 0.0 }
    }

    /// Adds the counts and times of another continuation.
    pub fn add(&mut self, other: &Self) {
        self.rounds += other.rounds;
        self.draft.add(&other.draft);
        self.lookup.add(&other.lookup);
        self.cost += other.cost;
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

    fn add(&mut self, other: &Self) {
        self.rounds += other.rounds;
        self.drafted += other.drafted;
        self.tested += other.tested;
        self.accepted += other.accepted;
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
