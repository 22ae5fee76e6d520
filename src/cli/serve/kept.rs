//! `--save-cache`: what a model holds of texts goes from one server to the next.

use std::path::Path;

use dlc_runtime::methods::speculation::{Batch, Prefix};
use dlc_runtime::{Bundle, PrefixFile};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::phases;
use crate::cli::failure::{Failure, Result};
use crate::cli::output::{note, warn};

/// What stands otherwise in the name of a file.
const OUTSIDE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// Where beginnings of texts are kept for a model.
#[derive(Debug)]
pub(super) struct Kept {
    model: String,
    file: PrefixFile,
}

impl Kept {
    /// In `folder`, for the bundle that is served as `model`.
    pub fn new(folder: &Path, model: &str, bundle: &Bundle) -> Result<Self> {
        let name = utf8_percent_encode(model, OUTSIDE);
        Ok(Self {
            model: model.to_owned(),
            file: PrefixFile::new(folder.join(format!("{name}.safetensors")), bundle)?,
        })
    }

    /// Lets `batch` hold what an earlier server held: the latest, if there is less room.
    pub fn take_over(&self, batch: &mut Batch) {
        let taken = self.file.read().map_err(Failure::from).and_then(|all| {
            let all = &all[all.len().saturating_sub(batch.slots())..];
            for prefix in all {
                batch.restore(prefix)?;
            }
            Ok(described(all))
        });
        self.tell(taken, "taken over from", "are read anew");
    }

    /// Writes down what `batch` holds.
    pub fn save(&self, batch: &mut Batch) {
        let saved = batch.prefixes().map_err(Failure::from).and_then(|all| {
            if !all.is_empty() {
                self.file.write(&all)?;
            }
            Ok(described(&all))
        });
        self.tell(saved, "kept in", "aren't kept");
    }

    /// Without a reader of stderr the server goes on.
    fn tell(&self, outcome: Result<Option<String>>, done: &str, failed: &str) {
        phases::pause();
        let (model, path) = (&self.model, self.file.path().display());
        let _ = match outcome {
            Ok(Some(what)) => note(&format!("model `{model}`: {what} {done} {path}")),
            Ok(None) => Ok(()),
            Err(failure) => warn(&format!(
                "model `{model}`: beginnings of texts {failed}: {}",
                failure.message()
            )),
        };
    }
}

/// How many there are, if any.
fn described(prefixes: &[Prefix]) -> Option<String> {
    let tokens: usize = prefixes.iter().map(|prefix| prefix.tokens.len()).sum();
    let plural = if prefixes.len() == 1 { "" } else { "s" };
    (!prefixes.is_empty()).then(|| {
        format!(
            "{} beginning{plural} of texts ({tokens} tokens)",
            prefixes.len()
        )
    })
}
