//! From logits to a token: temperature, cuts of the unlikely, and a seeded draw.
//!
//! The order is that of transformers' `generate`: temperature, top-h, top-k, top-p, min-p, typical,
//! epsilon, eta. Never reads a clock or the system's entropy: the same options and logits give the
//! same tokens.

mod cuts;
mod logprobs;
mod row;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use self::logprobs::TokenLogprobs;
pub use self::row::TIE;
pub(crate) use self::row::argmax;
use self::row::shares;
pub(super) use self::row::{runner_up, top_probability};
use crate::{MethodError, Result};

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingOptions {
    /// Divides the logits; 0 takes the most likely token (greedy).
    pub temperature: f32,
    /// Keeps the most likely tokens whose entropies add up to no more than this share of that of
    /// the likeliest hundred; None keeps all.
    pub top_h: Option<f32>,
    /// Keeps this many most likely tokens, and those as likely as the last of them; 0 keeps all.
    pub top_k: usize,
    /// Keeps the smallest set of most likely tokens that has at least this probability; 1 keeps
    /// all.
    pub top_p: f32,
    /// Keeps tokens that are at least this share as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Keeps the tokens nearest to the expected surprise that have at least this probability; 1
    /// keeps all.
    pub typical_p: f32,
    /// Keeps tokens of at least this probability; 0 keeps all.
    pub epsilon_cutoff: f32,
    /// Keeps tokens of at least this probability, or less where the model is unsure; 0 keeps all.
    pub eta_cutoff: f32,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for SamplingOptions {
    /// Greedy.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_h: None,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            epsilon_cutoff: 0.0,
            eta_cutoff: 0.0,
            seed: 0,
        }
    }
}

/// Probabilities of the tokens that can be drawn at all, by ascending token id. They sum to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    entries: Vec<(u32, f64)>,
}

impl Distribution {
    /// The probability of `token`.
    pub fn probability(&self, token: u32) -> f64 {
        self.entries
            .binary_search_by_key(&token, |entry| entry.0)
            .map_or(0.0, |i| self.entries[i].1)
    }

    /// Tokens and their probabilities, by ascending id.
    pub fn entries(&self) -> &[(u32, f64)] {
        &self.entries
    }

    /// `norm(max(0, self - other))`, from which a rejected draft token is replaced (Leviathan et
    /// al. 2023, section 2.3; Chen et al. 2023, algorithm 2). `self` if nothing is left, which only
    /// rounding can bring about.
    #[must_use]
    pub fn residual(&self, other: &Self) -> Self {
        let rest = self
            .entries
            .iter()
            .map(|&(token, p)| (token, (p - other.probability(token)).max(0.0)))
            .filter(|entry| entry.1 > 0.0);
        let rest = Self {
            entries: rest.collect(),
        };
        if rest.entries.is_empty() {
            self.clone()
        } else {
            rest.normalized()
        }
    }

    /// The token at which the probabilities, summed up in order, exceed `uniform` in `[0, 1)`: a
    /// draw, if that number is one.
    pub fn token_at(&self, uniform: f64) -> u32 {
        let mut rest = uniform;
        for &(token, p) in &self.entries {
            rest -= p;
            if rest < 0.0 {
                return token;
            }
        }
        // Rounding left a sliver above the last entry.
        self.entries.last().map_or(0, |entry| entry.0)
    }

    fn normalized(mut self) -> Self {
        let total: f64 = self.entries.iter().map(|entry| entry.1).sum();
        for entry in &mut self.entries {
            entry.1 /= total;
        }
        self
    }
}

/// The more likely first, of equal ones the lower id.
fn by_probability(a: &(u32, f64), b: &(u32, f64)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Draws tokens; owns the random numbers.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplingOptions,
    random: ChaCha8Rng,
}

impl Sampler {
    /// Refuses a temperature that is negative or not finite, and cuts that are out of range.
    ///
    /// # Errors
    /// [`MethodError::Input`] for these.
    pub fn new(options: SamplingOptions) -> Result<Self> {
        if !(options.temperature.is_finite() && options.temperature >= 0.0) {
            return Err(MethodError::Input(format!(
                "temperature {} must be a number of at least 0 (0 is greedy)",
                options.temperature
            )));
        }
        let (above, from) = ("lie in (0, 1]", "lie in 0..=1");
        for (name, value, range, least) in [
            (
                "top-h",
                options.top_h.unwrap_or(1.0),
                above,
                f32::MIN_POSITIVE,
            ),
            ("top-p", options.top_p, above, f32::MIN_POSITIVE),
            ("min-p", options.min_p, from, 0.0),
            ("typical-p", options.typical_p, above, f32::MIN_POSITIVE),
            ("epsilon cutoff", options.epsilon_cutoff, from, 0.0),
            ("eta cutoff", options.eta_cutoff, from, 0.0),
        ] {
            if !(least..=1.0).contains(&value) {
                return Err(MethodError::Input(format!("{name} {value} must {range}")));
            }
        }
        let random = ChaCha8Rng::seed_from_u64(options.seed);
        Ok(Self { options, random })
    }

