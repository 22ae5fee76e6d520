//! Mapped files: the one place where dlc maps one into memory.
//!
//! Whoever cuts such a file short takes pages from under dlc, which the system answers with SIGBUS:
//! `cut.rs` says which file it was.

#[cfg(unix)]
mod cut;

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

#[cfg(unix)]
pub use cut::name_cut_files;

/// Does nothing where there is no SIGBUS.
#[cfg(not(unix))]
pub fn name_cut_files() {}

/// A mapped file.
#[derive(Debug)]
pub struct Mapped {
    /// Declared before the map: it stands for no file any more when that is gone.
    #[cfg(unix)]
    _region: cut::Registered,
    map: Mmap,
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl Mapped {
    /// Lets the system drop the pages that are in memory; what is still read is mapped in again.
    pub fn release_pages(&self) {
        #[cfg(unix)]
        {
            #[expect(unsafe_code, reason = "dropping pages of a file mapping")]
            // SAFETY: the mapping is read-only and backed by the file, so a dropped page is read
            // back with the same content. Advice that the system doesn't take changes nothing, so
            // its error doesn't matter.
            let _ = unsafe {
                self.map
                    .unchecked_advise(memmap2::UncheckedAdvice::DontNeed)
            };
        }
    }
}

/// Maps a file that isn't empty and has this path. If it is cut short while the map lives, reading
/// past its new end stops the process.
#[expect(
    unsafe_code,
    reason = "files are mapped, so that a model needn't fit into memory"
)]
/// Maps an open file; `path` is what messages call it.
///
/// # Errors
/// What the system says of a file that it can't map.
pub fn map(file: &File, path: &Path) -> io::Result<Mapped> {
    // SAFETY: the map is read-only, and dlc never writes to a file that it has mapped: outputs are
    // new files, renamed into place. Another process that changes the bytes changes numbers that
    // are read, which no code here relies on for its memory safety.
    let map = unsafe { Mmap::map(file) }?;
    Ok(Mapped {
        #[cfg(unix)]
        _region: cut::Registered::new(&map, path),
        map,
    })
}
