//! A folder that appears under its name only when it is complete.
//!
//! Files go to a hidden sibling `.NAME.dlc-tmp-N`; a file beside it, `.NAME.dlc-tmp-N.lock`, is locked while the writer lives. What a writer
//! that died left behind is removed by the next one. Nothing is ever deleted that dlc didn't write.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::ExportError;
use crate::input::{open_input, open_regular, read_text};
use crate::manifest::{FileRecord, MANIFEST_CAP, MANIFEST_FILE, Manifest};
use crate::yaml;

const LOCK: &str = ".lock";
const OLD: &str = ".old";
const MARK: &str = ".dlc-tmp-";

/// A folder being written. Dropping it without [`commit`](Self::commit) removes it.
#[derive(Debug)]
pub(crate) struct Staging {
    out: PathBuf,
    folder: PathBuf,
    /// Held until the folder is gone from its hidden name.
    _lock: File,
    force: bool,
}

impl Staging {
    /// Makes the hidden sibling of `out`, after checking that `out` may be written.
    pub fn new(out: &Path, force: bool) -> Result<Self, ExportError> {
        let name = out
            .file_name()
            .and_then(|n| n.to_str())
            .ok_or_else(|| ExportError::NotReplaced { path: out.to_owned(), problem: "it has no name that a folder could take".to_owned() })?;
        let parent = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let prefix = format!(".{name}{MARK}");
        recover(parent, &prefix, out);
        check_replaceable(out, force)?;
        fs::create_dir_all(parent).map_err(ExportError::io("create", parent))?;
        for attempt in 0..1000u32 {
            let folder = parent.join(format!("{prefix}{}-{attempt}", std::process::id()));
            let lock_path = beside(&folder, LOCK);
            let lock = match File::create_new(&lock_path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(ExportError::io("create", &lock_path))?,
            };
            // A file system without locks only loses the removal of what dead writers left.
            let _ = lock.try_lock();
            let staging = Self { out: out.to_owned(), folder, _lock: lock, force };
            fs::create_dir(&staging.folder).map_err(ExportError::io("create", &staging.folder))?;
            return Ok(staging);
        }
        Err(ExportError::io("create", parent)(io::Error::other("every temporary name is taken")))
    }

    /// Where a file of the folder stands for now.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes a new file, and the folder that it is in.
    pub fn create(&self, name: &str) -> Result<File, ExportError> {
        let path = self.path(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(ExportError::io("create", folder))?;
        }
        OpenOptions::new().write(true).create_new(true).open(&path).map_err(ExportError::io("create", &path))
    }

    /// Writes a whole file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<FileRecord, ExportError> {
        let mut file = self.create(name)?;
        file.write_all(bytes).map_err(ExportError::io("write", &self.path(name)))?;
        Ok(FileRecord { bytes: bytes.len() as u64, sha256: format!("{:x}", Sha256::digest(bytes)) })
    }

    /// Copies a file, piece by piece.
    pub fn copy(&self, name: &str, from: &Path) -> Result<FileRecord, ExportError> {
        let (mut source, _) = open_input(from)?;
        let mut file = self.create(name)?;
        let mut hash = Sha256::new();
        let mut record = FileRecord { bytes: 0, sha256: String::new() };
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = source.read(&mut buffer).map_err(ExportError::io("read", from))?;
            if n == 0 {
                record.sha256 = format!("{:x}", hash.finalize());
                return Ok(record);
            }
            file.write_all(&buffer[..n]).map_err(ExportError::io("write", &self.path(name)))?;
            hash.update(&buffer[..n]);
            record.bytes += n as u64;
        }
    }

    /// Gives the folder its name, replacing a bundle of that name if that was allowed.
    pub fn commit(self) -> Result<(), ExportError> {
        check_replaceable(&self.out, self.force)?;
        let old = beside(&self.folder, OLD);
        let replaced = self.out.join(MANIFEST_FILE).exists();
        if replaced {
            fs::rename(&self.out, &old).map_err(ExportError::io("move away", &self.out))?;
        } else if self.out.exists() {
            fs::remove_dir(&self.out).map_err(ExportError::io("replace", &self.out))?;
        }
        if let Err(error) = fs::rename(&self.folder, &self.out) {
            if replaced {
                let _ = fs::rename(&old, &self.out);
            }
            return Err(ExportError::io("create", &self.out)(error));
        }
        // The new bundle stands; what can't be removed of the old one doesn't change that.
        let _ = fs::remove_dir_all(&old);
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After a commit the folder has another name already, and just the lock file is removed.
        let _ = fs::remove_dir_all(&self.folder);
        // While a bundle that was moved away is still there, the lock file stays, so that the next writer finds it.
        if !beside(&self.folder, OLD).exists() {
            let _ = fs::remove_file(beside(&self.folder, LOCK));
        }
    }
}

/// `path` with `suffix` behind its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Removes what writers of `out` left that died: those whose lock is free. A bundle that one of them had moved away, but not replaced yet,
/// gets its name back.
fn recover(parent: &Path, prefix: &str, out: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(folder) = name.to_str().filter(|n| n.starts_with(prefix)).and_then(|n| n.strip_suffix(LOCK)) else { continue };
        let Ok((lock, _)) = open_regular(&entry.path()) else { continue };
        if lock.try_lock().is_err() {
            continue;
        }
        let folder = parent.join(folder);
        let old = beside(&folder, OLD);
        if !out.exists() {
            let _ = fs::rename(&old, out);
        }
        let _ = fs::remove_dir_all(&old);
        let _ = fs::remove_dir_all(&folder);
        let _ = fs::remove_file(entry.path());
    }
}

/// Refuses an output that can't be written in the end: it must be free, an empty folder, or a bundle that may be replaced and holds nothing
/// but what dlc wrote.
///
/// # Errors
/// [`ExportError::Exists`], [`ExportError::NotReplaced`], or [`ExportError::Io`] where it can't be looked at.
pub fn check_replaceable(out: &Path, force: bool) -> Result<(), ExportError> {
    let refuse = |problem: String| Err(ExportError::NotReplaced { path: out.to_owned(), problem });
    match fs::symlink_metadata(out) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return match out.ancestors().skip(1).find(|a| a.symlink_metadata().is_ok()) {
                Some(parent) if !parent.is_dir() => refuse(format!("{} is not a folder", parent.display())),
                _ => Ok(()),
            };
        }
        Err(error) => return Err(ExportError::io("look at", out)(error)),
        Ok(meta) if !meta.is_dir() => return refuse("it is not a folder".to_owned()),
        Ok(_) => {}
    }
    let entries = fs::read_dir(out).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(ExportError::io("read", out))?;
    if entries.is_empty() {
        return Ok(());
    }
    let manifest = read_text(&out.join(MANIFEST_FILE), MANIFEST_CAP).ok().and_then(|text| yaml::read::<Manifest>(&text).ok());
    let Some(manifest) = manifest else {
        return refuse("it is neither empty nor a bundle that this version of dlc wrote".to_owned());
    };
    if !force {
        return Err(ExportError::Exists(out.to_owned()));
    }
    let strange = manifest.strays(out).map_err(ExportError::io("read", out))?;
    if strange.is_empty() { Ok(()) } else { refuse(format!("it holds files that dlc didn't write there: {}", strange.join(", "))) }
}
