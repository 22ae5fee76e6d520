//! Writes Hugging Face's cache, in the layout that `huggingface_hub` writes: blobs under their
//! hashes, snapshots of links to them, references, and notes of what a commit doesn't have.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dlc_files::IoError;
use dlc_passes::Progress;

use super::error::HubError;
use super::{HubName, pause};
use crate::checkpoint::{RepositoryFolder, is_commit, is_inside};

/// Most files of a snapshot that are looked at.
const MOST_FILES: usize = 100_000;
/// How often a lock is tried that another process holds.
const PATIENCE: Duration = Duration::from_millis(100);
/// <https://bford.info/cachedir/>: backups leave the folder out.
const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # This file is a cache directory tag created by huggingface_hub.\n\
    # For information about cache directory tags, see:\n\
    #\thttps://bford.info/cachedir/\n";

/// A repository in the cache.
#[derive(Debug)]
pub(super) struct Cache {
    root: PathBuf,
    folder: RepositoryFolder,
}

impl Cache {
    /// That of `name` in the cache at `root`. Makes nothing.
    pub fn of(root: &Path, name: &HubName) -> Self {
        Self {
            root: root.to_owned(),
            folder: RepositoryFolder::of(root, name.repository()),
        }
    }

    /// The commit that the cache has for a revision.
    pub fn commit(&self, revision: &str) -> Option<String> {
        self.folder.commit(revision)
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.snapshot(commit)
    }

    /// The names of the files of a commit that are here.
    pub fn present(&self, commit: &str) -> BTreeSet<String> {
        files_in(&self.snapshot(commit))
    }

    /// The names of files that the commit is known not to have.
    pub fn absent(&self, commit: &str) -> BTreeSet<String> {
        files_in(&self.absences().join(commit))
    }

    fn absences(&self) -> PathBuf {
        self.folder.path().join(".no_exist")
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.path().join("blobs").join(etag)
    }

    /// Where a blob grows.
    pub fn incomplete(&self, etag: &str) -> PathBuf {
        self.blob(&format!("{etag}.incomplete"))
    }

    /// Refuses files that lie outside of the cache, wherever links lead.
    pub fn check_links(&self, commit: &str, names: &BTreeSet<String>) -> Result<(), HubError> {
        let folder = self.folder.path();
        let homes =
            [&self.root, folder, &folder.join("blobs")].map(|path| path.canonicalize().ok());
        let snapshot = self.snapshot(commit);
        for path in names.iter().map(|name| snapshot.join(name)) {
            let real = path.canonicalize().map_err(IoError::of("read", &path))?;
            if !homes.iter().flatten().any(|home| real.starts_with(home)) {
                return Err(HubError::LeadsOut(path));
            }
        }
        Ok(())
    }

    /// Waits until nobody else downloads this blob, and keeps others from it as long as the file is
    /// held. A file system without locks has none.
    pub fn lock(&self, etag: &str, progress: &dyn Progress) -> Result<File, HubError> {
        let folder = self.folder.path().file_name().unwrap_or_default();
        let folder = self.root.join(".locks").join(folder);
        make(&folder)?;
        let path = folder.join(format!("{etag}.lock"));
        let mut options = File::options();
        let options = options.create(true).truncate(false).write(true);
        let file = options.open(&path).map_err(IoError::of("open", &path))?;
        let mut waits = false;
        while matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            if !std::mem::replace(&mut waits, true) {
                progress.phase("waiting for another download of the same file");
            }
            pause(PATIENCE, progress)?;
        }
        Ok(file)
    }

    /// Makes the folders that a download needs.
    pub fn prepare(&self) -> Result<(), HubError> {
        make(&self.folder.path().join("blobs"))?;
        let tag = self.root.join("CACHEDIR.TAG");
        if !tag.exists() {
            let _ = fs::write(&tag, TAG);
        }
        Ok(())
    }

    /// Lets the commit have the blob under a name.
    pub fn link(&self, commit: &str, name: &str, etag: &str) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(name);
        if let Some(folder) = path.parent() {
            make(folder)?;
        }
        if path.is_file() {
            return Ok(());
        }
        // A link to a blob that was removed.
        let _ = fs::remove_file(&path);
        match place(&self.blob(etag), name, etag, &path) {
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_file() => Ok(()),
            placed => Ok(placed.map_err(IoError::of("create", &path))?),
        }
    }

    /// Notes that the commit has no files of these names.
    pub fn note_absent(&self, commit: &str, names: &[String]) -> Result<(), HubError> {
        let folder = self.absences().join(commit);
        for path in names.iter().map(|name| folder.join(name)) {
            make(path.parent().unwrap_or(&folder))?;
            if !path.exists() {
                File::create(&path).map_err(IoError::of("create", &path))?;
            }
        }
        Ok(())
    }

    /// Notes the commit of a revision, unless it is one.
    pub fn note_reference(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if is_commit(revision) || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.reference(revision);
        if let Some(folder) = path.parent() {
            make(folder)?;
        }
        Ok(fs::write(&path, commit).map_err(IoError::of("write", &path))?)
    }
}

/// A link from `path`, where a file called `name` is to be, to the blob; the blob itself on a file
/// system without links.
#[cfg(unix)]
fn place(blob: &Path, name: &str, etag: &str, path: &Path) -> io::Result<()> {
    let up = "../".repeat(2 + name.matches('/').count());
    let linked = std::os::unix::fs::symlink(format!("{up}blobs/{etag}"), path);
    match linked.as_ref().map_err(io::Error::kind) {
        Err(io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported) => fs::rename(blob, path),
        _ => linked,
    }
}

/// The blob itself: links need rights that most users of Windows don't have.
#[cfg(not(unix))]
fn place(blob: &Path, _name: &str, _etag: &str, path: &Path) -> io::Result<()> {
    fs::rename(blob, path)
}

fn make(folder: &Path) -> Result<(), HubError> {
    Ok(fs::create_dir_all(folder).map_err(IoError::of("create", folder))?)
}

/// The names of all files below a folder, with slashes.
fn files_in(folder: &Path) -> BTreeSet<String> {
    let (mut names, mut open) = (BTreeSet::new(), vec![String::new()]);
    while let Some(prefix) = open.pop() {
        for entry in fs::read_dir(folder.join(&prefix))
            .into_iter()
            .flatten()
            .flatten()
        {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let name = format!("{prefix}{name}");
            if names.len() >= MOST_FILES || !is_inside(&name) {
                continue;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(name + "/");
            } else if entry.path().is_file() {
                names.insert(name);
            }
        }
    }
    names
}
