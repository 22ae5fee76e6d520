//! Where scores are kept from one run to the next.

use std::fs;
use std::path::PathBuf;

use dlc_passes::ScoreCache;

use super::destination::Destination;
use super::failure::{Context, Result};
use super::{environment, signals};
use crate::pipeline::DiskCache;

/// Whether scores are kept, and where.
#[derive(Debug, clap::Args)]
pub(super) struct CacheArgs {
    /// Score anew instead of taking scores of an earlier run from the cache
    #[arg(long)]
    no_cache: bool,
    /// Folder that keeps scores, and how far learning got, instead of the user's cache; a run that
    /// was interrupted continues from there
    #[arg(long, value_name = "DIR", conflicts_with = "no_cache")]
    state: Option<PathBuf>,
}

impl CacheArgs {
    /// Refuses stdout for a folder.
    pub fn check(&self) -> Result<()> {
        self.state
            .iter()
            .try_for_each(|folder| Destination::check_folder(folder))
    }

    /// The cache, if there is to be one.
    pub fn open(&self) -> Result<Option<Keeping>> {
        if let Some(folder) = &self.state {
            fs::create_dir_all(folder)
                .with_context(|| format!("can't keep scores in {}", folder.display()))?;
        }
        let folder = self
            .state
            .clone()
            .or_else(environment::cache_folder)
            .filter(|_| !self.no_cache);
        Ok(folder.map(|folder| Keeping {
            cache: DiskCache::new(folder.clone()),
            folder,
        }))
    }
}

/// The cache of a command that says where its work is when it is stopped.
#[derive(Debug)]
pub(super) struct Keeping {
    cache: DiskCache,
    folder: PathBuf,
}

impl ScoreCache for Keeping {
    fn get(&self, key: &str) -> Option<String> {
        self.cache.get(key)
    }

    fn put(&self, key: &str, text: &str) {
        self.put_bytes(key, text.as_bytes());
    }

    fn get_bytes(&self, key: &str) -> Option<Vec<u8>> {
        self.cache.get_bytes(key)
    }

    fn put_bytes(&self, key: &str, bytes: &[u8]) {
        if self.cache.store(key, bytes) {
            signals::keep(&self.folder);
        }
    }

    fn remove(&self, key: &str) {
        self.cache.remove(key);
    }
}
