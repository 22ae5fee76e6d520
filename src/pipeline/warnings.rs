//! What a user should know of a bundle that is good all the same: files that are missing, broken or not heeded.
//!
//! Each check reads the checkpoint and the module and says what won't work and how to mend it, one sentence or two each. Never an error.

use dlc_ir::{Module, Task};

use crate::checkpoint::Checkpoint;

/// One kind of warning: none, one or several sentences.
type Check = fn(&Checkpoint, &Module) -> Vec<String>;

/// In the order in which they are shown.
const CHECKS: &[Check] = &[missing_tokenizer];

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
