//! How a caller watches the writing of a bundle, and stops it.

/// Watches a bundle being written. Called from several threads, often; must be quick. `()` watches
/// nothing and never stops.
pub trait Progress: Sync {
    /// Called once, before the first weight is written: how many bytes of weights there are.
    fn total(&self, _bytes: u64) {}

    /// So many further bytes of weights are written.
    fn advance(&self, _bytes: u64) {}

    /// Whether to stop; then nothing is left behind.
    fn cancelled(&self) -> bool {
        false
    }
}

impl Progress for () {}
