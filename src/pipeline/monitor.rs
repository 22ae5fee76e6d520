//! Who watches a compilation.

use dlc_passes::Progress;

/// Watches a compilation: the steps of passes, and the bytes of weights written.
pub trait Monitor: Progress + dlc_exporters::Progress {}

impl<T: Progress + dlc_exporters::Progress> Monitor for T {}
