//! Runs passes in order, and verifies every graph after each.

use dlc_ir::{Module, verify};

use crate::context::{Pass, PassContext};
use crate::error::PassError;
use crate::report::PassReport;
use crate::sums::{Shard, ShardScores};

/// A pass that ran.
#[derive(Debug)]
pub struct PassRun {
    /// Its name.
    pub name: &'static str,
    /// Its options.
    pub options: serde_json::Value,
    /// Its report.
    pub report: PassReport,
}

/// Refuses what [`run_passes`] would refuse by the passes' options and the shape of `module` alone.
///
/// # Errors
/// The first error of a pass.
pub fn rehearse_passes(module: &Module, passes: &[Box<dyn Pass + '_>]) -> Result<(), PassError> {
    let mut module = module.clone();
    passes.iter().try_for_each(|pass| {
        pass.rehearse(&mut module)
            .map_err(|error| error.within(pass.name()))
    })
}

/// Runs `passes` on `module`.
///
/// # Errors
/// The first error of a pass, or [`PassError::Broken`] if one leaves a graph that doesn't verify.
pub fn run_passes(
    module: &mut Module,
    passes: &[Box<dyn Pass + '_>],
    cx: &mut PassContext<'_>,
) -> Result<Vec<PassRun>, PassError> {
    passes
        .iter()
        .map(|pass| run_pass(module, &**pass, cx))
        .collect()
}

/// Scores a shard of the samples that `pass` would score.
///
/// # Errors
/// Those of [`Pass::score_shard`].
pub fn score_shard(
    module: &Module,
    pass: &dyn Pass,
    shard: Shard,
    cx: &PassContext<'_>,
) -> Result<ShardScores, PassError> {
    cx.progress.phase(pass.name());
    pass.score_shard(module, shard, cx)
        .map_err(|error| error.within(pass.name()))
}

/// Runs one pass on `module`.
///
/// # Errors
/// As [`run_passes`].
pub fn run_pass(
    module: &mut Module,
    pass: &dyn Pass,
    cx: &mut PassContext<'_>,
) -> Result<PassRun, PassError> {
    cx.progress.phase(pass.name());
    let report = pass
        .run(module, cx)
        .map_err(|error| error.within(pass.name()))?;
    for graph in &module.graphs {
        verify::check(graph, &module.weights).map_err(|source| PassError::Broken {
            pass: pass.name(),
            source,
        })?;
    }
    cx.module_key = format!("{} > {} {}", cx.module_key, pass.name(), pass.options());
    Ok(PassRun {
        name: pass.name(),
        options: pass.options(),
        report,
    })
}
