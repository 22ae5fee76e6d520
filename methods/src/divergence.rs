//! How much two models differ on the same text: the KL divergence of what they expect next, how
//! often they expect the same first, and how well each expects what does come (perplexity).
//!
//! A row of logits from either model makes a [`Position`], which is all that is kept of them; rows
//! may be compared in any order and on any thread. A [`Divergence`] sums positions up in their
//! order, so that its numbers don't depend on how the work was split. All sums are in `f64`.

use crate::speculation::argmax;
use crate::{MethodError, Result};

/// What two models say at one position of a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Position {
    /// KL(reference || other) of the two distributions, in nats: 0 for equal ones, infinite where
    /// the other model excludes what the reference doesn't.
    pub kl: f64,
    /// Whether both find the same token the likeliest, the lowest id among equals.
    pub agrees: bool,
    /// `-ln p` of the token that does come, by the reference and by the other model; none where no
    /// token comes or is judged.
    pub losses: Option<[f64; 2]>,
}

impl Position {
    /// Compares the logits that two models give for the same `position` of a text, which `next`
    /// follows.
    ///
    /// # Errors
    /// [`MethodError::Logits`] for logits without a distribution: NaN, infinite or without a finite
    /// value; [`MethodError::Input`] for rows of different lengths, and a token outside of them.
    pub fn of(
        reference: &[f32],
        other: &[f32],
        next: Option<u32>,
        position: usize,
    ) -> Result<Self> {
        if reference.len() != other.len() {
            return Err(MethodError::Input(format!(
                "position {position}: one model scores {} tokens, the other {}",
                reference.len(),
                other.len()
            )));
        }
        let (best, max) = argmax(reference, position)?;
        let (other_best, other_max) = argmax(other, position)?;
        let [max, other_max] = [max, other_max].map(f64::from);
        let (mut sum, mut other_sum, mut distance) = (0f64, 0f64, 0f64);
        for (&x, &y) in reference.iter().zip(other) {
            let (x, y) = (f64::from(x) - max, f64::from(y) - other_max);
            let share = x.exp();
            sum += share;
            other_sum += y.exp();
            // What the reference excludes counts nothing, whatever the other says of it.
            if share > 0.0 {
                distance += share * (x - y);
            }
        }
        let [log_sum, other_log_sum] = [sum.ln(), other_sum.ln()];
        let loss = |token: u32| {
            let at = token as usize;
            let (x, y) = reference.get(at).zip(other.get(at))?;
            Some([
                log_sum - (f64::from(*x) - max),
                other_log_sum - (f64::from(*y) - other_max),
            ])
        };
        let losses = next.map(|token| {
            loss(token).ok_or_else(|| {
                let tokens = reference.len();
                MethodError::Input(format!(
                    "position {position}: token {token} is outside of the {tokens} that are scored"
                ))
            })
        });
        Ok(Self {
            // Rounding may leave a little less than the 0 that it can't be below.
            kl: (distance / sum - log_sum + other_log_sum).max(0.0),
            agrees: best == other_best,
            losses: losses.transpose()?,
        })
    }
}

/// How much two models differ, over positions in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Divergence {
    positions: Vec<Position>,
}

impl FromIterator<Position> for Divergence {
    fn from_iter<I: IntoIterator<Item = Position>>(positions: I) -> Self {
        Self {
            positions: positions.into_iter().collect(),
        }
    }
}

impl Extend<Position> for Divergence {
    fn extend<I: IntoIterator<Item = Position>>(&mut self, positions: I) {
        self.positions.extend(positions);
    }
}

impl Divergence {
    /// How many positions were compared.
    pub fn count(&self) -> usize {
        self.positions.len()
    }

    /// The mean KL divergence in nats; NaN over no position, as all numbers here.
    pub fn mean_kl(&self) -> f64 {
        mean(self.positions.iter().map(|position| position.kl))
    }

    /// The KL divergence that a `share` of the positions stay below, from 0 to 1: between two
    /// positions in proportion, as numpy's `percentile` has it.
    pub fn kl_quantile(&self, share: f64) -> f64 {
        let mut sorted: Vec<f64> = self.positions.iter().map(|p| p.kl).collect();
        sorted.sort_by(f64::total_cmp);
        let place = share.clamp(0.0, 1.0) * sorted.len().saturating_sub(1) as f64;
        let at = |place: f64| sorted.get(place as usize).copied().unwrap_or(f64::NAN);
        let (below, above) = (at(place.floor()), at(place.ceil()));
        match place.fract() {
            // Infinite ones have no difference.
            rest if rest > 0.0 && above > below => below + rest * (above - below),
            _ => below,
        }
    }

    /// The share of positions at which both find the same token the likeliest.
    pub fn agreement(&self) -> f64 {
        mean(self.positions.iter().map(|p| f64::from(u8::from(p.agrees))))
    }

