//! Places in the queue of a model: as many as may be, each given back once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::metrics::ModelMetrics;
use super::problem::Problem;

/// A place among those who wait. It is left when work begins, or when the one who waits for it goes
/// away.
#[derive(Debug, Clone)]
pub(super) struct Place {
    is_held: Arc<AtomicBool>,
    metrics: Arc<ModelMetrics>,
}

impl Place {
    /// Takes so many, all or none, where `most` may wait or be under way.
    pub fn take(
        metrics: &Arc<ModelMetrics>,
        count: usize,
        most: usize,
    ) -> Result<Vec<Self>, Problem> {
        let asked = count as u64;
        let before = metrics.waiting.fetch_add(asked, Ordering::SeqCst);
        let under_way = before + metrics.running.load(Ordering::SeqCst);
        if under_way + asked > most as u64 {
            metrics.waiting.fetch_sub(asked, Ordering::SeqCst);
            return Err(Problem::full(before as usize));
        }
        let place = || Self {
            is_held: Arc::new(AtomicBool::new(true)),
            metrics: Arc::clone(metrics),
        };
        Ok((0..count).map(|_| place()).collect())
    }

    /// Gives the place back, if that wasn't done before.
    pub fn leave(&self) {
        if self.is_held.swap(false, Ordering::SeqCst) {
            self.metrics.waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Held by the one who waits: the place is left where it is dropped.
#[derive(Debug)]
pub(super) struct Waiting(pub Place);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.leave();
    }
}
