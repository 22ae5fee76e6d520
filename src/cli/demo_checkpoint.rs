//! The trained checkpoint of `dlc demo`, which the program carries.

use std::fs;
use std::path::{Path, PathBuf};

use dlc_files::IoError;

/// The folder's name, which is also the model's.
pub(super) const NAME: &str = "tiny-llama";

macro_rules! embedded {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_bytes!(concat!("../../fixtures/tiny-llama/", $name)))),*]
    };
}

/// Name and content of each file, 5 MB in all.
static FILES: [(&str, &[u8]); 5] = embedded!(
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
);

/// Writes the checkpoint into a new folder in `parent`, and returns that folder.
pub(super) fn unpack(parent: &Path) -> Result<PathBuf, IoError> {
    let folder = parent.join(NAME);
    fs::create_dir(&folder).map_err(IoError::of("create", &folder))?;
    for (name, bytes) in FILES {
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(IoError::of("write", &path))?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::fixture;

    #[test]
    fn the_embedded_checkpoint_is_the_whole_fixture() {
        let folder = tempfile::tempdir().unwrap();
        let contents = |folder: &Path| {
            let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
            let mut files: Vec<_> = entries
                .map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap()))
                .collect();
            files.sort();
            files
        };
        let unpacked = unpack(folder.path()).unwrap();
        assert!(contents(&unpacked) == contents(&fixture::fixture(NAME)));
    }
}
