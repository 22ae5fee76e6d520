//! Mapped files: the one place where dlc maps one into memory.

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// Maps a file that isn't empty. It must not be cut short while the map lives: reading past its new end would stop the process.
#[expect(unsafe_code, reason = "files are mapped, so that a model needn't fit into memory")]
pub fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the map is read-only, and dlc never writes to a file that it has mapped: outputs are new files, renamed into place. Another
    // process that changes the bytes changes numbers that are read, which no code here relies on for its memory safety.
    unsafe { Mmap::map(file) }
}
