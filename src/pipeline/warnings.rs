//! What a user should know of a bundle that is good all the same: files that are missing, broken or
//! not heeded.
//!
//! Each check reads the checkpoint and the module and says what won't work and how to mend it, one
//! sentence or two each. Never an error.

use std::collections::BTreeSet;
use std::time::UNIX_EPOCH;

use dlc_errors::{Fault, Faulty};
use dlc_ir::{Diffusion, Module, Sentence, Task};
use dlc_passes::Samplers;
use dlc_runtime::{ChatMessage, ChatTemplate, TextTokenizer};

use super::samplers::DiffusionSamplers;
use crate::checkpoint::{Checkpoint, TokenizerPlace};

/// What `dlc` can do with a bundle beside checking it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// Continue or read texts.
    Run,
    /// Talk.
    Chat,
    /// Make images.
    Sample,
    /// Make images of what a text says.
    Prompt,
}

/// What the checks found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// A sentence or two each.
    pub warnings: Vec<String>,
    pub uses: BTreeSet<Use>,
}

/// One kind of check: none, one or several warnings, and what the bundle can be used for.
type Check = fn(&Checkpoint, &Module, &mut Findings);

/// In the order in which their warnings are shown.
const CHECKS: &[Check] = &[tokenizer, chat_template, unheeded_keys, scheduler];

/// What the checks say of a checkpoint and the module that was imported from it, before its passes.
pub(super) fn findings(checkpoint: &Checkpoint, module: &Module) -> Findings {
    let mut findings = Findings::default();
    for check in CHECKS {
        check(checkpoint, module, &mut findings);
    }
    findings
}

impl Findings {
    fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }
}

/// The tokenizer is loaded and tried as `dlc run` does it.
fn tokenizer(checkpoint: &Checkpoint, module: &Module, findings: &mut Findings) {
    let model = &module.model;
    let prompts = module.graph(Diffusion::TEXT_ENCODER).is_some();
    if model.diffusion.is_some() && !prompts {
        return;
    }
    let lost = match model.task {
        Task::TextGeneration => "`dlc run` and calibration with text won't work",
        Task::ImageGeneration => "`dlc sample --prompt` won't work",
        _ => "`dlc run --text` won't work",
    };
    let mut places = checkpoint.tokenizer_places();
    if places.is_empty() {
        return findings.warn(format!(
            "no tokenizer.json: {lost}; put it beside config.json"
        ));
    }
    places.retain(
        |place| match try_tokenizer(checkpoint, place, lost, prompts) {
            Ok(warnings) => {
                findings.warnings.extend(warnings);
                false
            }
            Err(warning) => {
                findings.warn(warning);
                true
            }
        },
    );
    let unsupported = model.sentence.as_ref().and_then(Sentence::unsupported);
    if !places.is_empty() {
        return;
    }
    if prompts {
        findings.uses.insert(Use::Prompt);
    } else if unsupported.is_none() {
        findings.uses.insert(Use::Run);
    }
}

/// What is to be said of a tokenizer that works, or of one that doesn't, without which `lost`.
fn try_tokenizer(
    checkpoint: &Checkpoint,
    place: &TokenizerPlace,
    lost: &str,
    prompts: bool,
) -> Result<Vec<String>, String> {
    let Some(path) = checkpoint.tokenizer_at(place) else {
        let why = checkpoint.lost_vocabulary(place);
        let why = why.map_or_else(String::new, |why| format!(", and none can be made: {why}"));
        let to = if prompts {
            format!("into the pipeline's folder `{}`", place.component)
        } else {
            "beside config.json".to_owned()
        };
        return Err(place.said(&format!("no tokenizer.json{why}: {lost}; put it {to}")));
    };
    let tokenizer = TextTokenizer::load(&path)
        .map_err(|error| format!("{error}: {lost}; put the model's own file there"))?;
    let unheeded = tokenizer.unheeded_settings().iter();
    let unheeded = unheeded.map(|line| place.said(line));
    Ok(unheeded
        .chain(place.foreign_tokens(|token| tokenizer.token_id(token)))
        .collect())
}

/// The chat template writes two conversations, with the question and the answer's beginning that
/// `dlc run --chat` has.
fn chat_template(checkpoint: &Checkpoint, module: &Module, findings: &mut Findings) {
    if module.model.task != Task::TextGeneration {
        return;
    }
    let template = match ChatTemplate::load(checkpoint.folder()) {
        Ok(template) => template,
        // A model without a template isn't made for conversations.
        Err(error) if error.fault() == Fault::Unsupported => return,
        Err(error) => return findings.warn(format!("{error}: `dlc run --chat` won't work")),
    };
    let turns = [("user", "Hello"), ("assistant", "Hi"), ("user", "Bye")]
        .map(|(role, content)| ChatMessage::new(role, content));
    findings.warnings.extend_from_slice(template.unheeded());
    if let Err(error) = template.render(&turns[..1], true, UNIX_EPOCH) {
        return findings.warn(format!("{error}: `dlc run --chat` won't work"));
    }
    if findings.uses.contains(&Use::Run) {
        findings.uses.insert(Use::Chat);
    }
    if let Err(error) = template.render(&turns, true, UNIX_EPOCH) {
        findings.warn(format!("{error}: `dlc run --chat` answers only once"));
    }
}

/// What side files say and nobody heeds.
fn unheeded_keys(checkpoint: &Checkpoint, module: &Module, findings: &mut Findings) {
    findings
        .warnings
        .extend(checkpoint.warnings(module.model.task));
}

/// A scheduler that images can't be sampled with.
fn scheduler(checkpoint: &Checkpoint, _: &Module, findings: &mut Findings) {
    /// A number of steps that every scheduler can do.
    const STEPS: usize = 10;
    let Some(path) = checkpoint.scheduler() else {
        return;
    };
    match DiffusionSamplers::new(Some(path.to_owned())).plan(None, STEPS) {
        Ok(_) => _ = findings.uses.insert(Use::Sample),
        Err(error) => findings.warn(format!(
            "`dlc sample` can't follow the scheduler as it is: {error}"
        )),
    }
}
