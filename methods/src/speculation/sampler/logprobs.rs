//! What a row of logits says of a token and of the likeliest ones.

/// What the target said of a token that was written, and of others in its place, before temperature,
/// cuts and penalties.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The natural logarithm of its probability.
    pub logprob: f32,
    /// The likeliest tokens with theirs, the likeliest first.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// A log probability as JSON has it, which knows no infinity: at least -9999, as in OpenAI's
    /// API.
    pub fn finite(logprob: f32) -> f32 {
        logprob.max(-9999.0)
    }

    /// Of a finite row of logits: of `token`, and of the `top` likeliest.
    pub(in crate::speculation) fn of(row: &[f32], token: u32, top: usize) -> Self {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
        let logprob = |x: f32| (f64::from(x - max) - sum.ln()) as f32;
        let mut likeliest: Vec<(u32, f32)> = Vec::with_capacity(top + 1);
        for (id, &x) in (0..).zip(row) {
            let place = likeliest.partition_point(|other| other.1 >= x);
            if place < top {
                likeliest.insert(place, (id, x));
                likeliest.truncate(top);
            }
        }
        Self {
            logprob: row.get(token as usize).map_or(f32::NAN, |&x| logprob(x)),
            top: likeliest
                .into_iter()
                .map(|(id, x)| (id, logprob(x)))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first_and_probabilities_sum_to_one() {
        let row = [0.0, 2.0, f32::NEG_INFINITY, 2.0, 1.0];
        let found = TokenLogprobs::of(&row, 4, 3);
        let ids: Vec<u32> = found.top.iter().map(|entry| entry.0).collect();
        assert_eq!((ids, found.top[2].1), (vec![1, 3, 4], found.logprob));
        let all = TokenLogprobs::of(&row, 2, 9);
        let sum: f32 = all.top.iter().map(|entry| entry.1.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6 && all.logprob == f32::NEG_INFINITY);
    }
}
