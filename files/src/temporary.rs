//! Temporary folders and files: hidden, locked while their owner lives, and removed by a later run
//! if it died.
//!
//! `.NAME.dlc-tmp-N` is the folder or file, `.NAME.dlc-tmp-N.lock` beside it is locked while its
//! owner lives. What took the place of a bundle moved that one to `.NAME.dlc-tmp-N.old` for a
//! moment. Nothing is ever deleted that dlc didn't write.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::IoError;

const LOCK: &str = ".lock";
const OLD: &str = ".old";
const MARK: &str = ".dlc-tmp-";
/// How the names of all scratch folders begin.
const SCRATCH: &str = ".dlc-";

/// What this process has made and not removed yet.
static LIVE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Held while one is made, renamed or removed.
fn live() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place for a folder or a file. Dropping it removes what is there, unless it got its [final
/// name](Self::rename).
#[derive(Debug)]
pub struct Temporary {
    path: PathBuf,
    /// Held until nothing is left at the place.
    _lock: File,
}

impl Temporary {
    /// A place beside `parent/name`, for what gets that name in the end. Removes what dead owners
    /// of such places left in `parent`, and scratch folders of theirs.
    ///
    /// # Errors
    /// [`IoError`] where nothing can be made.
    pub fn place(parent: &Path, name: &str) -> Result<Self, IoError> {
        let mut live = live();
        recover(parent, name);
        fs::create_dir_all(parent).map_err(IoError::of("create", parent))?;
        for attempt in 0..1000u32 {
            let path = parent.join(format!(".{name}{MARK}{}-{attempt}", std::process::id()));
            let lock_path = beside(&path, LOCK);
            let lock = match File::create_new(&lock_path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(IoError::of("create", &lock_path))?,
            };
            // Before the lock was taken, another run may have seen a lock file without an owner. A
            // file system without locks only loses the removal of what dead owners left.
            if matches!(lock.try_lock(), Err(TryLockError::WouldBlock))
                || !stands_at(&lock, &lock_path)
            {
                continue;
            }
            if path.symlink_metadata().is_ok() {
                let _ = fs::remove_file(&lock_path);
                continue;
            }
            live.insert(path.clone());
            return Ok(Self { path, _lock: lock });
        }
        Err(IoError::of("create", parent)(io::Error::other(
            "every temporary name is taken",
        )))
    }

    /// Removes what dead owners of places beside `parent/name` left in `parent`, and gives a bundle
    /// that one of them had moved away its name back.
    pub fn recover(parent: &Path, name: &str) {
        let _live = live();
        recover(parent, name);
    }

    /// A folder for what nobody keeps, such as bundles that are only timed. Only its owner may look
    /// into it.
    ///
    /// # Errors
    /// [`IoError`] where it can't be made.
    pub fn scratch(parent: &Path, purpose: &str) -> Result<Self, IoError> {
        let place = Self::place(parent, &format!("{}{purpose}", &SCRATCH[1..]))?;
        let mut builder = DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder
            .create(&place.path)
            .map_err(IoError::of("create", &place.path))?;
        Ok(place)
    }

    /// Where the folder or file stands for now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its final name. What stands there and may be replaced is moved away first, and
    /// removed when the new one stands.
    ///
    /// # Errors
    /// [`IoError`]; then what stood there stands there still.
    pub fn rename(self, to: &Path, replaces: bool) -> Result<(), IoError> {
        let old = beside(&self.path, OLD);
        let _live = live();
        if replaces {
            fs::rename(to, &old).map_err(IoError::of("move away", to))?;
        }
        if let Err(error) = fs::rename(&self.path, to) {
            if replaces {
                let _ = fs::rename(&old, to);
            }
            return Err(IoError::of("create", to)(error));
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Large folders take a while, in which a process that is to end must not wait.
        let cleared = clear(&self.path);
        let mut live = live();
        if cleared
            .and_then(|()| remove(&beside(&self.path, LOCK)))
            .is_ok()
        {
            live.remove(&self.path);
        }
    }
}

/// Removes all that this process has made and not named yet, for a process that must end now;
/// returns what couldn't be removed. Whoever makes, names or drops one afterwards waits for the
/// end.
pub fn remove_all() -> Vec<PathBuf> {
    let live = live();
    let removed = |path: &&PathBuf| {
        clear(path)
            .and_then(|()| remove(&beside(path, LOCK)))
            .is_ok()
    };
    let left = live.iter().filter(|path| !removed(path)).cloned().collect();
    std::mem::forget(live);
    left
}

/// What this process has made and neither named nor removed.
pub fn remaining() -> Vec<PathBuf> {
    live().iter().cloned().collect()
}

/// `path` with `suffix` after its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The final name of what is at a temporary place.
fn final_name(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?.strip_prefix('.')?;
    Some(path.with_file_name(&name[..name.rfind(MARK)?]))
}

/// Whether the open file is the one that has this path.
fn stands_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let (opened, named) = (
            file.metadata().map(identity),
            fs::symlink_metadata(path).map(identity),
        );
        opened.is_ok_and(|opened| named.is_ok_and(|named| opened == named))
    }
    #[cfg(not(unix))]
    {
        let _ = (file, path);
        true
    }
}

