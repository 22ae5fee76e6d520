//! What a user should know of a bundle that is good all the same: files that are missing, broken or not heeded.
//!
//! Each check reads the checkpoint and the module and says what won't work and how to mend it, one sentence or two each. Never an error.

use dlc_ir::{Module, Task};
use dlc_passes::Samplers;

use super::samplers::DiffusionSamplers;
use crate::checkpoint::Checkpoint;

/// One kind of warning: none, one or several sentences.
type Check = fn(&Checkpoint, &Module) -> Vec<String>;

/// In the order in which they are shown.
const CHECKS: &[Check] = &[missing_tokenizer, unheeded_keys, scheduler];

/// What the checks say of a checkpoint and the module that was imported from it, before its passes.
pub(super) fn warnings(checkpoint: &Checkpoint, module: &Module) -> Vec<String> {
    CHECKS.iter().flat_map(|check| check(checkpoint, module)).collect()
}

fn missing_tokenizer(checkpoint: &Checkpoint, module: &Module) -> Vec<String> {
    let model = &module.model;
    if model.diffusion.is_some() || checkpoint.folder().join("tokenizer.json").exists() {
        return vec![];
    }
    let lost = if model.task == Task::TextGeneration { "`dlc run` and calibration with text won't work" } else { "`dlc run --text` won't work" };
    vec![format!("no tokenizer.json: {lost}; put it beside config.json")]
}

/// What side files say and nobody heeds.
fn unheeded_keys(checkpoint: &Checkpoint, module: &Module) -> Vec<String> {
    checkpoint.warnings(module.model.task)
}

/// A scheduler that images can't be sampled with.
fn scheduler(checkpoint: &Checkpoint, _: &Module) -> Vec<String> {
    /// A number of steps that every scheduler can do.
    const STEPS: usize = 10;
    let Some(path) = checkpoint.scheduler() else { return vec![] };
    let plan = DiffusionSamplers::new(Some(path.to_owned())).plan(None, STEPS);
    plan.err().map(|error| format!("`dlc sample` can't follow the scheduler as it is: {error}")).into_iter().collect()
}
