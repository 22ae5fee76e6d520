//! The scheduler's runs in the cache: a pass that was stopped makes none of them again.

use super::NAME;
use super::network::{Network, Run};
use crate::context::PassContext;
use crate::error::PassError;
use crate::sampling::{Start, fingerprint};

/// Runs by their number.
pub(super) struct KeptRuns<'a> {
    network: &'a Network<'a>,
    cx: &'a PassContext<'a>,
    key: String,
}

impl<'a> KeptRuns<'a> {
    /// Those of the network's scheduler, from the noise of `seed`.
    pub fn new(network: &'a Network<'a>, seed: u64, cx: &'a PassContext<'a>) -> Self {
        let (driver, guidance) = (network.driver, network.guidance);
        let plan = serde_json::to_string(&driver.plan).unwrap_or_default();
        let key = format!(
            "{NAME} 1 {} {} {seed} {:x} {plan}",
            cx.module_key,
            driver.guidance,
            fingerprint(guidance.prompts)
        );
        Self { network, cx, key }
    }

    fn key(&self, number: usize) -> String {
        format!("{} run {number}", self.key)
    }

    /// The run from `start`, which always has this number.
    pub fn run(&self, number: usize, start: Start) -> Result<Run, PassError> {
        let key = self.key(number);
        let bytes = self.cx.cache.and_then(|cache| cache.get_bytes(&key));
        let steps = self.network.driver.plan.steps.len();
        if let Some(run) = bytes.and_then(|bytes| Run::from_bytes(&start, steps, &bytes)) {
            return Ok(run);
        }
        let run = self.network.run(start, self.cx)?;
        if let Some(cache) = self.cx.cache {
            cache.put_bytes(&key, &run.to_bytes());
        }
        Ok(run)
    }

    /// Forgets so many runs: they are large.
    pub fn forget(&self, count: usize) {
        if let Some(cache) = self.cx.cache {
            (0..count).for_each(|number| cache.remove(&self.key(number)));
        }
    }
}
