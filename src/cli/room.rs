//! What a compilation needs on disk and in memory, beside what is free.

use std::path::Path;

use dlc_passes::Needs;
use serde::Serialize;

use super::failure::{Result, bail};
use super::{environment, memory};

/// What a compilation needs, beside what there is.
#[derive(Debug, Serialize)]
pub(super) struct Room {
    disk: u64,
    free_disk: Option<u64>,
    memory: u64,
    free_memory: Option<u64>,
}

impl Room {
    /// For a folder that would be at `output`.
    pub fn new(needs: Needs, output: &Path) -> Self {
        Self {
            disk: needs.disk,
            free_disk: environment::free_disk(output),
            memory: needs.memory,
            free_memory: memory::free(),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let of = |needed: u64, free: Option<u64>, what: &str| {
            let free = free.map_or_else(String::new, |free| {
                format!(
                    " ({} free{})",
                    size(free),
                    if needed > free { ": too little" } else { "" }
                )
            });
            format!("about {} {what}{free}", size(needed))
        };
        format!(
            "needs {} and {}",
            of(self.disk, self.free_disk, "on disk"),
            of(self.memory, self.free_memory, "of memory")
        )
    }
}

/// Refuses to fill a disk. What is called `option` names another folder.
pub(super) fn check_room(folder: &Path, bytes: u64, option: &str) -> Result<()> {
    match environment::free_disk(folder) {
        Some(free) if free < bytes => bail!(
            "{} has room for {}, and {} are needed; name another folder by {option}",
            folder.display(),
            size(free),
            size(bytes)
        ),
        _ => Ok(()),
    }
}

/// Bytes as people say them: `7.1 GB`.
pub(super) fn size(bytes: u64) -> String {
    match bytes as f64 {
        bytes if bytes >= 1e9 => format!("{:.1} GB", bytes / 1e9),
        bytes => format!("{:.0} MB", (bytes / 1e6).max(1.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_named_with_a_way_out() {
        let error = check_room(Path::new("."), u64::MAX, "--dest").unwrap_err();
        let message = error.message();
        assert!(
            message.contains("are needed") && message.contains("--dest"),
            "{message}"
        );
        check_room(Path::new("."), 1, "--dest").unwrap();
    }
}
