//! Repositories of the Hugging Face Hub: taken from Hugging Face's cache where they are in it, else
//! downloaded into it.
//!
//! Asks no server where the cache has all that is needed, sends nothing but names and the token, and
//! writes nothing but the cache.

mod cache;
mod client;
mod error;
mod name;
mod transfer;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use dlc_passes::Progress;

use crate::checkpoint::{Kind, Repository};
use crate::http::Proxy;

use cache::Cache;
use client::{HubClient, RemoteFile};
use transfer::Meter;

pub use error::HubError;
pub use name::HubName;

/// The server of the Hub.
pub(crate) const ENDPOINT: &str = "https://huggingface.co";

/// How large the files may be that say which others are needed.
const LARGEST_SIGNPOSTS: u64 = 64 << 20;

/// How repositories are had.
pub(crate) struct Settings {
    /// The folder of Hugging Face's cache.
    pub cache: PathBuf,
    /// The server.
    pub endpoint: String,
    /// What shows the server who asks; it is never printed.
    pub token: Option<String>,
    /// Whether no server is asked.
    pub offline: bool,
    /// The way to the server.
    pub proxy: Option<Proxy>,
}

/// What the cache has of a repository.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Cached {
    /// All that is needed.
    Whole(PathBuf),
    /// Configuration and weights; whether there is more isn't known.
    Usable(PathBuf),
    /// Too little.
    Nothing,
}

/// A repository on a server, and what of it isn't in the cache.
pub(crate) struct Plan<'a> {
    client: HubClient<'a>,
    cache: Cache,
    name: &'a HubName,
    commit: String,
    needed: BTreeSet<String>,
    /// Names that the revision doesn't have.
    absent: Vec<String>,
    missing: Vec<RemoteFile>,
}

/// What the cache has of a repository; asks nobody.
///
/// # Errors
/// [`HubError`] for links that lead out of the cache.
pub(crate) fn cached(settings: &Settings, name: &HubName, kind: Kind) -> Result<Cached, HubError> {
    let cache = Cache::of(&settings.cache, name);
    let Some(commit) = cache.commit(name.revision()) else {
        return Ok(Cached::Nothing);
    };
    let (snapshot, present) = (cache.snapshot(&commit), cache.present(&commit));
    let label = PathBuf::from(name.to_string());
    let repository = Repository {
        name: &label,
        kind,
        files: &present,
    };
    // What is wrong with the files may be that some are missing.
    let (Ok(needed), Ok(side_files)) = (
        repository.needed(&snapshot),
        repository.side_files(&snapshot),
    ) else {
        return Ok(Cached::Nothing);
    };
    if !needed.is_subset(&present) {
        return Ok(Cached::Nothing);
    }
    cache.check_links(&commit, &needed)?;
    let absent = cache.absent(&commit);
    let known = |name: &String| present.contains(name) || absent.contains(name);
    Ok(if side_files.iter().all(known) {
        Cached::Whole(snapshot)
    } else {
        Cached::Usable(snapshot)
    })
}

impl<'a> Plan<'a> {
    /// Asks the server which files of the repository are needed, and compares with the cache.
    ///
    /// # Errors
    /// [`HubError`] where the server isn't reached, has no such repository, or one that can't be
    /// read.
    pub fn new(
        settings: &'a Settings,
        name: &'a HubName,
        kind: Kind,
        progress: &'a dyn Progress,
    ) -> Result<Self, HubError> {
        progress.phase(&format!("asking for the files of {name}"));
        let client = HubClient::new(settings, name, progress)?;
        let listing = client.list()?;
        let label = PathBuf::from(name.to_string());
        let repository = Repository {
            name: &label,
            kind,
            files: &listing.files,
        };
        let signposts = repository.signposts()?;
        let mut plan = Self {
            client,
            cache: Cache::of(&settings.cache, name),
            name,
            commit: listing.commit,
            needed: BTreeSet::new(),
            absent: vec![],
            missing: vec![],
        };
        plan.compare(&signposts.into_iter().collect())?;
        if plan.bytes() > LARGEST_SIGNPOSTS {
            return Err(plan
                .client
                .strange("its lists of shards and modules are too large"));
        }
        plan.download(progress)?;
        let snapshot = plan.cache.snapshot(&plan.commit);
        let needed = repository.needed(&snapshot)?;
        plan.compare(&needed)?;
        plan.needed = needed;
        plan.absent = repository.side_files(&snapshot)?;
        plan.absent.retain(|name| !listing.files.contains(name));
        Ok(plan)
    }

    /// How many files are to be downloaded.
    pub fn files(&self) -> usize {
        self.missing.len()
    }

    /// How many bytes are to be downloaded.
    pub fn bytes(&self) -> u64 {
        let here = |file: &RemoteFile| {
            let (blob, part) = (
                self.cache.blob(&file.etag),
                self.cache.incomplete(&file.etag),
            );
            let there = blob.metadata().or_else(|_| part.metadata());
            there.map_or(0, |there| there.len().min(file.bytes))
        };
        let left = self.missing.iter().map(|file| file.bytes - here(file));
        left.fold(0, u64::saturating_add)
    }

    /// Downloads what is missing, and returns the folder with the files.
    ///
    /// # Errors
    /// [`HubError`]; what was downloaded stays, and the next run goes on from there.
    pub fn fetch(mut self, progress: &dyn Progress) -> Result<PathBuf, HubError> {
        self.download(progress)?;
        let Self {
            cache,
            name,
            commit,
            needed,
            absent,
            ..
        } = &self;
        cache.check_links(commit, needed)?;
        cache.note_absent(commit, absent)?;
        cache.note_reference(name.revision(), commit)?;
        Ok(cache.snapshot(commit))
    }

    /// Looks which of these files the cache lacks.
    fn compare(&mut self, names: &BTreeSet<String>) -> Result<(), HubError> {
        let here = self.cache.present(&self.commit);
        for name in names.difference(&here) {
            self.missing.push(self.client.describe(&self.commit, name)?);
        }
        Ok(())
    }

    fn download(&mut self, progress: &dyn Progress) -> Result<(), HubError> {
        let missing = std::mem::take(&mut self.missing);
        let sizes = missing.iter().map(|file| file.bytes);
        let meter = Meter {
            progress,
            done: AtomicU64::new(0),
            total: sizes.fold(0, u64::saturating_add),
        };
        if !missing.is_empty() {
            self.cache.prepare()?;
        }
        for file in &missing {
            let of = (self.name, self.commit.as_str());
            transfer::fetch(&self.client, &self.cache, of, file, &meter)?;
            self.cache.link(&self.commit, &file.name, &file.etag)?;
        }
        Ok(())
    }
}

/// Waits, unless the user asks to stop.
fn pause(time: Duration, progress: &dyn Progress) -> Result<(), HubError> {
    let start = Instant::now();
    while start.elapsed() < time {
        if progress.interrupted() {
            return Err(HubError::Interrupted);
        }
        std::thread::sleep(Duration::from_millis(20).min(time));
    }
    Ok(())
}
