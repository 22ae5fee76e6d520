//! Whether files hold what the manifest recorded.
//!
//! Small files are hashed at every open. Weights are hashed once: that they held what they should
//! is kept in the caller's cache, by the file's identity, size and times of change, and holds for
//! as long as those stay the same.

use std::fs::{self, File, Metadata};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use dlc_bundle::{FileRecord, Manifest};
use dlc_files::{InputError, open_regular};
use serde::{Deserialize, Serialize};

use crate::Result;

/// Files that changed less than this before they were hashed may change once more within one tick
/// of the file system's clock.
const SETTLED: Duration = Duration::from_secs(3);
/// The largest entry of the cache that is read.
const ENTRY_CAP: u64 = 4096;

/// The names of the files that don't hold what the manifest says.
pub(super) fn changed(
    folder: &Path,
    manifest: &Manifest,
    cache: Option<&Path>,
) -> Result<Vec<String>> {
    let (mut changed, weights) = (Vec::new(), manifest.weights_files());
    for (name, record) in &manifest.files {
        let cache = cache.filter(|_| weights.contains(name.as_str()));
        if hash(&folder.join(name), cache)? != *record {
            changed.push(name.clone());
        }
    }
    Ok(changed)
}

/// Size and hash of a file, from the cache if it has them.
fn hash(path: &Path, cache: Option<&Path>) -> Result<FileRecord, InputError> {
    let (file, _) = open_regular(path)?;
    let Some((cache, state)) =
        cache.and_then(|cache| Some((cache, State::of(&file.metadata().ok()?)?)))
    else {
        return FileRecord::of_file(path);
    };
    if let Some(record) = state.find(cache) {
        return Ok(record);
    }
    let settled = state.is_settled();
    let record = FileRecord::of_file(path)?;
    if settled
        && file
            .metadata()
            .ok()
            .and_then(|after| State::of(&after))
            .as_ref()
            == Some(&state)
    {
        state.keep(cache, &record);
    }
    Ok(record)
}

/// What changes with a file's content: its times of change can't be set back without the second of
/// them being new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds, of the content and of the file's entry.
    modified: (i64, i64),
    changed: (i64, i64),
}

/// An entry of the cache.
#[derive(Serialize, Deserialize)]
struct Entry {
    state: State,
    record: FileRecord,
}

impl State {
    #[cfg(unix)]
    #[expect(clippy::unnecessary_wraps, reason = "other systems have none")]
    fn of(data: &Metadata) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let (modified, changed) = (
            (data.mtime(), data.mtime_nsec()),
            (data.ctime(), data.ctime_nsec()),
        );
        Some(Self {
            device: data.dev(),
            inode: data.ino(),
            size: data.len(),
            modified,
            changed,
        })
    }

    /// Systems without these times hash at every open.
    #[cfg(not(unix))]
    fn of(_: &Metadata) -> Option<Self> {
        None
    }

    /// Whether the last change is long enough ago for another one to have other times.
    fn is_settled(&self) -> bool {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let settled = i64::try_from(now.saturating_sub(SETTLED).as_secs()).unwrap_or(i64::MAX);
        self.modified.0 < settled && self.changed.0 < settled
    }

    fn entry(&self, cache: &Path) -> PathBuf {
        cache.join(format!("{:x}-{:x}.json", self.device, self.inode))
    }

    fn find(&self, cache: &Path) -> Option<FileRecord> {
        let mut text = String::new();
        File::open(self.entry(cache))
            .ok()?
            .take(ENTRY_CAP)
            .read_to_string(&mut text)
            .ok()?;
        let entry: Entry = serde_json::from_str(&text).ok()?;
        (entry.state == *self).then_some(entry.record)
    }

    /// A cache that can't be written costs time alone.
    fn keep(self, cache: &Path, record: &FileRecord) {
        let path = self.entry(cache);
        let partial = path.with_extension(format!("{}.tmp", std::process::id()));
        let Ok(text) = serde_json::to_string(&Entry {
            state: self,
            record: record.clone(),
        }) else {
            return;
        };
        let stored = fs::create_dir_all(cache)
            .and_then(|()| fs::write(&partial, text))
            .and_then(|()| fs::rename(&partial, &path));
        if stored.is_err() {
            let _ = fs::remove_file(&partial);
        }
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests;
