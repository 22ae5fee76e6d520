//! What speculative decoding should gain, before it is run.
//!
//! The expected number of tokens of a round and the speedup follow Leviathan, Kalman and Matias, *Fast Inference from
//! Transformers via Speculative Decoding* (ICML 2023), equation 1 and theorem 3.8, with the verification's own cost kept: on
//! a CPU a pass over several tokens isn't free. Never measures anything.

/// Expected tokens of one round that drafts `gamma` tokens: `(1 - a^(gamma+1)) / (1 - a)` (Leviathan et al., equation 1).
///
/// `acceptance` is the chance that one drafted token is accepted; values outside `0..=1` are clamped.
pub fn expected_tokens(acceptance: f64, gamma: usize) -> f64 {
    let a = acceptance.clamp(0.0, 1.0);
    // The geometric sum itself: exact at a = 1, where the quotient is 0/0.
    (0..=gamma).fold((0.0, 1.0), |(sum, power), _| (sum + power, power * a)).0
}

/// Speed relative to plain decoding: [`expected_tokens`] over the cost of a round, `gamma * c + v`, in units of one target step.
///
/// `c` is a draft step's share of a target step, `v` the cost of the target's pass over `gamma + 1` tokens in target steps.
pub fn predicted_speedup(acceptance: f64, gamma: usize, c: f64, v: f64) -> f64 {
    let cost = gamma as f64 * c + v;
    if cost > 0.0 { expected_tokens(acceptance, gamma) / cost } else { 0.0 }
}

/// The `gamma` in `0..=max` with the largest [`predicted_speedup`], and that speedup; 0 is plain decoding.
///
/// `v(k)` is the cost of a pass over `k` tokens in target steps. Ties go to the smaller gamma.
pub fn best_gamma(acceptance: f64, c: f64, v: impl Fn(usize) -> f64, max: usize) -> (usize, f64) {
    (1..=max)
        .map(|gamma| (gamma, predicted_speedup(acceptance, gamma, c, v(gamma + 1))))
        .fold((0, 1.0), |best, next| if next.1 > best.1 { next } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_published_ceilings_of_chain_drafting() {
        for (c, acceptance, expected) in [(0.5, 0.96, 1.55), (0.3, 0.90, 1.87), (0.3, 0.95, 2.18)] {
            let (_, speedup) = best_gamma(acceptance, c, |_| 1.0, 16);
            assert!((speedup - expected).abs() < 0.02, "c={c} a={acceptance}: {speedup}");
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
