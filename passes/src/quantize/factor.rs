//! The triangular factor that GPTQ works with: `U`, upper, with `U'U = H^-1`.
//!
//! `H = R R'` with `R` upper triangular, from the last column to the first, and `U = R^-1`: one
//! factorisation and one triangular inverse, in blocks, so that nearly all work is in products.

use dlc_eval::{Array, Transposed, product};

use crate::error::PassError;

/// Columns of a block.
const BLOCK: usize = 128;

/// A square matrix, row by row.
pub(super) struct Square {
    pub size: usize,
    pub data: Vec<f32>,
}

impl Square {
    fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.size..(row + 1) * self.size]
    }

    /// Rows `rows` and columns `columns` as a matrix of its own.
    pub fn part(
        &self,
        rows: std::ops::Range<usize>,
        columns: std::ops::Range<usize>,
    ) -> Result<Array, PassError> {
        let shape = [rows.len(), columns.len()];
        let data = rows.flat_map(|row| self.row(row)[columns.clone()].iter().copied());
        Ok(Array::f32(shape, data.collect())?)
    }

    /// Puts `part` at `row`, `column`: what is there already, combined with it.
    fn put(&mut self, (row, column): (usize, usize), part: &Array, combine: fn(&mut f32, f32)) {
        let (&[_, columns], Some(data)) = (part.shape(), part.as_f32()) else {
            return;
        };
        for (offset, from) in data.chunks(columns.max(1)).enumerate() {
            let start = (row + offset) * self.size + column;
            let to = &mut self.data[start..start + columns];
            to.iter_mut().zip(from).for_each(|(to, x)| combine(to, *x));
        }
    }
}

/// `U`, upper triangular with a positive diagonal and `U'U = H^-1`; none if `h` isn't positive
/// definite. What `h` holds below the diagonal isn't read.
pub(super) fn inverse_factor(mut h: Square) -> Result<Option<Square>, PassError> {
    let size = h.size;
    let mut inverse = Square {
        size,
        data: vec![0.0; size * size],
    };
    let starts: Vec<usize> = (0..size).step_by(BLOCK).collect();
    for &start in starts.iter().rev() {
        let end = size.min(start + BLOCK);
        let Some(corner) = small_factor(&mut h, start, end) else {
            return Ok(None);
        };
        inverse.put((start, start), &corner, |to, x| *to = x);
        if start > 0 {
            let above = product(&h.part(0..start, start..end)?, &corner, Transposed::Right)?;
            let square = product(&above, &above, Transposed::Right)?;
            h.put((0, start), &above, |to, x| *to = x);
            h.put((0, 0), &square, |to, x| *to -= x);
        }
    }
    for &start in &starts[1..] {
        let end = size.min(start + BLOCK);
        let before = inverse.part(0..start, 0..start)?;
        let corner = inverse.part(start..end, start..end)?;
        let above = product(&before, &h.part(0..start, start..end)?, Transposed::None)?;
        let above = product(&above, &corner, Transposed::None)?;
        inverse.put((0, start), &above, |to, x| *to = -x);
    }
    Ok(Some(inverse))
}

/// Factors the block at `start .. end` of the diagonal of `h` in place, and returns the inverse of
/// its factor; none if it isn't positive definite. Sums in double precision.
fn small_factor(h: &mut Square, start: usize, end: usize) -> Option<Array> {
    let width = end - start;
    let mut factor = vec![0f64; width * width];
    for j in (0..width).rev() {
        for i in (0..=j).rev() {
            let known = (j + 1..width).map(|m| factor[i * width + m] * factor[j * width + m]);
            let rest = f64::from(h.data[(start + i) * h.size + start + j]) - known.sum::<f64>();
            factor[i * width + j] = if i == j {
                if rest <= 0.0 || !rest.is_finite() {
                    return None;
                }
                rest.sqrt()
            } else {
                rest / factor[j * width + j]
            };
        }
    }
    let mut inverse = vec![0f64; width * width];
    for j in 0..width {
        inverse[j * width + j] = 1.0 / factor[j * width + j];
        for i in (0..j).rev() {
            let known = (i + 1..=j).map(|m| factor[i * width + m] * inverse[m * width + j]);
            inverse[i * width + j] = -known.sum::<f64>() / factor[i * width + i];
        }
    }
    for (i, row) in factor.chunks(width).enumerate() {
        let at = (start + i) * h.size + start;
        let to = &mut h.data[at..at + width];
        to.iter_mut().zip(row).for_each(|(to, x)| *to = *x as f32);
    }
    Array::f32([width, width], inverse.iter().map(|x| *x as f32).collect()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `X'X` of numbers that look random, and something on the diagonal.
    fn gram(size: usize) -> Square {
        let rows = size + 40;
        let x: Vec<f32> = (0..rows * size)
            .map(|i| ((i * i) as f32 * 0.37 + i as f32).sin())
            .collect();
        let x = Array::f32([rows, size], x).unwrap();
        let gram = product(&x, &x, Transposed::Left).unwrap();
        let mut data = gram.into_f32().unwrap();
        (0..size).for_each(|i| data[i * size + i] += 1.0);
        Square { size, data }
    }

    #[test]
    fn the_factor_squared_is_the_inverse() {
        for size in [1, 5, BLOCK, BLOCK + 1, 3 * BLOCK - 7] {
            let h = gram(size);
            let whole = h.part(0..size, 0..size).unwrap();
            let u = inverse_factor(h).unwrap().unwrap();
            for (i, row) in u.data.chunks(size).enumerate() {
                assert!(row[..i].iter().all(|x| *x == 0.0) && row[i] > 0.0);
            }
            let u = u.part(0..size, 0..size).unwrap();
            let inverse = product(&u, &u, Transposed::Left).unwrap();
            let one = product(&whole, &inverse, Transposed::None).unwrap();
            for (i, x) in one.as_f32().unwrap().iter().enumerate() {
                let wanted = f32::from(u8::from(i / size == i % size));
                assert!((x - wanted).abs() < 2e-3, "{size}: {x} at {i}");
            }
        }
    }

    #[test]
    fn what_has_no_factor_is_told() {
        let data = vec![1.0, 2.0, 2.0, 1.0];
        assert!(inverse_factor(Square { size: 2, data }).unwrap().is_none());
        let data = vec![f32::NAN; 4];
        assert!(inverse_factor(Square { size: 2, data }).unwrap().is_none());
    }
}
