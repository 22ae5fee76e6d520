//! The costs that decoding assumes before any were measured, and the name under which measured ones
//! are kept.

use dlc_bundle::Manifest;
use dlc_methods::speculation::CostTable;

/// The table to assume for a bundle that wasn't measured: c is the share of the target's bytes that
/// the draft reads.
pub fn assumed_costs(manifest: &Manifest) -> CostTable {
    let bytes = |graph: &str| {
        let used = manifest
            .weights
            .iter()
            .filter(|weight| weight.graphs.iter().any(|name| name == graph));
        used.fold(0u64, |sum, weight| sum.saturating_add(weight.bytes)) as f64
    };
    let share = bytes("draft") / bytes("target");
    let draft = if share.is_finite() && share > 0.0 {
        share.min(1.0)
    } else {
        1.0
    };
    CostTable {
        draft,
        ..CostTable::default()
    }
}

/// The name under which a bundle's measured costs are kept: what was measured, and on what.
pub fn cost_key(manifest: &Manifest, backend: &str, threads: Option<usize>) -> String {
    let hash = |file: &str| {
        manifest
            .files
            .get(file)
            .map_or("-", |record| record.sha256.as_str())
    };
    let graphs: Vec<&str> = manifest
        .graphs
        .iter()
        .map(|graph| hash(&graph.file))
        .collect();
    let weights = manifest.weights_files().into_iter().map(hash);
    let weights: Vec<&str> = weights.collect();
    let threads = threads.map_or_else(|| "all".to_owned(), |n| n.to_string());
    format!(
        "decoding costs 1: {} {} on {backend}, {threads} threads, graphs {}",
        manifest.profile.name(),
        weights.join(" "),
        graphs.join(" ")
    )
}