    /// The perplexity of the reference and of the other model: `e` to the mean loss of the tokens
    /// that do come. None if no token is judged.
    pub fn perplexities(&self) -> Option<[f64; 2]> {
        let of = |model: usize| {
            let losses = self.positions.iter().filter_map(|p| p.losses);
            mean(losses.map(|losses| losses[model])).exp()
        };
        let judged = self.positions.iter().any(|p| p.losses.is_some());
        judged.then(|| [0, 1].map(of))
    }
}

fn mean(numbers: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = numbers.fold((0usize, 0f64), |(count, sum), x| (count + 1, sum + x));
    sum / count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-12 * b.abs().max(1.0), "{a}, not {b}");
    }

    /// Logits of these probabilities, moved by `shift`, which changes nothing.
    fn logits(probabilities: &[f32], shift: f32) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln() + shift).collect()
    }

    #[test]
    fn kl_and_losses_are_those_of_the_definition() {
        let (p, q) = ([0.5, 0.25, 0.25f32], [0.25, 0.5, 0.25f32]);
        let found = Position::of(&logits(&p, 3.0), &logits(&q, -2.0), Some(0), 0).unwrap();
        // 1/2 ln 2 - 1/4 ln 2, within what f32 logits hold.
        assert!((found.kl - 0.25 * 2f64.ln()).abs() < 1e-6, "{}", found.kl);
        assert!(!found.agrees);
        let [loss, other] = found.losses.unwrap();
        assert!((loss - 2f64.ln()).abs() < 1e-6 && (other - 4f64.ln()).abs() < 1e-6);
    }

    #[test]
    fn tokens_that_are_excluded_count_by_who_excludes_them() {
        let (all, some) = ([1.0, 2.0, 0.0], [1.0, 2.0, f32::NEG_INFINITY]);
        assert!(Position::of(&all, &some, None, 0).unwrap().kl.is_infinite());
        let less = Position::of(&some, &all, None, 0).unwrap();
        assert!(less.kl.is_finite() && less.kl > 0.0 && less.agrees);
        close(Position::of(&some, &some, None, 0).unwrap().kl, 0.0);
    }

    #[test]
    fn what_has_no_distribution_is_refused_by_its_position() {
        for (row, reason) in [
            (vec![f32::NAN, 1.0], "position 7 hold NaN"),
            (vec![f32::INFINITY, 1.0], "position 7 hold +inf"),
            (vec![f32::NEG_INFINITY; 2], "position 7 hold no finite"),
            (
                vec![1.0; 3],
                "position 7: one model scores 2 tokens, the other 3",
            ),
        ] {
            let error = Position::of(&[0.0, 1.0], &row, None, 7).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
        let error = Position::of(&[0.0], &[0.0], Some(1), 7).unwrap_err();
        assert!(error.to_string().contains("token 1 is outside of the 1"));
    }

    fn with_kl(kl: f64) -> Position {
        Position {
            kl,
            agrees: kl < 2.0,
            losses: (kl > 0.0).then_some([kl, 2.0 * kl]),
        }
    }

    #[test]
    fn positions_are_summed_up_as_numpy_does() {
        let mut all: Divergence = [3.0, 0.0, 1.0].map(with_kl).into_iter().collect();
        all.extend([with_kl(2.0)]);
        assert_eq!(all.count(), 4);
        close(all.mean_kl(), 1.5);
        close(all.kl_quantile(1.0), 3.0);
        close(all.kl_quantile(0.99), 2.97);
        close(all.kl_quantile(0.5), 1.5);
        close(all.agreement(), 0.5);
        // The first is judged nowhere.
        let [reference, other] = all.perplexities().unwrap();
        close(reference, 2f64.exp());
        close(other, 4f64.exp());
    }

    #[test]
    fn nothing_and_infinite_divergences_have_no_false_numbers() {
        let none = Divergence::default();
        assert!(none.mean_kl().is_nan() && none.kl_quantile(0.5).is_nan());
        assert!(none.agreement().is_nan() && none.perplexities().is_none());
        let infinite: Divergence = [f64::INFINITY; 3].map(with_kl).into_iter().collect();
        assert!(infinite.kl_quantile(0.3).is_infinite() && infinite.mean_kl().is_infinite());
    }

    proptest! {
        #[test]
        fn equal_rows_differ_by_nothing_and_others_by_no_less(
            a in proptest::collection::vec(-60f32..60.0, 1..300),
            seed in any::<u32>(),
        ) {
            let turned: Vec<f32> = (0..a.len()).map(|i| a[(i + seed as usize) % a.len()]).collect();
            let same = Position::of(&a, &a, Some(0), 0).unwrap();
            prop_assert!(same.kl == 0.0 && same.agrees);
            let [x, y] = same.losses.unwrap();
            prop_assert!(x.to_bits() == y.to_bits() && x >= 0.0);
            prop_assert!(Position::of(&a, &turned, None, 0).unwrap().kl >= 0.0);
        }
    }
}
