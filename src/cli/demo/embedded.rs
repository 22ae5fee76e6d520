//! The trained checkpoints of `dlc demo`, which the program carries.

use std::fs;
use std::path::{Path, PathBuf};

use dlc_files::IoError;

/// A checkpoint in the program.
#[derive(Debug)]
pub(super) struct Embedded {
    /// The folder's name, which is also the model's.
    pub name: &'static str,
    /// Path in the folder and content of each file.
    files: &'static [(&'static str, &'static [u8])],
}

macro_rules! embedded {
    ($folder:literal: $($path:literal),* $(,)?) => {
        Embedded {
            name: $folder,
            files: &[$(($path, include_bytes!(concat!("../../../fixtures/", $folder, "/", $path)))),*],
        }
    };
}

/// A model of text, 5 MB.
pub(super) static TEXT: Embedded = embedded!(
    "tiny-llama":
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
);

/// A pipeline in the layout of Stable Diffusion 1.5 that draws clothes, 12 MB.
pub(super) static IMAGES: Embedded = embedded!(
    "fashion-sd":
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
);

impl Embedded {
    /// Writes the checkpoint into a new folder in `parent`, and returns that folder.
    pub fn unpack(&self, parent: &Path) -> Result<PathBuf, IoError> {
        let folder = parent.join(self.name);
        for (path, bytes) in self.files {
            let file = folder.join(path);
            let of = file.parent().unwrap_or(&folder);
            fs::create_dir_all(of).map_err(IoError::of("create", of))?;
            fs::write(&file, bytes).map_err(IoError::of("write", &file))?;
        }
        Ok(folder)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::checkpoint::fixture;

    /// The files of a folder, and of those in it, by path.
    fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(&next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(folder).unwrap().to_owned();
                    files.insert(name, fs::read(path).unwrap());
                }
            }
        }
        files
    }

    #[test]
    fn the_embedded_checkpoints_are_the_whole_fixtures() {
        for embedded in [&TEXT, &IMAGES] {
            let folder = tempfile::tempdir().unwrap();
            let unpacked = embedded.unpack(folder.path()).unwrap();
            let mut whole = contents(&fixture::fixture(embedded.name));
            // What the tests hold the pictures against.
            whole.remove(Path::new("golden.safetensors"));
            assert!(contents(&unpacked) == whole, "{}", embedded.name);
        }
    }
}
