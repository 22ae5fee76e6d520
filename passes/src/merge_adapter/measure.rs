//! How much a merge changes a weight, read a tile at a time.

use dlc_ir::WeightTable;

use super::modules::Merge;
use crate::error::PassError;
use crate::report::WeightChange;

/// Elements that are read at a time.
const TILE: usize = 1 << 16;

/// Norm of the change that `merge` makes to its weight, and the share of entries that it leaves alone.
pub(super) fn change(merge: &Merge, weights: &WeightTable) -> Result<WeightChange, PassError> {
    let weight = &weights[merge.weight];
    let merged = weight.expr().filter(|_| !merge.is_sum()).map(|base| merge.apply(base.clone()));
    let (mut before, mut moved, mut at_rest) = (0.0, 0.0, 0);
    let (mut old, mut delta) = (vec![0.0; TILE], vec![0.0; TILE]);
    for from in (0..weight.elements()).step_by(TILE) {
        let n = TILE.min(weight.elements() - from);
        let (old, delta) = (&mut old[..n], &mut delta[..n]);
        weight.read_f32(from, old)?;
        match (&merged, &merge.delta) {
            (Some(merged), _) => {
                merged.read_f32(from, delta);
                delta.iter_mut().zip(&*old).for_each(|(new, old)| *new -= old);
            }
            (None, Some(change)) => change.read_f32(from, delta),
            (None, None) => delta.fill(0.0),
        }
        before += square(old);
        moved += square(delta);
        at_rest += delta.iter().filter(|x| **x == 0.0).count();
    }
    let (norm, elements) = (moved.sqrt(), weight.elements().max(1) as f64);
    let frozen = merge.rests.then_some(at_rest as f64 / elements);
    Ok(WeightChange { weight: weight.name.clone(), norm, relative: norm / before.sqrt(), frozen })
}

fn square(numbers: &[f32]) -> f64 {
    numbers.iter().map(|&x| f64::from(x).powi(2)).sum()
}
