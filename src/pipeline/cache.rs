//! Keeps score tables on disk, so that a rerun with the same checkpoint, data and options needn't score again.

use std::fs;
use std::path::PathBuf;

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

    fn path(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{:x}.json", Sha256::digest(key.as_bytes())))
    }
}

impl ScoreCache for DiskCache {
    fn get(&self, key: &str) -> Option<String> {
        fs::read_to_string(self.path(key)).ok()
    }

    fn put(&self, key: &str, text: &str) {
        let path = self.path(key);
        let partial = path.with_extension(format!("{}.tmp", std::process::id()));
        let stored = fs::create_dir_all(&self.folder).and_then(|()| fs::write(&partial, text)).and_then(|()| fs::rename(&partial, &path));
        if stored.is_err() {
            let _ = fs::remove_file(&partial);
        }
    }
}
