//! The layout of Hugging Face's cache, as far as it is read:
//! `models--ORG--NAME/{blobs,refs,snapshots}`, see
//! <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>.
//!
//! `refs/REVISION` holds a commit, `snapshots/COMMIT/` its files, which are links into `blobs/`.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::error::{CheckpointError, shown};
use super::files::open;

const MODELS: &str = "models--";
const REFS: &str = "refs";
const SNAPSHOTS: &str = "snapshots";
/// The revision that is meant where none is named.
pub(crate) const MAIN: &str = "main";
/// Most references that are looked at for the name of a commit.
const MOST_REFS: usize = 1000;

/// A repository's folder in the cache.
#[derive(Debug, Clone)]
pub(crate) struct RepositoryFolder(PathBuf);

impl RepositoryFolder {
    /// That of `ORG/NAME` in the cache at `cache`.
    pub fn of(cache: &Path, repository: &str) -> Self {
        Self(cache.join(format!("{MODELS}{}", repository.replace('/', "--"))))
    }

    /// The folder itself, if it looks like one.
    fn at(path: &Path) -> Option<Self> {
        let folder = Self(path.to_owned());
        (folder.repository().is_some() && path.join(SNAPSHOTS).is_dir()).then_some(folder)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// `ORG/NAME`.
    fn repository(&self) -> Option<String> {
        let folder = self.0.file_name()?.to_str()?;
        let name = folder
            .strip_prefix(MODELS)
            .filter(|name| !name.is_empty())?;
        Some(name.replacen("--", "/", 1))
    }

    /// Where the files of a commit are.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.0.join(SNAPSHOTS).join(commit)
    }

    /// Where the commit of a revision is noted.
    pub fn reference(&self, revision: &str) -> PathBuf {
        self.0.join(REFS).join(revision)
    }

    /// The commit that the cache has for a revision: a branch, a tag, or the commit itself.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        read_reference(&self.reference(revision))
    }

    /// The revision to say for a commit: `main`, else the first other that means it, else itself.
    fn revision(&self, commit: &str) -> String {
        if self.commit(MAIN).as_deref() == Some(commit) {
            return MAIN.to_owned();
        }
        let folder = self.0.join(REFS);
        let mut names: Vec<String> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .take(MOST_REFS)
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| read_reference(&self.reference(name)).as_deref() == Some(commit))
            .collect();
        names.sort();
        names
            .into_iter()
            .next()
            .unwrap_or_else(|| commit.to_owned())
    }

    /// The only snapshot, or that of `main`.
    fn newest(&self) -> Result<PathBuf, CheckpointError> {
        let main = self.commit(MAIN).map(|commit| self.snapshot(&commit));
        if let Some(snapshot) = main.filter(|snapshot| snapshot.is_dir()) {
            return Ok(snapshot);
        }
        let folder = self.0.join(SNAPSHOTS);
        let entries = fs::read_dir(&folder).map_err(|e| CheckpointError::read(&folder, e))?;
        let all: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .take(2)
            .collect();
        match all.as_slice() {
            [only] => Ok(only.clone()),
            [] => Err(CheckpointError::file(
                &self.0,
                "is a folder of Hugging Face's cache without a snapshot. Download the model again",
            )),
            [one, ..] => Err(CheckpointError::file(
                &self.0,
                format!(
                    "is a folder of Hugging Face's cache with several snapshots, of which none is that of main. Name one, such as {}",
                    one.display()
                ),
            )),
        }
    }
}

/// The snapshot that is meant where `path` is the folder of a repository in the cache; `path`
/// itself otherwise.
pub(super) fn entered(path: &Path) -> Result<PathBuf, CheckpointError> {
    RepositoryFolder::at(path).map_or_else(|| Ok(path.to_owned()), |folder| folder.newest())
}

/// `ORG/NAME@REVISION` for a snapshot, or for the folder of a repository.
pub(crate) fn snapshot_name(path: &Path) -> Option<String> {
    let full = path.canonicalize().ok()?;
    if let Some(folder) = RepositoryFolder::at(&full) {
        return snapshot_name(&folder.newest().ok()?);
    }
    let (commit, snapshots) = (full.file_name()?.to_str()?, full.parent()?);
    if snapshots.file_name()? != SNAPSHOTS {
        return None;
    }
    let folder = RepositoryFolder::at(snapshots.parent()?)?;
    Some(format!(
        "{}@{}",
        folder.repository()?,
        shown(&folder.revision(commit))
    ))
}

/// Whether a revision is a commit, by its form.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40
        && revision
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn read_reference(path: &Path) -> Option<String> {
    let mut text = String::new();
    let (file, _) = open(path).ok()?;
    file.take(64).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned()).filter(|text| is_commit(text))
}