/// Removes what is at a temporary place, its lock file aside. A bundle that was moved away, but not
/// replaced yet, gets its name back.
fn clear(path: &Path) -> io::Result<()> {
    let old = beside(path, OLD);
    if old.symlink_metadata().is_ok() {
        match final_name(path).filter(|name| name.symlink_metadata().is_err()) {
            Some(name) => fs::rename(&old, name)?,
            None => remove(&old)?,
        }
    }
    remove(path)
}

/// Removes a file or a folder, into which a thread that knows nothing of it may still write.
fn remove(path: &Path) -> io::Result<()> {
    const ATTEMPTS: usize = 5;
    let mut result = Ok(());
    for _ in 0..ATTEMPTS {
        result = match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => Err(error),
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
        };
        if result.is_ok() {
            break;
        }
    }
    result
}

/// Clears the places in `parent` whose owners died: whose lock is free.
fn recover(parent: &Path, name: &str) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    let prefix = format!(".{name}{MARK}");
    let is_ours = |place: &str| {
        place.starts_with(&prefix) || place.starts_with(SCRATCH) && place.contains(MARK)
    };
    for entry in entries.flatten() {
        let file_name = entry.file_name();
        let Some(place) = file_name
            .to_str()
            .and_then(|n| n.strip_suffix(LOCK))
            .filter(|place| is_ours(place))
        else {
            continue;
        };
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let Ok(lock) = File::open(entry.path()) else {
            continue;
        };
        if lock.try_lock().is_ok()
            && stands_at(&lock, &entry.path())
            && clear(&parent.join(place)).is_ok()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_scratch_folder_is_locked_while_it_lives_and_gone_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let scratch = Temporary::scratch(folder.path(), "probes").unwrap();
        fs::write(scratch.path().join("weights.bin"), "half").unwrap();
        let place = scratch.path().file_name().unwrap().to_str().unwrap();
        assert!(place.starts_with(".dlc-probes.dlc-tmp-"), "{place}");
        let lock = File::open(folder.path().join(format!("{place}.lock"))).unwrap();
        assert!(lock.try_lock().is_err());
        // Another run takes it for what it is.
        let other = Temporary::scratch(folder.path(), "probes").unwrap();
        assert!(scratch.path().is_dir() && other.path() != scratch.path());
        assert!(remaining().contains(&scratch.path().to_owned()));
        drop((scratch, other));
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn scratch_folders_of_dead_runs_are_removed_by_whatever_is_made_beside_them() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".dlc-probes.dlc-tmp-1-0", ".dlc-demo.dlc-tmp-1-7"] {
            fs::create_dir_all(folder.path().join(name).join("bundle")).unwrap();
            File::create(folder.path().join(format!("{name}.lock"))).unwrap();
        }
        fs::write(folder.path().join(".dlc-mine"), "").unwrap();
        drop(Temporary::place(folder.path(), "out").unwrap());
        assert_eq!(names(folder.path()), [".dlc-mine"]);
    }

    #[test]
    fn a_file_gets_its_name_when_it_is_whole_or_goes_away() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("scores.json");
        for text in ["first", "second"] {
            let place = Temporary::place(folder.path(), "scores.json").unwrap();
            fs::write(place.path(), text).unwrap();
            place.rename(&to, false).unwrap();
            assert_eq!(fs::read_to_string(&to).unwrap(), text);
        }
        let place = Temporary::place(folder.path(), "scores.json").unwrap();
        fs::write(place.path(), "half").unwrap();
        drop(place);
        assert_eq!(names(folder.path()), ["scores.json"]);
    }
}
