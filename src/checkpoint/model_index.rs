//! `model_index.json` of a pipeline of diffusers: the components, and how the pipeline joins them.

use std::path::Path;

use serde_json::{Map, Value};

use super::SideKeys;
use super::error::{CheckpointError, shown};
use super::files::{is_there, read_object};

pub(super) const MODEL_INDEX: &str = "model_index.json";
/// Largest file.
const CAP: u64 = 1 << 20;
const SCHEDULER: &str = "scheduler";
pub(super) const CLASS: &str = "_class_name";
/// Whether images are led away from zeros where no negative prompt is given.
pub(super) const ZEROS: &str = "force_zeros_for_empty_prompt";
/// Whether the denoiser is conditioned on how beautiful images are.
pub(super) const AESTHETICS: &str = "requires_aesthetics_score";

const KEYS: SideKeys = SideKeys {
    heeded: &[SCHEDULER, ZEROS, AESTHETICS],
    // Who wrote the file, names of classes, and what is done with images once they are made.
    harmless: &[
        CLASS,
        "_diffusers_version",
        "_name_or_path",
        "id2label",
        "requires_safety_checker",
        "add_watermarker",
    ],
    neutral: &[],
};

/// What the file in `folder` says and dlc doesn't heed. `scheduler` is the configuration that dlc
/// samples with.
pub(super) fn warnings(
    folder: &Path,
    scheduler: Option<&Path>,
) -> Result<Vec<String>, CheckpointError> {
    let Some(object) = read(folder)? else {
        return Ok(vec![]);
    };
    // A list is a component: its library and its class.
    let settings: Map<String, Value> = object
        .iter()
        .filter(|(_, value)| !value.is_array())
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let unheeded = KEYS.warning(MODEL_INDEX, &settings);
    Ok(unheeded
        .into_iter()
        .chain(other_scheduler(&object, scheduler))
        .collect())
}

/// The file in `folder`, if it is there.
pub(super) fn read(folder: &Path) -> Result<Option<Map<String, Value>>, CheckpointError> {
    let path = folder.join(MODEL_INDEX);
    is_there(&path)
        .then(|| Ok(read_object(&path, CAP)?.0))
        .transpose()
}

/// diffusers takes the scheduler that the index names, whatever that one's own file says.
fn other_scheduler(object: &Map<String, Value>, scheduler: Option<&Path>) -> Option<String> {
    let named = object.get(SCHEDULER)?.get(1)?.as_str()?;
    // A file that is no JSON, as diffusers may write it, names its class all the same; then there
    // is nothing to compare.
    let (config, _) = read_object(scheduler?, CAP).ok()?;
    let own = config.get(CLASS)?.as_str().filter(|own| *own != named)?;
    let (named, own) = (shown(named), shown(own));
    Some(format!(
        "{MODEL_INDEX}: not heeded: `{SCHEDULER}` {named}; scheduler_config.json is for {own}, name another one with `dlc sample --scheduler`"
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn warned(index: &str, scheduler: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("scheduler_config.json");
        fs::write(folder.path().join(MODEL_INDEX), index).unwrap();
        fs::write(&config, scheduler).unwrap();
        warnings(folder.path(), Some(&config)).unwrap()
    }

    #[test]
    fn components_and_what_comes_after_the_image_are_nothing_to_warn_of() {
        let index = r#"{"_class_name": "X", "unet": ["diffusers", "U"], "scheduler": ["diffusers", "DDIMScheduler"], "requires_safety_checker": true}"#;
        assert!(warned(index, r#"{"_class_name": "DDIMScheduler"}"#).is_empty());
        assert!(warned(index, "{NaN").is_empty());
    }

    #[test]
    fn settings_and_another_scheduler_are_named() {
        let index = r#"{"is_distilled": true, "scheduler": ["diffusers", "DDIMScheduler"]}"#;
        let found = warned(index, r#"{"_class_name": "PNDMScheduler"}"#);
        assert_eq!(found.len(), 2);
        assert!(found[0].contains("`is_distilled`"), "{found:?}");
        assert!(
            found[1].contains("DDIMScheduler") && found[1].contains("PNDMScheduler"),
            "{found:?}"
        );
    }
}
