//! Files that must stay as they are while a bundle or a checkpoint is made of them.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

use dlc_errors::{Fault, Faulty};
use thiserror::Error;

/// An input that isn't what it was when it was opened.
#[derive(Debug, Error)]
#[error(
    "{} changed while it was read, so nothing was written; run the command again once nothing writes to the file any more", .0.display()
)]
pub struct ChangedError(pub PathBuf);

impl Faulty for ChangedError {
    fn fault(&self) -> Fault {
        Fault::BadInput
    }
}

/// A file as it was before its first byte was read. Whatever is written to it later, or put in its
/// place, shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStamp {
    path: PathBuf,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    size: u64,
    modified: Option<SystemTime>,
    #[cfg(unix)]
    inode: u64,
    #[cfg(unix)]
    changed: (i64, i64),
}

impl State {
    fn of(path: &Path) -> io::Result<Self> {
        #[cfg(unix)]
        use std::os::unix::fs::MetadataExt;
        let metadata = fs::metadata(path)?;
        Ok(Self {
            size: metadata.len(),
            modified: metadata.modified().ok(),
            #[cfg(unix)]
            inode: metadata.ino(),
            #[cfg(unix)]
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

impl FileStamp {
    /// The file as it is now.
    ///
    /// # Errors
    /// What the system says of a file that can't be looked at.
    pub fn of(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            state: State::of(path)?,
        })
    }

    /// Refuses a file that isn't what it was.
    ///
    /// # Errors
    /// [`ChangedError`].
    pub fn check(&self) -> Result<(), ChangedError> {
        if State::of(&self.path).is_ok_and(|now| now == self.state) {
            Ok(())
        } else {
            Err(ChangedError(self.path.clone()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_written_cut_replaced_or_removed_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let changes: [(&str, &dyn Fn()); 4] = [
            ("written", &|| fs::write(&path, "wolf").unwrap()),
            ("cut", &|| fs::write(&path, "wo").unwrap()),
            ("replaced", &|| {
                fs::write(folder.path().join("new"), "word").unwrap();
                fs::rename(folder.path().join("new"), &path).unwrap();
            }),
            ("removed", &|| fs::remove_file(&path).unwrap()),
        ];
        for (what, change) in changes {
            fs::write(&path, "word").unwrap();
            let stamp = FileStamp::of(&path).unwrap();
            stamp.check().unwrap();
            // Times of files don't tell moments apart that are nearer than this.
            std::thread::sleep(std::time::Duration::from_millis(20));
            change();
            let error = stamp.check().unwrap_err();
            assert_eq!(error.0, path, "{what}");
        }
    }
}
