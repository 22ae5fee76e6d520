//! A folder that appears under its name only when it is complete.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use dlc_bundle::{FileRecord, MANIFEST_CAP, MANIFEST_FILE, Manifest};
use dlc_files::temporary::Temporary;
use dlc_files::{open_input, read_text, yaml};
use sha2::{Digest, Sha256};

use crate::error::ExportError;

/// A folder being written. Dropping it without [`commit`](Self::commit) removes it.
#[derive(Debug)]
pub(crate) struct Staging {
    out: PathBuf,
    place: Temporary,
    force: bool,
}

impl Staging {
    /// Makes a hidden sibling of `out`, after checking that `out` may be written.
    pub fn new(out: &Path, force: bool) -> Result<Self, ExportError> {
        let name =
            out.file_name()
                .and_then(|n| n.to_str())
                .ok_or_else(|| ExportError::NotReplaced {
                    path: out.to_owned(),
                    problem: "it has no name that a folder could take".to_owned(),
                })?;
        let parent = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        Temporary::recover(parent, name);
        check_replaceable(out, force)?;
        let place = Temporary::place(parent, name)?;
        fs::create_dir(place.path()).map_err(ExportError::io("create", place.path()))?;
        Ok(Self {
            out: out.to_owned(),
            place,
            force,
        })
    }

    /// Where a file of the folder stands for now.
    pub fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Makes a new file, and the folders that it is in.
    pub fn create(&self, name: &str) -> Result<File, ExportError> {
        let path = self.path(name);
        // Not the folder itself: if it is gone, this process is about to end.
        for (end, _) in name.match_indices('/') {
            let folder = self.path(&name[..end]);
            match fs::create_dir(&folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(ExportError::io("create", &folder)(error));
                }
                _ => {}
            }
        }
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(ExportError::io("create", &path))
    }

    /// Writes a whole file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<FileRecord, ExportError> {
        let mut file = self.create(name)?;
        file.write_all(bytes)
            .map_err(ExportError::io("write", &self.path(name)))?;
        Ok(FileRecord {
            bytes: bytes.len() as u64,
            sha256: format!("{:x}", Sha256::digest(bytes)),
        })
    }

    /// Copies a file, piece by piece.
    pub fn copy(&self, name: &str, from: &Path) -> Result<FileRecord, ExportError> {
        let (mut source, _) = open_input(from)?;
        let mut file = self.create(name)?;
        let mut hash = Sha256::new();
        let mut record = FileRecord {
            bytes: 0,
            sha256: String::new(),
        };
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = source
                .read(&mut buffer)
                .map_err(ExportError::io("read", from))?;
            if n == 0 {
                record.sha256 = format!("{:x}", hash.finalize());
                return Ok(record);
            }
            file.write_all(&buffer[..n])
                .map_err(ExportError::io("write", &self.path(name)))?;
            hash.update(&buffer[..n]);
            record.bytes += n as u64;
        }
    }

    /// Gives the folder its name, replacing a bundle of that name if that was allowed.
    pub fn commit(self) -> Result<(), ExportError> {
        let Self { out, place, force } = self;
        check_replaceable(&out, force)?;
        let replaces = out.join(MANIFEST_FILE).exists();
        if !replaces && out.exists() {
            fs::remove_dir(&out).map_err(ExportError::io("replace", &out))?;
        }
        Ok(place.rename(&out, replaces)?)
    }
}

/// Refuses an output that can't be written in the end: it must be free, an empty folder, or a
/// bundle that may be replaced and holds nothing but what dlc wrote.
///
/// # Errors
/// [`ExportError::Exists`], [`ExportError::NotReplaced`], or [`ExportError::Io`] where it can't be
/// looked at.
pub fn check_replaceable(out: &Path, force: bool) -> Result<(), ExportError> {
    let refuse = |problem: String| {
        Err(ExportError::NotReplaced {
            path: out.to_owned(),
            problem,
        })
    };
    match fs::symlink_metadata(out) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return match out
                .ancestors()
                .skip(1)
                .find(|a| a.symlink_metadata().is_ok())
            {
                Some(parent) if !parent.is_dir() => {
                    refuse(format!("{} is not a folder", parent.display()))
                }
                _ => Ok(()),
            };
        }
        Err(error) => return Err(ExportError::io("look at", out)(error)),
        Ok(meta) if !meta.is_dir() => return refuse("it is not a folder".to_owned()),
        Ok(_) => {}
    }
    let entries = fs::read_dir(out)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(ExportError::io("read", out))?;
    if entries.is_empty() {
        return Ok(());
    }
    let manifest = read_text(&out.join(MANIFEST_FILE), MANIFEST_CAP)
        .ok()
        .and_then(|text| yaml::read::<Manifest>(&text).ok());
    let Some(manifest) = manifest else {
        return refuse(
            "it is neither empty nor a bundle that this version of dlc wrote".to_owned(),
        );
    };
    if !force {
        return Err(ExportError::Exists(out.to_owned()));
    }
    let strange = manifest.strays(out).map_err(ExportError::io("read", out))?;
    if strange.is_empty() {
        Ok(())
    } else {
        refuse(format!(
            "it holds files that dlc didn't write there: {}",
            strange.join(", ")
        ))
    }
}
