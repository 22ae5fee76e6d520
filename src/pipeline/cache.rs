//! Keeps score tables on disk, so that a rerun with the same checkpoint, data and options needn't
//! score again.

use std::fs;
use std::path::PathBuf;

use dlc_files::temporary::Temporary;
use dlc_passes::ScoreCache;
use sha2::{Digest, Sha256};

/// A folder of entries named by the hash of their key.
#[derive(Debug, Clone)]
pub struct DiskCache {
    folder: PathBuf,
}

impl DiskCache {
    /// A cache in `folder`, which is made when something is stored.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Stores `bytes` under `key`; says whether they are there.
    pub fn store(&self, key: &str, bytes: &[u8]) -> bool {
        let Ok(place) = Temporary::place(&self.folder, "scores") else {
            return false;
        };
        fs::write(place.path(), bytes).is_ok() && place.rename(&self.path(key), false).is_ok()
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder
            .join(format!("{:x}.json", Sha256::digest(key.as_bytes())))
    }
}

impl ScoreCache for DiskCache {
    fn get(&self, key: &str) -> Option<String> {
        String::from_utf8(self.get_bytes(key)?).ok()
    }

    fn put(&self, key: &str, text: &str) {
        self.put_bytes(key, text.as_bytes());
    }

    fn get_bytes(&self, key: &str) -> Option<Vec<u8>> {
        fs::read(self.path(key)).ok()
    }

    fn put_bytes(&self, key: &str, bytes: &[u8]) {
        self.store(key, bytes);
    }

    fn remove(&self, key: &str) {
        let _ = fs::remove_file(self.path(key));
    }
}
