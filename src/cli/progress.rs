//! How computations are watched and stopped: the phases that they go through, and the wish to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::phases;
use super::signals::interruption;

/// Shows the phases of a computation, and stops it on Ctrl-C.
#[derive(Debug)]
pub(super) struct Bar {
    interrupted: Arc<AtomicBool>,
    written: AtomicU64,
    bytes: AtomicU64,
}

impl Bar {
    pub fn new() -> Self {
        Self { interrupted: interruption(), written: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    pub fn finish(&self) {
        phases::pause();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.finish();
    }
}

impl dlc_passes::Progress for Bar {
    fn phase(&self, name: &str) {
        phases::begin(name);
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
        phases::step("weights, MB", written / MEGABYTE, self.bytes.load(Ordering::SeqCst) / MEGABYTE);
    }

    fn cancelled(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }
}

const MEGABYTE: u64 = 1_000_000;