    /// The options it was made with.
    pub fn options(&self) -> &SamplingOptions {
        &self.options
    }

    /// What `logits` say after temperature and cuts. `position` is where they stand, for the
    /// error.
    ///
    /// # Errors
    /// [`MethodError::Logits`] for logits that hold NaN or +inf, or nothing finite.
    pub fn distribution(&self, logits: &[f32], position: usize) -> Result<Distribution> {
        let (best, max) = argmax(logits, position)?;
        let options = &self.options;
        if options.temperature == 0.0 {
            return Ok(Distribution {
                entries: vec![(best, 1.0)],
            });
        }
        // The inverse of the smallest temperatures is no finite number.
        let shares = shares(logits, max, (1.0 / options.temperature).min(f32::MAX));
        let least = cuts::kth_largest(logits, options.top_k);
        let likely = options
            .top_h
            .map(|share| cuts::top_h(&shares, f64::from(share)));
        let mut entries = Vec::with_capacity(shares.len());
        let each = (0..)
            .zip(&shares)
            .zip(logits)
            .filter(|((id, share), logit)| {
                **share > 0.0
                    && **logit >= least
                    && likely.as_ref().is_none_or(|likely| likely.contains(id))
            });
        entries.extend(each.map(|((id, &share), _)| (id, f64::from(share))));
        let mut distribution = Distribution { entries }.normalized();
        if options.top_p < 1.0 {
            distribution = distribution.most_likely(f64::from(options.top_p));
        }
        if options.min_p > 0.0 {
            distribution = distribution.at_least_relative(f64::from(options.min_p));
        }
        if options.typical_p < 1.0 {
            distribution = distribution.typical(f64::from(options.typical_p));
        }
        if options.epsilon_cutoff > 0.0 && options.epsilon_cutoff < 1.0 {
            distribution = distribution.at_least(f64::from(options.epsilon_cutoff));
        }
        if options.eta_cutoff > 0.0 && options.eta_cutoff < 1.0 {
            distribution = distribution.eta(f64::from(options.eta_cutoff));
        }
        // Cuts look at tokens in orders of their own.
        distribution.entries.sort_unstable_by_key(|entry| entry.0);
        Ok(distribution)
    }

    /// Draws what follows, and tells the distribution it was drawn from; None for one that has a
    /// single entry.
    ///
    /// # Errors
    /// As [`distribution`](Self::distribution).
    pub fn propose(
        &mut self,
        logits: &[f32],
        position: usize,
    ) -> Result<(u32, Option<Distribution>)> {
        if self.options.temperature == 0.0 {
            return Ok((argmax(logits, position)?.0, None));
        }
        let distribution = self.distribution(logits, position)?;
        Ok((self.draw(&distribution), Some(distribution)))
    }

    /// Judges a `proposal` that was drawn from `q`, by the target's `logits`: None accepts it, else
    /// the token that takes its place. Without `q` it was certain. The token that comes out has the
    /// target's distribution (Leviathan et al. 2023, appendix A.1).
    ///
    /// # Errors
    /// As [`distribution`](Self::distribution).
    pub fn judge(
        &mut self,
        logits: &[f32],
        position: usize,
        proposal: u32,
        q: Option<&Distribution>,
    ) -> Result<Option<u32>> {
        if self.options.temperature == 0.0 {
            let best = argmax(logits, position)?.0;
            return Ok((best != proposal).then_some(best));
        }
        let p = self.distribution(logits, position)?;
        let certain = Distribution {
            entries: vec![(proposal, 1.0)],
        };
        let q = q.unwrap_or(&certain);
        // Accepted with probability min(1, p/q); q is positive, the token was drawn from it.
        let accepted = self.uniform() * q.probability(proposal) < p.probability(proposal);
        Ok(if accepted {
            None
        } else {
            Some(self.draw(&p.residual(q)))
        })
    }

    /// Whether rounding chose `best`, the likeliest token, which is taken.
    pub fn is_tie(&self, logits: &[f32], best: u32) -> bool {
        self.options.temperature == 0.0 && row::is_tie(logits, best)
    }

    /// Draws one token.
    pub fn draw(&mut self, distribution: &Distribution) -> u32 {
        match distribution.entries[..] {
            [(only, _)] => only,
            _ => distribution.token_at(self.uniform()),
        }
    }

