//! The folder that holds ONNX Runtime's library, with the manifest that
//! `scripts/fetch_onnxruntime.sh` reads and writes too.
//!
//! The manifest's first line says which build lies here, the others name its files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use dlc_files::{IoError, StagedFile, read_document};

use super::failure::{Result, bail};
use super::wheel::is_library;

const MANIFEST: &str = ".fetched";
const LONGEST_MANIFEST: u64 = 1 << 16;
/// Stands for the build while files are replaced: what a run leaves that is ended there is
/// installed anew by the next one.
const UNFINISHED: &str = "unfinished";

/// The library's name for every version.
const STABLE: &str = if cfg!(windows) {
    "onnxruntime.dll"
} else if cfg!(target_os = "macos") {
    "libonnxruntime.dylib"
} else {
    "libonnxruntime.so"
};

/// A folder of libraries.
#[derive(Debug)]
pub(super) struct LibraryFolder {
    path: PathBuf,
    /// The build that lies here; empty if none was installed.
    build: String,
    /// Names of the files that were installed.
    files: BTreeSet<String>,
}

impl LibraryFolder {
    /// The folder at `path`, which need not be there.
    pub fn open(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).map_err(IoError::of("find", path))?;
        let manifest = path.join(MANIFEST);
        let text = if manifest.symlink_metadata().is_ok() {
            read_document(&manifest, LONGEST_MANIFEST)?
        } else {
            String::new()
        };
        let mut lines = text.lines();
        let build = lines.next().unwrap_or_default().to_owned();
        // Names alone: what lies elsewhere was never installed.
        let files = lines.filter_map(|line| Path::new(line).file_name()?.to_str());
        let files = files.map(str::to_owned).collect();
        Ok(Self { path, build, files })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The library's path, under the name that it has in every version.
    pub fn library(&self) -> PathBuf {
        self.path.join(STABLE)
    }

    /// Whether this build lies here.
    pub fn holds(&self, build: &str) -> bool {
        self.build == build && self.library().exists()
    }

    /// Refuses to replace files that nothing installed.
    pub fn check_replaced(&self, names: &[String]) -> Result<()> {
        let stable = STABLE.to_owned();
        for name in names.iter().chain([&stable]) {
            let path = self.path.join(name);
            if !self.files.contains(name) && path.symlink_metadata().is_ok() {
                bail!(
                    "{} isn't of an earlier setup; replace it with --force, or name another folder with --dest",
                    path.display()
                );
            }
        }
        Ok(())
    }

    /// Moves the files called `names` from the folder `staged`, on the same disk, here, and removes
    /// those of the build before. Each file is whole at any time.
    pub fn install(self, build: &str, staged: &Path, names: &[String]) -> Result<PathBuf> {
        let library = names.iter().find(|name| is_library(name));
        let linked = library.filter(|name| *name != STABLE);
        let mut files: BTreeSet<String> = names.iter().cloned().collect();
        files.extend(linked.map(|_| STABLE.to_owned()));
        self.write_manifest(UNFINISHED, &(&self.files | &files))?;
        if let Some(library) = linked {
            link(library, &staged.join(STABLE))?;
        }
        for name in &files {
            let to = self.path.join(name);
            fs::rename(staged.join(name), &to).map_err(IoError::of("create", &to))?;
        }
        for name in self.files.difference(&files) {
            let old = self.path.join(name);
            match fs::remove_file(&old) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(IoError::of("remove", &old)(error).into());
                }
                _ => {}
            }
        }
        self.write_manifest(build, &files)?;
        Ok(self.library())
    }

    fn write_manifest(&self, build: &str, files: &BTreeSet<String>) -> Result<()> {
        let mut text = format!("{build}\n");
        for name in files {
            text += &format!("{name}\n");
        }
        StagedFile::new(&self.path.join(MANIFEST), text.as_bytes())?.commit()?;
        Ok(())
    }
}

#[cfg(unix)]
fn link(library: &str, to: &Path) -> Result<(), IoError> {
    std::os::unix::fs::symlink(library, to).map_err(IoError::of("create", to))
}

/// Elsewhere the library has its stable name in the wheel.
#[cfg(not(unix))]
fn link(library: &str, to: &Path) -> Result<(), IoError> {
    fs::copy(to.with_file_name(library), to)
        .map(drop)
        .map_err(IoError::of("create", to))
}
