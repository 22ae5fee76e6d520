//! How much vectors differ that two models make of the same inputs: angles, the largest entry of
//! the difference, and its squares. All sums are in `f64`, and in the order of the vectors.

use crate::{MethodError, Result};

/// How much vectors differ, over pairs in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Difference {
    cosines: Vec<f64>,
    largest: f64,
    squares: f64,
    of_reference: f64,
}

impl Difference {
    /// Adds a pair of vectors.
    ///
    /// # Errors
    /// [`MethodError::Input`] for vectors of different lengths, and for numbers that aren't finite.
    pub fn add(&mut self, reference: &[f32], other: &[f32]) -> Result<()> {
        let number = self.count() + 1;
        if reference.len() != other.len() {
            let (one, two) = (reference.len(), other.len());
            return Err(MethodError::Input(format!(
                "vector {number}: one model gives {one} numbers, the other {two}"
            )));
        }
        if !reference.iter().chain(other).all(|x| x.is_finite()) {
            return Err(MethodError::Input(format!(
                "vector {number} holds NaN or infinite numbers: a model or its weights are broken (check with `dlc verify`)"
            )));
        }
        let (mut product, mut of_reference, mut of_other, mut squares) = (0f64, 0f64, 0f64, 0f64);
        for (&x, &y) in reference.iter().zip(other) {
            let (x, y) = (f64::from(x), f64::from(y));
            product += x * y;
            of_reference += x * x;
            of_other += y * y;
            squares += (x - y) * (x - y);
            self.largest = self.largest.max((x - y).abs());
        }
        self.squares += squares;
        self.of_reference += of_reference;
        // Equal vectors, such of length 0 among them, have no angle between them.
        let cosine = if squares > 0.0 {
            product / (of_reference.sqrt() * of_other.sqrt()).max(f64::MIN_POSITIVE)
        } else {
            1.0
        };
        self.cosines.push(cosine.clamp(-1.0, 1.0));
        Ok(())
    }

    /// How many pairs there were.
    pub fn count(&self) -> usize {
        self.cosines.len()
    }

    /// The mean cosine of the angle between the two of a pair; NaN without pairs.
    pub fn mean_cosine(&self) -> f64 {
        self.cosines.iter().sum::<f64>() / self.cosines.len() as f64
    }

    /// The cosine of the pair that is furthest apart; NaN without pairs.
    pub fn least_cosine(&self) -> f64 {
        self.cosines.iter().copied().fold(f64::NAN, f64::min)
    }

    /// The largest absolute difference of two entries.
    pub fn largest(&self) -> f64 {
        self.largest
    }

    /// The squares of all differences as a share of the squares of the reference's numbers.
    pub fn relative_squares(&self) -> f64 {
        if self.squares > 0.0 {
            self.squares / self.of_reference
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_differ_by_angle_entry_and_squares() {
        let mut difference = Difference::default();
        difference.add(&[3.0, 4.0], &[3.0, 4.0]).unwrap();
        difference.add(&[1.0, 0.0], &[0.0, 2.0]).unwrap();
        difference.add(&[0.0, 0.0], &[0.0, 0.0]).unwrap();
        assert_eq!(difference.count(), 3);
        assert!((difference.mean_cosine() - 2.0 / 3.0).abs() < 1e-12);
        assert!(difference.least_cosine().abs() < 1e-12);
        assert!((difference.largest() - 2.0).abs() < 1e-12);
        assert!((difference.relative_squares() - 5.0 / 26.0).abs() < 1e-12);
    }

    #[test]
    fn vectors_that_cannot_be_compared_are_refused_by_number() {
        let mut difference = Difference::default();
        for (other, reason) in [
            (
                vec![1.0],
                "vector 1: one model gives 2 numbers, the other 1",
            ),
            (vec![1.0, f32::NAN], "vector 1 holds NaN"),
        ] {
            let error = difference.add(&[1.0, 2.0], &other).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
        assert!(difference.mean_cosine().is_nan() && difference.least_cosine().is_nan());
    }
}
