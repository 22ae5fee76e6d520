//! What samplers and guidance compute between evaluations of the network, on whatever latents are:
//! numbers in memory, or values of a graph.

use crate::MethodError;

/// Sums of latents and outputs.
pub trait Arithmetic {
    /// Latents or an estimate.
    type Value;
    /// What is summed: a value, or an output of the network, which stays the caller's.
    type Term: ?Sized;
    /// Why a sum can't be made.
    type Error;

    /// A value as what is summed.
    fn term(value: &Self::Value) -> &Self::Term;

    /// The sum of values times coefficients, of which none is 0. `spare` is a value that nobody
    /// reads any more.
    ///
    /// # Errors
    /// What the values are makes them.
    fn sum(
        &mut self,
        terms: &[(f64, &Self::Term)],
        spare: Option<Self::Value>,
    ) -> Result<Self::Value, Self::Error>;

    /// The value with each entry clipped to `[-limit, limit]`.
    ///
    /// # Errors
    /// What the values are makes them.
    fn clip(&mut self, value: Self::Value, limit: f32) -> Result<Self::Value, Self::Error>;

    /// [`sum`](Self::sum) without the terms whose coefficient is 0.
    ///
    /// # Errors
    /// Those of [`sum`](Self::sum).
    fn sum_of<'v>(
        &mut self,
        terms: impl IntoIterator<Item = (f64, &'v Self::Term)>,
        spare: Option<Self::Value>,
    ) -> Result<Self::Value, Self::Error>
    where
        Self::Term: 'v,
    {
        let terms = terms.into_iter().filter(|(c, _)| *c != 0.0);
        self.sum(&terms.collect::<Vec<_>>(), spare)
    }
}

/// So many numbers in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers(pub(super) usize);

impl Arithmetic for Numbers {
    type Value = Vec<f32>;
    type Term = [f32];
    type Error = MethodError;

    fn term(value: &Vec<f32>) -> &[f32] {
        value
    }

    fn sum(
        &mut self,
        terms: &[(f64, &[f32])],
        spare: Option<Vec<f32>>,
    ) -> Result<Vec<f32>, MethodError> {
        let mut sum = spare.unwrap_or_else(|| vec![0.0; self.0]);
        sum.fill(0.0);
        for (coefficient, term) in terms {
            add(&mut sum, *coefficient, term);
        }
        Ok(sum)
    }

    fn clip(&mut self, mut value: Vec<f32>, limit: f32) -> Result<Vec<f32>, MethodError> {
        for x in &mut value {
            *x = x.clamp(-limit, limit);
        }
        Ok(value)
    }
}

/// Adds `coefficient * term` to `sum`.
pub(super) fn add(sum: &mut [f32], coefficient: f64, term: &[f32]) {
    let coefficient = coefficient as f32;
    sum.iter_mut()
        .zip(term)
        .for_each(|(sum, x)| *sum += coefficient * x);
}
