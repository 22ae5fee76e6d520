//! The files that a command writes, by name or to stdout.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use dlc_files::{StagedFile, check_output};

use super::failure::{Result, bail};

/// Names of stdout. Written through its own handle, so that what a shell redirected goes on where
/// it is.
const STDOUT: [&str; 4] = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];

/// Where a file goes.
#[derive(Debug, Clone)]
pub(super) enum Destination {
    Stdout,
    File(PathBuf),
}

impl Destination {
    /// Refuses stdout for a folder.
    pub fn check_folder(path: &Path) -> Result<()> {
        if is_stdout(path) {
            bail!(
                "{} is stdout, where no folder can go; name a folder (./- if that is its name)",
                path.display()
            );
        }
        Ok(())
    }

    /// What `path` means. Refuses what can't be written in the end: see [`check_output`], and a
    /// terminal.
    pub fn check(path: &Path, extensions: &[&str]) -> Result<Self> {
        if !is_stdout(path) {
            check_output(path, extensions)?;
            return Ok(Self::File(path.to_owned()));
        }
        if io::stdout().is_terminal() {
            bail!(
                "stdout is a terminal; redirect it, or name a file that ends in .{}",
                extensions.join(" or .")
            );
        }
        Ok(Self::Stdout)
    }

    pub fn is_stdout(&self) -> bool {
        matches!(self, Self::Stdout)
    }
}

fn is_stdout(path: &Path) -> bool {
    STDOUT.iter().any(|name| path.as_os_str() == *name)
}

/// Refuses two results on stdout.
pub(super) fn check_stdout(destinations: &[&Destination], json: bool) -> Result<()> {
    let takers = destinations
        .iter()
        .filter(|destination| destination.is_stdout())
        .count()
        + usize::from(json);
    if takers > 1
        && destinations
            .iter()
            .any(|destination| destination.is_stdout())
    {
        bail!(
            "stdout takes one result: name files for all but one{}",
            if json { ", or leave --json out" } else { "" }
        );
    }
    Ok(())
}

/// Writes files; none of them has its name before all are on the disk.
pub(super) fn write(files: &[(&Destination, Vec<u8>)]) -> Result<()> {
    let mut staged = Vec::new();
    for (destination, bytes) in files {
        if let Destination::File(path) = destination {
            staged.push(StagedFile::new(path, bytes)?);
        }
    }
    staged.into_iter().try_for_each(StagedFile::commit)?;
    for (_, bytes) in files
        .iter()
        .filter(|(destination, _)| destination.is_stdout())
    {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()?;
    }
    Ok(())
}
