//! What `dlc compile` offers to do with a bundle next: a command that works on it here.

use std::path::Path;

use dlc_ir::Task;

use crate::pipeline::{CompileOutcome, Use};

/// What to do with the bundle next, of what works.
pub(super) fn next_step(bundle: &Path, outcome: &CompileOutcome, runs_here: bool) -> String {
    let bundle = quoted(bundle);
    let (model, works) = (&outcome.manifest.model, |what| outcome.uses.contains(&what));
    if !runs_here {
        return format!("look at it: dlc inspect {bundle}");
    }
    if works(Use::Sample) {
        let text = model.diffusion.as_ref().and_then(|m| m.text_width);
        let text = match text {
            None => "",
            Some(_) if works(Use::Prompt) => " --prompt \"...\"",
            // What a text says comes in a file.
            Some(_) => " --embeddings FILE",
        };
        return format!("try it: dlc sample {bundle}{text} -o image.png");
    }
    if works(Use::Chat) {
        return format!("try it: dlc run {bundle} --chat");
    }
    if works(Use::Run) {
        let flag = match model.task {
            Task::TextGeneration => "--prompt",
            Task::QuestionAnswering => "--question \"...\" --text",
            _ => "--text",
        };
        return format!("try it: dlc run {bundle} {flag} \"...\"");
    }
    format!("check it: dlc verify {bundle}")
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text
        .chars()
        .all(|c| c.is_alphanumeric() || "/._-+,:@".contains(c));
    if plain {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
