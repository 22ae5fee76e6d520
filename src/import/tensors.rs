//! What is wrong with a checkpoint's tensors, as one error.

use super::error::ImportError;
use crate::checkpoint::Checkpoint;

/// Tensors at fault.
#[derive(Default)]
pub(super) struct Problems {
    pub(super) missing: Vec<String>,
    /// Whole sentences.
    pub(super) wrong: Vec<String>,
    pub(super) unused: Vec<String>,
}

impl Problems {
    pub(super) fn into_result(self, checkpoint: &Checkpoint) -> Result<(), ImportError> {
        let hint = self.hint(checkpoint).map(|hint| format!("\n{hint}"));
        // What is wrong first: a list is cut at its end, and one wrong prefix makes hundreds of
        // names missing and unknown.
        let missing = self
            .missing
            .iter()
            .map(|name| format!("`{name}` is missing"));
        let unused = self
            .unused
            .iter()
            .map(|name| format!("`{name}` is not part of the model"));
        let mut problems = self.wrong;
        problems.extend(missing);
        problems.extend(unused);
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ImportError::Tensors {
                path: checkpoint.folder().to_owned(),
                problems,
                hint,
            })
        }
    }

    /// What the reason may be, as far as names tell.
    fn hint(&self, checkpoint: &Checkpoint) -> Option<String> {
        if let Some(architecture) = checkpoint.retargeted()
            && !self.missing.is_empty()
        {
            return Some(format!(
                "The checkpoint was saved with another head than that of {architecture}: leave the task out, or name a checkpoint that was saved as {architecture}."
            ));
        }
        if self.missing.len() == 1 && self.missing[0].starts_with("lm_head.") {
            return Some(
                "If the head is the embedding, set `tie_word_embeddings` to true in config.json."
                    .into(),
            );
        }
        if self
            .unused
            .iter()
            .any(|name| name.contains(".experts.gate_up_proj"))
        {
            return Some("The matrices of all experts are one tensor. Save the model as it is released, in Python: `AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT)`.".into());
        }
        if !self.missing.is_empty() {
            let bare = |name: &str| {
                name.strip_prefix("model.")
                    .is_some_and(|bare| checkpoint.tensor(bare).is_some())
            };
            if self.missing.iter().any(|name| bare(name)) {
                return Some("The tensors' names lack the prefix `model.`: save the model with its head, as AutoModelForCausalLM.".into());
            }
            let prefixed = |long: &String| {
                Some(long.strip_suffix(self.missing[0].as_str())?.to_owned())
                    .filter(|p| p.ends_with('.'))
            };
            if let Some(prefix) = self.unused.iter().find_map(prefixed) {
                return Some(format!(
                    "The tensors' names begin with `{prefix}`: save the language model by itself."
                ));
            }
            return Some("Download or save the checkpoint again; a single file of several shards holds only some of the tensors.".into());
        }
        let ends = |end: &str| self.unused.iter().any(|name| name.contains(end));
        if ends(".lora_") || ends(".base_layer.") {
            return Some("The checkpoint has an adapter inside: merge it, or save it by itself and name it with `--adapter`.".into());
        }
        let way = "The configuration and the weights are of different models: take both from one place; or, if the tensors are needless, \
                   save the model again in Python: `AutoModel....from_pretrained(DIR).save_pretrained(OUT)` leaves them out.";
        (!self.unused.is_empty()).then(|| way.into())
    }
}
