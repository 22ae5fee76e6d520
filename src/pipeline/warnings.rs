//! What a user should know of a bundle that is good all the same: files that are missing, broken or
//! not heeded.
//!
//! Each check reads the checkpoint and the module and says what won't work and how to mend it, one
//! sentence or two each. Never an error.

use std::time::UNIX_EPOCH;

use dlc_errors::{Fault, Faulty};
use dlc_ir::{Module, Task};
use dlc_passes::Samplers;
use dlc_runtime::{ChatMessage, ChatTemplate, TextTokenizer};

use super::samplers::DiffusionSamplers;
use crate::checkpoint::Checkpoint;

/// One kind of warning: none, one or several sentences.
type Check = fn(&Checkpoint, &Module) -> Vec<String>;

/// In the order in which they are shown.
const CHECKS: &[Check] = &[tokenizer, chat_template, unheeded_keys, scheduler];

/// What the checks say of a checkpoint and the module that was imported from it, before its passes.
pub(super) fn warnings(checkpoint: &Checkpoint, module: &Module) -> Vec<String> {
    CHECKS
        .iter()
        .flat_map(|check| check(checkpoint, module))
        .collect()
}

/// The tokenizer is loaded and tried as `dlc run` does it.
fn tokenizer(checkpoint: &Checkpoint, module: &Module) -> Vec<String> {
    let model = &module.model;
    if model.diffusion.is_some() {
        return vec![];
    }
    let lost = if model.task == Task::TextGeneration {
        "`dlc run` and calibration with text won't work"
    } else {
        "`dlc run --text` won't work"
    };
    let path = checkpoint.folder().join("tokenizer.json");
    if !path.exists() {
        return vec![format!(
            "no tokenizer.json: {lost}; put it beside config.json"
        )];
    }
    match TextTokenizer::load(&path) {
        Ok(tokenizer) => tokenizer.unheeded_settings().to_vec(),
        Err(error) => vec![format!("{error}: {lost}; put the model's own file there")],
    }
}

/// The chat template writes two conversations, with the question and the answer's beginning that
/// `dlc run --chat` has.
fn chat_template(checkpoint: &Checkpoint, module: &Module) -> Vec<String> {
    if module.model.task != Task::TextGeneration {
        return vec![];
    }
    let lost = "`dlc run --chat` won't work";
    let template = match ChatTemplate::load(checkpoint.folder()) {
        Ok(template) => template,
        // A model without a template isn't made for conversations.
        Err(error) if error.fault() == Fault::Unsupported => return vec![],
        Err(error) => return vec![format!("{error}: {lost}")],
    };
    let turns = [("user", "Hello"), ("assistant", "Hi"), ("user", "Bye")]
        .map(|(role, content)| ChatMessage::new(role, content));
    let mut warnings = template.unheeded().to_vec();
    for (turns, lost) in [
        (&turns[..1], lost),
        (&turns[..], "`dlc run --chat` answers only once"),
    ] {
        if let Err(error) = template.render(turns, true, UNIX_EPOCH) {
            warnings.push(format!("{error}: {lost}"));
            break;
        }
    }
    warnings
}

/// What side files say and nobody heeds.
fn unheeded_keys(checkpoint: &Checkpoint, module: &Module) -> Vec<String> {
    checkpoint.warnings(module.model.task)
}

/// A scheduler that images can't be sampled with.
fn scheduler(checkpoint: &Checkpoint, _: &Module) -> Vec<String> {
    /// A number of steps that every scheduler can do.
    const STEPS: usize = 10;
    let Some(path) = checkpoint.scheduler() else {
        return vec![];
    };
    let plan = DiffusionSamplers::new(Some(path.to_owned())).plan(None, STEPS);
    plan.err()
        .map(|error| format!("`dlc sample` can't follow the scheduler as it is: {error}"))
        .into_iter()
        .collect()
}
