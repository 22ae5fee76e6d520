//! Weight against weight: whose values differ between two modules, and by how much.

use std::cmp::Ordering;

use dlc_ir::{IrError, Weight, WeightTable};
use rayon::prelude::*;
use serde::Serialize;

/// Elements that are read at a time.
const TILE: usize = 1 << 16;

/// A weight whose values differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WeightDifference {
    /// Its name.
    pub weight: String,
    /// Euclidean norm of the difference.
    pub norm: f64,
    /// The same as a share of the first one's norm; infinite, in JSON null, if that is 0.
    pub relative: f64,
}

/// The weights of both tables, by name and shape, whose values differ, in the order of `a`. Weights
/// without data are left out. Types don't count, only numbers do. Runs on rayon's current pool.
///
/// # Errors
/// What the IR says of a weight that can't be read.
pub fn compare_weights(a: &WeightTable, b: &WeightTable) -> Result<Vec<WeightDifference>, IrError> {
    let pairs = a
        .entries()
        .filter_map(|(_, x)| Some((x, &b[b.find(&x.name)?])));
    let pairs: Vec<(&Weight, &Weight)> = pairs
        .filter(|(x, y)| x.shape == y.shape && x.expr().is_some() && y.expr().is_some())
        .collect();
    pairs
        .par_iter()
        .filter_map(|(x, y)| difference(x, y).transpose())
        .collect()
}

fn difference(x: &Weight, y: &Weight) -> Result<Option<WeightDifference>, IrError> {
    let (mut moved, mut before, mut differs) = (0f64, 0f64, false);
    let size = TILE.min(x.elements());
    let (mut a, mut b) = (vec![0.0; size], vec![0.0; size]);
    for from in (0..x.elements()).step_by(TILE) {
        let n = TILE.min(x.elements() - from);
        let (a, b) = (&mut a[..n], &mut b[..n]);
        x.read_f32(from, a)?;
        y.read_f32(from, b)?;
        before += a.iter().map(|&p| f64::from(p).powi(2)).sum::<f64>();
        for (&p, &q) in a.iter().zip(&*b) {
            // A NaN on both sides is no difference, on one side it makes the norm NaN.
            if p.partial_cmp(&q) != Some(Ordering::Equal) && !(p.is_nan() && q.is_nan()) {
                differs = true;
                moved += (f64::from(q) - f64::from(p)).powi(2);
            }
        }
    }
    let norm = moved.sqrt();
    Ok(differs.then(|| WeightDifference {
        weight: x.name.clone(),
        norm,
        relative: norm / before.sqrt(),
    }))
}
