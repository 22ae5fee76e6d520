//! How computations are watched and stopped: the phases that they go through, and the wish to stop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dlc_passes::Needs;

use super::output::note;
use super::phases;
use super::room::Room;
use super::signals::interruption;

/// Shows the phases of a computation, and stops it on Ctrl-C.
#[derive(Debug)]
pub(super) struct Bar {
    interrupted: Arc<AtomicBool>,
    /// Where the result goes, if what it needs is to be shown.
    output: Option<PathBuf>,
    written: AtomicU64,
    bytes: AtomicU64,
}

impl Bar {
    pub fn new() -> Self {
        Self {
            interrupted: interruption(),
            output: None,
            written: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// As [`new`](Self::new), and shows before the work what it will need to write `output`.
    pub fn for_output(output: &Path) -> Self {
        let mut bar = Self::new();
        bar.output = Some(output.to_owned());
        bar
    }

    /// The work is done.
    pub fn finish(self) {
        drop(self);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        phases::pause();
    }
}

impl dlc_passes::Progress for Bar {
    fn phase(&self, name: &str) {
        phases::begin(name);
    }

    fn needs(&self, needs: Needs) {
        if let Some(output) = &self.output {
            let _ = note(&Room::new(needs, output).text());
        }
    }

    fn update(&self, what: &str, done: usize, total: usize) {
        phases::step(what, done as u64, total as u64);
    }

    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }
}

impl dlc_exporters::Progress for Bar {
    fn total(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::SeqCst);
        self.written.store(0, Ordering::SeqCst);
        self.advance(0);
    }

    fn advance(&self, bytes: u64) {
        let written = self.written.fetch_add(bytes, Ordering::SeqCst) + bytes;
        phases::step(
            "weights, MB",
            written / MEGABYTE,
            self.bytes.load(Ordering::SeqCst) / MEGABYTE,
        );
    }

    fn cancelled(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }
}

const MEGABYTE: u64 = 1_000_000;
