//! GPTQ (Frantar et al., arXiv 2210.17323): columns are quantised one after the other, and what
//! rounding one does to the product is made good by those that follow.
//!
//! Groups stand still (no act-order), and a group's scale and zero point are found when its first
//! column is reached, from the weights as they are then, weighted as in `weighted.rs`. Rows don't
//! depend on each other.

use dlc_eval::{Array, Transposed, product};
use dlc_ir::Weight;
use rayon::prelude::*;

use super::factor::{Square, inverse_factor};
use super::held::{GroupFit, HeldMatrix};
use super::weighted::{self, Layout};
use crate::error::PassError;

/// Share of the mean diagonal that is added to the diagonal of `H`.
const DAMPING: f32 = 0.01;
/// By how much it grows until there is a factor, and how often.
const GROWTH: f32 = 10.0;
const TRIES: usize = 3;
/// Columns whose effect on later ones is kept back and then applied at once; whole groups.
const COLUMNS: usize = 128;
/// Numbers of a matrix that are worked on at a time.
const ENTRIES: usize = 1 << 26;

/// Codes and fits of a row.
type Row = (Vec<u8>, Vec<GroupFit>);

/// What is known of the inputs of a product: `X'X / n`, and its factor.
pub(super) struct Curvature {
    diagonal: Vec<f32>,
    factor: Square,
}

impl Curvature {
    /// Of the inputs `[n, columns]`; none if they are NaN or infinite.
    pub fn of(inputs: &Array) -> Result<Option<Self>, PassError> {
        let &[count, size] = inputs.shape() else {
            return Ok(None);
        };
        let squares = product(inputs, inputs, Transposed::Left)?;
        let mut data = squares.into_f32().unwrap_or_default();
        let share = 1.0 / count.max(1) as f32;
        for x in &mut data {
            *x *= share;
        }
        let diagonal: Vec<f32> = data.iter().step_by(size + 1).copied().collect();
        let mean = diagonal.iter().sum::<f32>() / size.max(1) as f32;
        // Inputs that are all 0 leave every rounding as good as another.
        let mut damping = DAMPING * if mean > 0.0 { mean } else { 1.0 };
        for _ in 0..TRIES {
            let mut damped = data.clone();
            let on_diagonal = damped.iter_mut().step_by(size + 1);
            on_diagonal.for_each(|x| *x += damping);
            let damped = Square { size, data: damped };
            if let Some(factor) = inverse_factor(damped)? {
                return Ok(Some(Self { diagonal, factor }));
            }
            damping *= GROWTH;
        }
        Ok(None)
    }

    /// The codes of `weight`, a matrix whose inputs these are.
    pub fn quantize(&self, weight: &Weight, layout: Layout) -> Result<HeldMatrix, PassError> {
        let columns = self.factor.size;
        let mut made = HeldMatrix::new("gptq", layout.format, columns);
        let rows_at_once = (ENTRIES / columns).max(1);
        for start in (0..weight.elements()).step_by(rows_at_once * columns) {
            let count = (rows_at_once * columns).min(weight.elements() - start);
            let mut entries = vec![0.0; count];
            weight.read_f32(start, &mut entries)?;
            for (codes, fits) in self.rows(&mut entries, layout)? {
                made.push(&codes, &fits);
            }
        }
        Ok(made)
    }

    /// Codes and fits of rows, which are used up.
    fn rows(&self, entries: &mut [f32], layout: Layout) -> Result<Vec<Row>, PassError> {
        let size = self.factor.size;
        let mut rows = vec![(Vec::with_capacity(size), Vec::new()); entries.len() / size];
        for start in (0..size).step_by(COLUMNS) {
            let end = size.min(start + COLUMNS);
            let corner = self.factor.part(start..end, start..end)?;
            let corner = corner.as_f32().unwrap_or_default();
            let step = Step {
                corner,
                importance: &self.diagonal[start..end],
                layout,
            };
            let errors: Vec<Vec<f32>> = entries
                .par_chunks_mut(size)
                .zip(&mut rows)
                .map(|(entries, (codes, fits))| step.run(&mut entries[start..end], codes, fits))
                .collect();
            if end < size {
                let errors = Array::f32([rows.len(), end - start], errors.concat())?;
                let later = self.factor.part(start..end, end..size)?;
                let owed = product(&errors, &later, Transposed::None)?;
                let owed = owed.as_f32().unwrap_or_default();
                entries
                    .par_chunks_mut(size)
                    .zip(owed.par_chunks(size - end))
                    .for_each(|(row, owed)| {
                        let later = row[end..].iter_mut();
                        later.zip(owed).for_each(|(w, o)| *w -= o);
                    });
            }
        }
        Ok(rows)
    }
}

/// Some columns, and their part of the factor.
struct Step<'a> {
    corner: &'a [f32],
    importance: &'a [f32],
    layout: Layout,
}

impl Step<'_> {
    /// Adds the codes and fits of a row, and returns its errors in units of the factor's diagonal.
    fn run(&self, entries: &mut [f32], codes: &mut Vec<u8>, fits: &mut Vec<GroupFit>) -> Vec<f32> {
        let (width, size) = (entries.len(), self.layout.format.group_size);
        let mut errors = vec![0.0; width];
        for first in (0..width).step_by(size) {
            let end = width.min(first + size);
            let (group, importance) = (&entries[first..end], &self.importance[first..end]);
            let fit = weighted::fit(self.layout, group, importance);
            fits.push(fit);
            for i in first..end {
                let code = fit.code(entries[i], self.layout.format.largest_code());
                codes.push(code);
                let factors = &self.corner[i * width..(i + 1) * width];
                let error = (entries[i] - fit.entry(code)) / factors[i];
                errors[i] = error;
                let later = entries[i + 1..].iter_mut().zip(&factors[i + 1..]);
                later.for_each(|(w, u)| *w -= error * u);
            }
        }
        errors
    }
}