    /// A number in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        self.random.random()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distribution(logits: &[f32], temperature: f32, top_k: usize, top_p: f32) -> Vec<(u32, f64)> {
        let sampler = Sampler::new(SamplingOptions {
            temperature,
            top_k,
            top_p,
            seed: 1,
            ..SamplingOptions::default()
        })
        .unwrap();
        sampler.distribution(logits, 0).unwrap().entries
    }

    fn close(found: &[(u32, f64)], expected: &[(u32, f64)]) {
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (a, b) in found.iter().zip(expected) {
            assert!(
                a.0 == b.0 && (a.1 - b.1).abs() < 1e-6,
                "{found:?} is not {expected:?}"
            );
        }
    }

    #[test]
    fn greedy_ties_go_to_the_lowest_id() {
        assert_eq!(distribution(&[1.0, 3.0, 3.0], 0.0, 0, 1.0), [(1, 1.0)]);
    }

    #[test]
    fn temperature_one_is_the_softmax() {
        close(
            &distribution(&[0.0, 2.0f32.ln(), f32::NEG_INFINITY], 1.0, 0, 1.0),
            &[(0, 1.0 / 3.0), (1, 2.0 / 3.0)],
        );
    }

    #[test]
    fn top_k_keeps_the_most_likely_and_those_as_likely_as_the_last() {
        let (a, b) = (1.0 / (2.0 + 1f64.exp()), 1f64.exp() / (2.0 + 1f64.exp()));
        close(
            &distribution(&[0.0, 1.0, -0.1, 0.0], 1.0, 2, 1.0),
            &[(0, a), (1, b), (3, a)],
        );
        close(
            &distribution(&[0.0, 1.0, -0.1, 0.0], 1.0, 1, 1.0),
            &[(1, 1.0)],
        );
        assert_eq!(distribution(&[0.0, 1.0, -0.1, 0.0], 1.0, 9, 1.0).len(), 4);
    }

    #[test]
    fn entries_are_in_order_where_a_cut_leaves_all() {
        close(
            &distribution(&[0.0, 0.1, 0.0], 1.0, 0, 0.99),
            &distribution(&[0.0, 0.1, 0.0], 1.0, 0, 1.0),
        );
    }

    #[test]
    fn the_smallest_temperatures_take_the_most_likely_token() {
        close(&distribution(&[0.0, 3.0, 1.0], 1e-45, 0, 1.0), &[(1, 1.0)]);
    }

    #[test]
    fn top_p_keeps_the_smallest_sufficient_set() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        close(
            &distribution(&logits, 1.0, 0, 0.7),
            &[(0, 0.625), (1, 0.375)],
        );
        close(&distribution(&logits, 1.0, 0, 0.01), &[(0, 1.0)]);
        close(&distribution(&[7.0; 999], 1.0, 0, 1e-20), &[(0, 1.0)]);
    }

    #[test]
    fn top_p_of_a_long_row_is_that_of_a_full_sort() {
        let logits: Vec<f32> = (0..5000u32)
            .map(|id| (id.wrapping_mul(2_654_435_761) >> 8) as f32 / 2e6)
            .collect();
        let mut sorted = distribution(&logits, 1.0, 0, 1.0);
        sorted.sort_by(by_probability);
        for top_p in [0.1, 0.5, 0.9, 0.999] {
            let sums = sorted.iter().scan(0.0, |sum, entry| {
                Some(std::mem::replace(sum, *sum + entry.1))
            });
            let kept = sums.take_while(|&before| before < f64::from(top_p)).count();
            let mut expected: Vec<u32> = sorted[..kept].iter().map(|entry| entry.0).collect();
            expected.sort_unstable();
            let found: Vec<u32> = distribution(&logits, 1.0, 0, top_p)
                .iter()
                .map(|entry| entry.0)
                .collect();
            assert_eq!(found, expected, "{top_p}");
        }
    }

    #[test]
    fn residual_is_what_the_draft_left_out() {
        let p = Distribution {
            entries: vec![(0, 0.5), (1, 0.5)],
        };
        let q = Distribution {
            entries: vec![(0, 0.75), (2, 0.25)],
        };
        close(&p.residual(&q).entries, &[(1, 1.0)]);
        close(&p.residual(&p).entries, &p.entries);
    }

    #[test]
    fn broken_logits_are_named_with_their_position() {
        for (logits, found) in [
            ([f32::NAN, 0.0], "NaN"),
            ([0.0, f32::NAN], "NaN"),
            ([f32::INFINITY, 0.0], "+inf"),
            ([f32::NEG_INFINITY; 2], "no finite value"),
        ] {
            let error = Sampler::new(SamplingOptions::default())
                .unwrap()
                .distribution(&logits, 17)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("position 17") && error.contains(found),
                "{error}"
            );
        }
    }

    #[test]
    fn options_out_of_range_are_refused() {
        for (temperature, top_p) in [(-1.0, 1.0), (f32::NAN, 1.0), (1.0, 0.0), (1.0, 1.5)] {
            assert!(
                Sampler::new(SamplingOptions {
                    temperature,
                    top_p,
                    ..SamplingOptions::default()
                })
                .is_err()
            );
        }
        let refused = |change: fn(&mut SamplingOptions)| {
            let mut options = SamplingOptions::default();
            change(&mut options);
            Sampler::new(options).is_err()
        };
        assert!(
            refused(|o| o.top_h = Some(0.0))
                && refused(|o| o.typical_p = 0.0)
                && refused(|o| o.typical_p = f32::NAN)
        );
        assert!(
            refused(|o| o.min_p = 1.5)
                && refused(|o| o.epsilon_cutoff = -0.1)
                && refused(|o| o.eta_cutoff = f32::INFINITY)
        );
    }
}
