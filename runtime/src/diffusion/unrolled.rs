//! A sampler that is one graph: noise in, sample out. Scheduler, guidance and what is reused are in
//! the graph.

use std::ops::ControlFlow;

use dlc_ir::Sampling;

use super::feeds::Feeds;
use super::memory::Memory;
use super::{DiffusionSession, SampleProgress, SampleRequest};
use crate::{Result, RuntimeError};

impl DiffusionSession {
    /// What the graph `name` makes of the noise `start`: one call of the backend, so that
    /// `progress` is called once, before it.
    pub(super) fn sample_unrolled(
        &mut self,
        name: &str,
        feeds: &Feeds<'_>,
        start: &[f32],
        shape: [usize; 4],
        progress: &mut dyn FnMut(&SampleProgress<'_>) -> ControlFlow<()>,
    ) -> Result<Option<Vec<f32>>> {
        let now = SampleProgress {
            done: 0,
            total: 1,
            input: &[],
            shape,
        };
        if progress(&now).is_break() {
            return Ok(None);
        }
        let mut memory = Memory::default();
        let step = self
            .steps
            .get_mut(name)
            .ok_or_else(|| RuntimeError::Bug(format!("graph `{name}` isn't loaded")))?;
        let inputs = feeds.inputs(&step.ports, start, 0.0, &[], &memory)?;
        let data = step.run(inputs, &mut memory)?;
        if data.len() != start.len() || !data.iter().all(|x| x.is_finite()) {
            let problem = "isn't a finite number for each of the noise: the model or its weights are broken (check with `dlc verify`)";
            return Err(RuntimeError::port(name, step.ports.output, problem));
        }
        Ok(Some(data))
    }
}

/// Refuses a request that a pruned sampler wasn't made for.
pub(super) fn check(sampling: &Sampling, request: &SampleRequest<'_>) -> Result<()> {
    if request.image.is_some() {
        let problem = "the bundle is pruned for runs that start from noise: sample the whole model with `dlc sample --no-prune`";
        return Err(RuntimeError::Input(problem.to_owned()));
    }
    if sampling.unrolled.is_none() || sampling.guidance.to_bits() == request.guidance.to_bits() {
        return Ok(());
    }
    Err(RuntimeError::Input(format!(
        "the bundle's sampler is one graph with guidance {} in it: leave --guidance out, sample the whole model with `dlc sample --no-prune`, or \
         compile it again with guidance={}",
        sampling.guidance, request.guidance
    )))
}
