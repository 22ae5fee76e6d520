//! Scores a shard of the calibration samples by Fisher information, for a pass of another run.

use dlc_passes::sums::Shard;
use dlc_passes::{PassContext, ScoreCache, Sources, run_passes, score_shard};

use super::compile::{Opened, calibration, check_taker, identity, open, passes, pool};
use super::error::PipelineError;
use super::monitor::Monitor;
use super::request::CompileRequest;
use super::score_file::{Description, encode};

/// What was scored.
#[derive(Debug)]
pub struct ScoreOutcome {
    /// The bytes of the file.
    pub file: Vec<u8>,
    /// The pass that takes it.
    pub pass: &'static str,
    /// How many samples the shard has.
    pub samples: usize,
    /// How many all shards have.
    pub of: usize,
    /// Mean loss of the shard's samples, in nats.
    pub loss: f64,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Refuses what can be refused before any file is read: passes and their options, and passes of
/// which none takes scores.
///
/// # Errors
/// Those of [`score`].
pub fn check_scoring(request: &CompileRequest) -> Result<(), PipelineError> {
    check_taker(&passes(request, Sources::NONE)?, "--pass")
}

/// Scores the samples of `shard` for the first pass of `request` that takes scores, after the passes
/// before it. Output, profile and deployment target of the request don't matter.
///
/// # Errors
/// The first error of any stage.
pub fn score(
    request: &CompileRequest,
    shard: Shard,
    cache: Option<&dyn ScoreCache>,
    monitor: &dyn Monitor,
) -> Result<ScoreOutcome, PipelineError> {
    let unfed = passes(request, Sources::NONE)?;
    check_taker(&unfed, "--pass")?;
    let pool = pool(request.threads)?;
    let Opened {
        mut module,
        source,
        adapters,
        mut warnings,
        ..
    } = open(request, &unfed, &pool, monitor)?;
    let calibration = calibration(&module);
    let sources = Sources {
        calibration: &calibration,
        adapters: &adapters,
        allow_nan: request.allow_nan,
        ..Sources::NONE
    };
    let mut passes = passes(request, sources)?;
    let taker = passes.iter().position(|pass| pass.takes_scores());
    let after = passes.split_off(taker.unwrap_or_default());
    let mut cx = PassContext {
        progress: monitor,
        cache,
        module_key: identity(&source, &module),
        pool: &pool,
    };
    run_passes(&mut module, &passes, &mut cx)?;
    let pass = &*after[0];
    let scores = score_shard(&module, pass, shard, &cx)?;
    warnings.extend(calibration.warnings());
    let description = Description::new(&source.name, &scores.request, shard);
    Ok(ScoreOutcome {
        file: encode(&description, &scores)?,
        pass: pass.name(),
        samples: scores.sums.samples,
        of: scores.request.samples.len(),
        loss: scores.sums.loss(),
        warnings,
    })
}
