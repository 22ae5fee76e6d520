//! Which tokens may be drawn at all, as transformers' warpers decide it. At least the most likely
//! one always may.

use std::collections::BTreeSet;

use super::{Distribution, by_probability};

/// Tokens that top-h looks at.
const LIKELIEST: usize = 100;

/// The `k`-th largest of `logits`; -inf where there are fewer, or for 0.
pub(super) fn kth_largest(logits: &[f32], k: usize) -> f32 {
    if k == 0 || k >= logits.len() {
        return f32::NEG_INFINITY;
    }
    let mut sorted = logits.to_vec();
    *sorted
        .select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a))
        .1
}

/// The most likely tokens, as long as their entropies add up to no more than `share` of that of all
/// that are looked at (Potraghloo et al., *Top-H Decoding*, 2025).
pub(super) fn top_h(shares: &[f32], share: f64) -> BTreeSet<u32> {
    let mut entries: Vec<(u32, f64)> = (0..)
        .zip(shares)
        .map(|(id, &x)| (id, f64::from(x)))
        .collect();
    if entries.len() > LIKELIEST {
        entries.select_nth_unstable_by(LIKELIEST - 1, by_probability);
        entries.truncate(LIKELIEST);
    }
    entries.retain(|entry| entry.1 > 0.0);
    entries.sort_unstable_by(by_probability);
    let likely = Distribution { entries }.normalized();
    let most = likely.entropy() * share;
    let mut sum = 0.0;
    let kept = likely.entries.iter().take_while(|(_, p)| {
        sum -= p * p.ln();
        sum <= most
    });
    let kept = kept.count().max(1);
    likely.entries[..kept].iter().map(|entry| entry.0).collect()
}

impl Distribution {
    /// The smallest set of most likely tokens that has at least the probability `mass`, at least
    /// one, by falling probability.
    pub(super) fn most_likely(mut self, mass: f64) -> Self {
        // All that are less likely than this together make up half of what may be left out.
        let least = (1.0 - mass) / (2.0 * self.entries.len() as f64);
        self.entries.retain(|entry| entry.1 >= least);
        self.entries.sort_unstable_by(by_probability);
        let mut sum = 0.0;
        let kept = self.entries.iter().take_while(|entry| {
            let below = sum < mass;
            sum += entry.1;
            below
        });
        let kept = kept.count().max(1);
        self.entries.truncate(kept);
        self.normalized()
    }

    /// Tokens at least `share` times as likely as the most likely one (Nguyen et al., *Min-p*, 2024).
    pub(super) fn at_least_relative(self, share: f64) -> Self {
        let least = share * self.largest();
        self.at_least(least)
    }

    /// Tokens of at least this probability, else the most likely ones.
    pub(super) fn at_least(mut self, probability: f64) -> Self {
        let least = probability.min(self.largest());
        self.entries.retain(|entry| entry.1 >= least);
        self.normalized()
    }

    /// The tokens whose surprise is nearest to the expected one, until they have at least the
    /// probability `mass` (Meister et al., *Locally Typical Sampling*, 2022).
    pub(super) fn typical(mut self, mass: f64) -> Self {
        let entropy = self.entropy();
        let distance = |entry: &(u32, f64)| (-entry.1.ln() - entropy).abs();
        self.entries
            .sort_by(|a, b| distance(a).total_cmp(&distance(b)));
        let mut sum = 0.0;
        let before = self.entries.iter().take_while(|entry| {
            sum += entry.1;
            sum < mass
        });
        let last = before.count().min(self.entries.len() - 1);
        let farthest = distance(&self.entries[last]);
        let first = self.entries[0].0;
        self.entries
            .retain(|entry| entry.0 == first || distance(entry) <= farthest);
        self.normalized()
    }

    /// Tokens of at least the probability `epsilon`, or less where the entropy is high (Hewitt et
    /// al., *Truncation Sampling as Language Model Desmoothing*, 2022).
    pub(super) fn eta(self, epsilon: f64) -> Self {
        let least = epsilon.min(epsilon.sqrt() * (-self.entropy()).exp());
        self.at_least(least)
    }

    fn entropy(&self) -> f64 {
        -self
            .entries
            .iter()
            .filter(|entry| entry.1 > 0.0)
            .map(|(_, p)| p * p.ln())
            .sum::<f64>()
    }

    fn largest(&self) -> f64 {
        self.entries.iter().map(|entry| entry.1).fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests;
