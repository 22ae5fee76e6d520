//! Products of matrices outside of graphs.

use candle_core::Tensor;

use crate::array::Array;
use crate::error::EvalError;

/// Which factor of a product is taken with rows and columns exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transposed {
    /// None: `a b`.
    None,
    /// The left one: `a' b`.
    Left,
    /// The right one: `a b'`.
    Right,
}

/// The product of two matrices of numbers, `[rows, inner]` and `[inner, columns]` once the factor
/// that is `transposed` is.
///
/// # Errors
/// [`EvalError::Array`] for arrays that aren't such matrices.
pub fn product(a: &Array, b: &Array, transposed: Transposed) -> Result<Array, EvalError> {
    let misfit = || EvalError::Array {
        problem: format!(
            "{:?} and {:?} have no product ({transposed:?})",
            a.shape(),
            b.shape()
        ),
    };
    let multiply = || -> candle_core::Result<Tensor> {
        let (mut left, mut right) = (a.to_tensor()?, b.to_tensor()?);
        match transposed {
            Transposed::None => {}
            Transposed::Left => left = left.t()?,
            Transposed::Right => right = right.t()?,
        }
        left.matmul(&right)
    };
    let made = multiply().map_err(|_| misfit())?;
    Array::from_tensor(&made).map_err(|_| misfit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize, data: &[f32]) -> Array {
        Array::f32([rows, columns], data.to_vec()).unwrap()
    }

    #[test]
    fn either_factor_may_be_transposed() {
        let (a, b) = (
            matrix(2, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            matrix(3, 1, &[1.0, 0.0, -1.0]),
        );
        let made = product(&a, &b, Transposed::None).unwrap();
        assert_eq!(
            (made.shape(), made.as_f32()),
            (&[2, 1][..], Some(&[-2.0, -2.0][..]))
        );
        let made = product(&a, &a, Transposed::Right).unwrap();
        assert_eq!(made.as_f32(), Some(&[14.0, 32.0, 32.0, 77.0][..]));
        let made = product(&a, &a, Transposed::Left).unwrap();
        assert_eq!(made.shape(), [3, 3]);
        assert_eq!(made.as_f32().unwrap()[..3], [17.0, 22.0, 27.0]);
        assert!(product(&a, &a, Transposed::None).is_err());
    }
}
