//! How much a merge changes a weight, and whether its numbers can be stored, read a tile at a time.

use dlc_ir::{IrError, WeightTable};

use super::merge::Merge;
use crate::report::WeightChange;

/// Elements that are read at a time.
const TILE: usize = 1 << 16;

/// What a merge does to a weight.
#[derive(Debug)]
pub(super) struct Measured {
    pub change: WeightChange,
    /// How many merged values are NaN.
    nans: usize,
    /// How many are too large for the weight's type.
    overflows: usize,
}

/// Norm of the change that `merge` makes to its weight, the share of entries that it leaves alone,
/// and how many can't be stored.
pub(super) fn measure(merge: &Merge, weights: &WeightTable) -> Result<Measured, IrError> {
    let weight = &weights[merge.weight];
    let base = weight.unrounded()?;
    let merged = (!merge.is_sum()).then(|| merge.apply(base.clone()));
    let limit = weight.dtype.overflow();
    let (mut before, mut moved, mut at_rest, mut nans, mut overflows) = (0.0, 0.0, 0, 0, 0);
    let (mut old, mut new) = (vec![0.0; TILE], vec![0.0; TILE]);
    for from in (0..weight.elements()).step_by(TILE) {
        let n = TILE.min(weight.elements() - from);
        let (old, new) = (&mut old[..n], &mut new[..n]);
        base.read_f32(from, old);
        before += square(old);
        match (&merged, &merge.delta) {
            (Some(merged), _) => {
                merged.read_f32(from, new);
                old.iter_mut()
                    .zip(&*new)
                    .for_each(|(old, new)| *old = new - *old);
                moved += square(old);
                at_rest += count(old, |x| x == 0.0);
            }
            (None, Some(change)) => {
                change.read_f32(from, new);
                moved += square(new);
                at_rest += count(new, |x| x == 0.0);
                new.iter_mut().zip(&*old).for_each(|(new, old)| *new += old);
            }
            (None, None) => new.copy_from_slice(old),
        }
        // Counted together first: there are none in nearly every tile.
        if count(new, |x| x.abs() < limit) < n {
            nans += count(new, f32::is_nan);
            overflows += count(new, |x| x.abs() >= limit);
        }
    }
    let (norm, elements) = (moved.sqrt(), weight.elements().max(1) as f64);
    let frozen = merge.rests.then_some(at_rest as f64 / elements);
    let change = WeightChange {
        weight: weight.name.clone(),
        norm,
        relative: norm / before.sqrt(),
        frozen,
    };
    Ok(Measured {
        change,
        nans,
        overflows,
    })
}

impl Measured {
    /// Why the merged weight can't be stored; nothing if it can.
    pub fn problem(&self, merge: &Merge, weights: &WeightTable) -> Option<String> {
        let (name, dtype) = (&self.change.weight, weights[merge.weight].dtype);
        let reason = if merge.scales_rows() {
            ": DoRA divides rows by their norm, and some row has none"
        } else {
            ""
        };
        match (self.nans, self.overflows) {
            (0, 0) => None,
            (0, n) => Some(format!(
                "{n} merged values of {name} are too large for {dtype}; merge it with a smaller weight, or take a wider type"
            )),
            (n, 0) => Some(format!("{n} merged values of {name} are NaN{reason}")),
            (nans, n) => Some(format!(
                "of the merged values of {name} {n} are too large for {dtype} and {nans} are NaN{reason}"
            )),
        }
    }
}

fn square(numbers: &[f32]) -> f64 {
    numbers.iter().map(|&x| f64::from(x).powi(2)).sum()
}

/// How many numbers of a tile `is` holds for, in lanes as wide as theirs.
fn count(numbers: &[f32], is: impl Fn(f32) -> bool) -> usize {
    numbers.iter().map(|&x| u32::from(is(x))).sum::<u32>() as usize
}
