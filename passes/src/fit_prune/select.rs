//! Chooses the units to drop.

use dlc_ir::Graph;

use super::units::Unit;

/// Positions of the units that may be dropped: those outside of the first and last protected
/// layers.
pub(super) fn candidates(
    graph: &Graph,
    units: &[Unit],
    protect_first: usize,
    protect_last: usize,
) -> Vec<usize> {
    let mut layers: Vec<u32> = graph.blocks().map(|(_, b)| b.layer).collect();
    layers.dedup();
    let free = layers
        .get(protect_first..layers.len().saturating_sub(protect_last))
        .unwrap_or_default();
    (0..units.len())
        .filter(|&i| free.contains(&units[i].layer))
        .collect()
}

/// How many of `units` go when the share `keep` of them stays, rounded up: at least one.
pub(super) fn drop_for(units: usize, keep: f64) -> usize {
    // 20 * 0.55 is a little more than 11 in binary, and still means 11.
    let kept = (units as f64 * keep - 1e-9).ceil().max(1.0) as usize;
    units.saturating_sub(kept)
}

/// The `drop` candidates of lowest score, in ascending order of position. Of equal scores the later
/// unit goes first.
pub fn select(scores: &[f64], candidates: &[usize], drop: usize) -> Vec<usize> {
    let mut order = candidates.to_vec();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(b.cmp(&a)));
    order.truncate(drop);
    order.sort_unstable();
    order
}

#[cfg(test)]
mod tests {
    use super::{drop_for, select};

    #[test]
    fn keeps_at_least_the_share_that_was_asked_for() {
        let cases = [
            (12, 0.6, 4),
            (30, 0.6, 12),
            (20, 0.55, 9),
            (40, 0.55, 18),
            (25, 0.28, 18),
            (10, 1.0, 0),
            (3, 0.01, 2),
            (1, 1e-12, 0),
            (0, 0.5, 0),
        ];
        for (units, keep, drop) in cases {
            assert_eq!(drop_for(units, keep), drop, "{units} units, keep={keep}");
        }
    }

    #[test]
    fn drops_the_lowest_scores_and_later_units_first_among_equals() {
        assert_eq!(
            select(&[3.0, 1.0, 2.0, 1.0, 1.0], &[0, 1, 2, 3, 4], 2),
            [3, 4]
        );
        assert_eq!(select(&[3.0, 1.0, 2.0, 1.0, 1.0], &[0, 1, 2], 2), [1, 2]);
        assert_eq!(select(&[0.0, 1.0], &[1], 0), [] as [usize; 0]);
    }
}
