//! Fits a schedule to a budget of multiply-adds, or of graphs.

use std::collections::BTreeMap;

use dlc_ir::Reuse;

use super::close::{Step, close, macs_share};
use super::net::SkipNet;
use super::subnet::patterns;
use crate::error::PassError;

/// How far from the share asked for a schedule may be (DiP-GO, arXiv 2410.16942).
pub(crate) const TOLERANCE: f64 = 0.0125;
/// Bisections of the threshold: more than enough to part any two scores of a table.
const BISECTIONS: usize = 64;

/// A table, and the share of multiply-adds that it keeps.
#[derive(Debug, Clone)]
pub(crate) struct Fit {
    pub table: Vec<Vec<bool>>,
    pub macs: f64,
}

/// The table that computes what scores above a threshold, found by bisection so that the
/// multiply-adds kept are nearest to `share`. The first step always computes everything. Budgets
/// hold for the table with its patterns merged to at most `most`.
///
/// # Errors
/// [`PassError::Options`] if no threshold comes within 1.25% of the budget, with the nearest share
/// that one does.
pub(crate) fn threshold(
    pass: &'static str,
    net: &SkipNet<'_>,
    reuse: Reuse,
    scores: &[Vec<f64>],
    share: f64,
    most: Option<usize>,
) -> Result<Fit, PassError> {
    let table = |border: f64| -> Vec<Vec<bool>> {
        scores
            .iter()
            .enumerate()
            .map(|(step, row)| {
                row.iter()
                    .map(|score| step == 0 || *score > border)
                    .collect()
            })
            .collect()
    };
    let fit = |border: f64| {
        let table = table(border);
        let macs = macs_share(net, &merge_patterns(net, reuse, &table, most));
        Fit { table, macs }
    };
    let all = || scores.iter().flatten().copied();
    let (mut low, mut high) = (
        all().fold(f64::INFINITY, f64::min) - 1.0,
        all().fold(f64::NEG_INFINITY, f64::max) + 1.0,
    );
    let mut best = fit(low);
    for _ in 0..BISECTIONS {
        let border = f64::midpoint(low, high);
        let next = fit(border);
        if next.macs > share {
            low = border;
        } else {
            high = border;
        }
        if (next.macs - share).abs() < (best.macs - share).abs() {
            best = next;
        }
    }
    if (best.macs - share).abs() <= TOLERANCE {
        return Ok(best);
    }
    let problem = format!(
        "no schedule keeps {share:.3} of the multiply-adds; the nearest keeps {:.3}: ask for macs={:.3}",
        best.macs, best.macs
    );
    Err(PassError::Options { pass, problem })
}

/// The steps of a table that need no more than `most` graphs, if there is a limit: while there are
/// too many, the two patterns whose union adds least become one.
pub(crate) fn merge_patterns(
    net: &SkipNet<'_>,
    reuse: Reuse,
    table: &[Vec<bool>],
    most: Option<usize>,
) -> Vec<Step> {
    let Some(most) = most else {
        return close(net, reuse, table);
    };
    let freed = net.freed();
    // What isn't needed after all isn't worth a distinction.
    let mut table: Vec<Vec<bool>> = close(net, reuse, table)
        .into_iter()
        .map(|s| s.computed)
        .collect();
    loop {
        let steps = close(net, reuse, &table);
        let mut rows: BTreeMap<Vec<bool>, usize> = BTreeMap::new();
        table
            .iter()
            .skip(1)
            .for_each(|row| *rows.entry(row.clone()).or_default() += 1);
        let rows: Vec<(Vec<bool>, usize)> = rows.into_iter().collect();
        let pair = if patterns(&steps) > most {
            cheapest_pair(&rows, &freed)
        } else {
            None
        };
        let Some((a, b)) = pair else { return steps };
        // Two rows fewer, one more: this ends.
        let union: Vec<bool> = rows[a]
            .0
            .iter()
            .zip(&rows[b].0)
            .map(|(x, y)| *x || *y)
            .collect();
        for row in table
            .iter_mut()
            .skip(1)
            .filter(|row| **row == rows[a].0 || **row == rows[b].0)
        {
            row.clone_from(&union);
        }
    }
}

/// The two rows whose union adds the least, weighed by how often they run.
fn cheapest_pair(rows: &[(Vec<bool>, usize)], freed: &[f64]) -> Option<(usize, usize)> {
    let added = |own: &(Vec<bool>, usize), other: &(Vec<bool>, usize)| -> f64 {
        let cost: f64 = own
            .0
            .iter()
            .zip(&other.0)
            .zip(freed)
            .filter(|((x, y), _)| !**x && **y)
            .map(|(_, share)| share)
            .sum();
        cost * own.1 as f64
    };
    let pairs = (0..rows.len()).flat_map(|a| (a + 1..rows.len()).map(move |b| (a, b)));
    let costs = pairs.map(|(a, b)| {
        (
            added(&rows[a], &rows[b]) + added(&rows[b], &rows[a]),
            (a, b),
        )
    });
    costs
        .min_by(|x, y| x.0.total_cmp(&y.0))
        .map(|(_, pair)| pair)
}
