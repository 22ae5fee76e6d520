//! How much a merge changes a weight, read a tile at a time.

use dlc_ir::{Expr, WeightTable};

use super::modules::Merge;
use crate::error::PassError;
use crate::report::WeightChange;

/// Elements that are read at a time.
const TILE: usize = 1 << 16;

/// Norm of the change that `merge` makes to its weight, and the share of entries that it leaves alone.
pub(super) fn change(merge: &Merge, weights: &WeightTable) -> Result<WeightChange, PassError> {
    let weight = &weights[merge.weight];
    let merged = weight.expr().map(|base| merge.apply(base.clone()));
    let (mut before, mut moved) = (0.0, 0.0);
    let (mut old, mut new) = (vec![0.0; TILE], vec![0.0; TILE]);
    for from in (0..weight.elements()).step_by(TILE) {
        let n = TILE.min(weight.elements() - from);
        weight.read_f32(from, &mut old[..n])?;
        if let Some(merged) = &merged {
            merged.read_f32(from, &mut new[..n]);
        }
        before += old[..n].iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
        moved += old[..n].iter().zip(&new[..n]).map(|(&x, &y)| f64::from(y - x).powi(2)).sum::<f64>();
    }
    let frozen = merge.magnitude.as_ref().map(|product| share_at_rest(product, weight.elements()));
    let norm = moved.sqrt();
    Ok(WeightChange { weight: weight.name.clone(), norm, relative: norm / before.sqrt(), frozen })
}

/// Share of entries that relu makes 0.
fn share_at_rest(product: &Expr, elements: usize) -> f64 {
    let mut numbers = vec![0.0; TILE];
    let mut at_rest = 0;
    for from in (0..elements).step_by(TILE) {
        let tile = &mut numbers[..TILE.min(elements - from)];
        product.read_f32(from, tile);
        at_rest += tile.iter().filter(|x| **x <= 0.0).count();
    }
    at_rest as f64 / elements.max(1) as f64
}
