//! What a continuation took: counts and times, no judgement.

use std::time::Duration;

/// Counts and times of one [`super::Decoder::generate`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Passes of the target while decoding.
    pub rounds: usize,
    /// Tokens that the draft proposed.
    pub drafted: usize,
    /// Proposals that were judged: those after the first rejection of a round aren't.
    pub tested: usize,
    /// Proposals that were accepted.
    pub accepted: usize,
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
    /// Share of the judged proposals that were accepted: the estimate of Leviathan et al.'s alpha, which
    /// [`crate::runtime::expected_tokens`] takes. 0 without proposals.
    pub fn acceptance(&self) -> f64 {
        ratio(self.accepted, self.tested)
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
        self.drafted += other.drafted;
        self.tested += other.tested;
        self.accepted += other.accepted;
        self.tokens += other.tokens;
        self.prefill_time += other.prefill_time;
        self.draft_time += other.draft_time;
        self.verify_time += other.verify_time;
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
