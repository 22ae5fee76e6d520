//! A folder that appears under its name only when it is complete.
//!
//! Files go to a hidden sibling `.NAME.dlc-tmp-N`, which holds a locked file while its writer lives. Siblings whose writer died are
//! removed by the next one. Nothing is ever deleted that dlc didn't write.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::ExportError;
use crate::manifest::{FileRecord, MANIFEST_FILE, Manifest};

const LOCK: &str = ".lock";
const MARK: &str = ".dlc-tmp-";

/// A folder being written. Dropping it without [`commit`](Self::commit) removes it.
#[derive(Debug)]
pub(crate) struct Staging {
    out: PathBuf,
    folder: PathBuf,
    lock: Option<File>,
    force: bool,
}

impl Staging {
    /// Makes the hidden sibling of `out`, after checking that `out` may be written.
    pub fn new(out: &Path, force: bool) -> Result<Self, ExportError> {
        check_replaceable(out, force)?;
        let name = out
            .file_name()
            .and_then(|n| n.to_str())
            .ok_or_else(|| ExportError::NotReplaced { path: out.to_owned(), problem: "it has no name that a folder could take".to_owned() })?;
        let parent = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(ExportError::io("create", parent))?;
        let prefix = format!(".{name}{MARK}");
        remove_stale(parent, &prefix);
        for attempt in 0..1000u32 {
            let folder = parent.join(format!("{prefix}{}-{attempt}", std::process::id()));
            match fs::create_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(ExportError::io("create", &folder)(error)),
                Ok(()) => {
                    let mut staging = Self { out: out.to_owned(), folder, lock: None, force };
                    staging.take_lock()?;
                    return Ok(staging);
                }
            }
        }
        Err(ExportError::io("create", parent)(io::Error::other("every temporary name is taken")))
    }

    fn take_lock(&mut self) -> Result<(), ExportError> {
        let path = self.folder.join(LOCK);
        let lock = File::create_new(&path).map_err(ExportError::io("create", &path))?;
        // A file system without locks only loses the removal of stale siblings.
        let _ = lock.try_lock();
        self.lock = Some(lock);
        Ok(())
    }

    /// Where a file of the folder stands for now.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes a new file.
    pub fn create(&self, name: &str) -> Result<File, ExportError> {
        let path = self.path(name);
        OpenOptions::new().write(true).create_new(true).open(&path).map_err(ExportError::io("create", &path))
    }

    /// Writes a whole file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<FileRecord, ExportError> {
        let mut file = self.create(name)?;
        file.write_all(bytes).map_err(ExportError::io("write", &self.path(name)))?;
        Ok(FileRecord { bytes: bytes.len() as u64, sha256: hex(&Sha256::digest(bytes)) })
    }

    /// Copies a file, piece by piece.
    pub fn copy(&self, name: &str, from: &Path) -> Result<FileRecord, ExportError> {
        let mut source = File::open(from).map_err(ExportError::io("open", from))?;
        let mut file = self.create(name)?;
        let mut hash = Sha256::new();
        let mut record = FileRecord { bytes: 0, sha256: String::new() };
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = source.read(&mut buffer).map_err(ExportError::io("read", from))?;
            if n == 0 {
                record.sha256 = hex(&hash.finalize());
                return Ok(record);
            }
            file.write_all(&buffer[..n]).map_err(ExportError::io("write", &self.path(name)))?;
            hash.update(&buffer[..n]);
            record.bytes += n as u64;
        }
    }

    /// Gives the folder its name, replacing a bundle of that name if that was allowed.
    pub fn commit(mut self) -> Result<(), ExportError> {
        check_replaceable(&self.out, self.force)?;
        let lock = self.path(LOCK);
        fs::remove_file(&lock).map_err(ExportError::io("remove", &lock))?;
        self.lock = None;
        let old = self.folder.with_extension("old");
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
        if replaced {
            fs::remove_dir_all(&old).map_err(ExportError::io("remove", &old))?;
        }
        // The folder is gone from its old name; there is nothing to clean up.
        self.folder = PathBuf::new();
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.folder.as_os_str().is_empty() {
            self.lock = None;
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Removes siblings whose writer died: their lock is free.
fn remove_stale(parent: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix));
        if !ours || !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        if let Ok(lock) = File::open(entry.path().join(LOCK))
            && lock.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// `out` is free, an empty folder, or a bundle that may be replaced and holds nothing but what dlc wrote.
fn check_replaceable(out: &Path, force: bool) -> Result<(), ExportError> {
    let refuse = |problem: String| Err(ExportError::NotReplaced { path: out.to_owned(), problem });
    match fs::symlink_metadata(out) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ExportError::io("look at", out)(error)),
        Ok(meta) if !meta.is_dir() => return refuse("it is not a folder".to_owned()),
        Ok(_) => {}
    }
    let entries = fs::read_dir(out).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(ExportError::io("read", out))?;
    if entries.is_empty() {
        return Ok(());
    }
    let manifest = fs::read(out.join(MANIFEST_FILE)).ok().and_then(|bytes| serde_yaml::from_slice::<Manifest>(&bytes).ok());
    let Some(manifest) = manifest else {
        return refuse("it is neither empty nor a bundle that this version of dlc wrote".to_owned());
    };
    if !force {
        return Err(ExportError::Exists(out.to_owned()));
    }
    let strange = entries.iter().map(|e| e.file_name().to_string_lossy().into_owned());
    let mut strange: Vec<String> = strange.filter(|name| name != MANIFEST_FILE && !manifest.files.contains_key(name)).collect();
    strange.sort();
    if strange.is_empty() { Ok(()) } else { refuse(format!("it holds files that dlc didn't write there: {}", strange.join(", "))) }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
