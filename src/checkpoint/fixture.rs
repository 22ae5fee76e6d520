//! Checkpoints for unit tests: the goldens of the repository, and folders made by hand.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

/// A folder of `fixtures/` in the repository.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

/// A safetensors file with any header and any data after it.
pub(crate) fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        data,
    ]
    .concat()
}

/// A temporary folder that goes away with the value.
pub(crate) struct Folder(TempDir);

impl Folder {
    /// A folder with an empty `config.json`.
    pub(crate) fn new() -> Self {
        Self(TempDir::new().expect("the temporary folder is writable")).with("config.json", b"{}")
    }

    /// A copy of a fixture's `config.json`, `generation_config.json` and weights, of these what
    /// there is, with `patch` put over the configuration; null removes a key.
    pub(crate) fn patched(name: &str, patch: &Value) -> Self {
        let from = fixture(name);
        let mut config: Value =
            serde_json::from_slice(&fs::read(from.join("config.json")).expect("fixture"))
                .expect("JSON");
        for (key, value) in patch.as_object().expect("a patch is an object") {
            match (config.as_object_mut().expect("an object"), value) {
                (config, Value::Null) => _ = config.remove(key),
                (config, value) => _ = config.insert(key.clone(), value.clone()),
            }
        }
        let folder = Self::new().with("config.json", config.to_string().as_bytes());
        let files = [
            "generation_config.json",
            "model.safetensors",
            "diffusion_pytorch_model.safetensors",
        ];
        files
            .into_iter()
            .filter(|file| from.join(file).exists())
            .fold(folder, |folder, file| {
                let bytes = fs::read(from.join(file)).expect("fixture");
                folder.with(file, &bytes)
            })
    }

    /// The folder with one file more, or another content of it.
    pub(crate) fn with(self, name: &str, bytes: &[u8]) -> Self {
        fs::write(self.path().join(name), bytes).expect("the temporary folder is writable");
        self
    }

    /// The folder with one file less.
    pub(crate) fn without(self, name: &str) -> Self {
        fs::remove_file(self.path().join(name)).expect("the file is there");
        self
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}
