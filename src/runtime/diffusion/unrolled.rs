//! A sampler that is one graph: noise in, sample out. Scheduler, guidance and what is reused are in the graph.

use std::ops::ControlFlow;

use dlc_ir::{Diffusion, Sampling};

use super::feeds::Feeds;
use super::memory::Memory;
use super::{DiffusionSession, SampleRequest, Samples, noise};
use crate::runtime::{Result, RuntimeError};

impl DiffusionSession {
    /// The sampler and the name of its graph, if it is one.
    pub(super) fn unrolled(&self, prune: bool) -> Option<(&Sampling, &str)> {
        let sampling = self.bundle.manifest().sampling.as_ref().filter(|_| prune)?;
        Some((sampling, sampling.unrolled.as_deref()?))
    }

    /// [`sample`](Self::sample) by the graph `name`: one call of the backend, so that `progress` is called once, before it.
    pub(super) fn sample_unrolled(
        &mut self,
        name: &str,
        request: &SampleRequest<'_>,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<Samples>> {
        let feeds = Feeds::new(request, &self.model)?;
        let Diffusion { channels, height, width, .. } = self.model;
        if progress(0, 1).is_break() {
            return Ok(None);
        }
        let image = channels * height * width;
        let start: Vec<f32> = request.seeds.iter().flat_map(|&seed| noise(seed, image)).collect();
        let mut memory = Memory::default();
        let step = self.steps.get_mut(name).ok_or_else(|| RuntimeError::Bug(format!("graph `{name}` isn't loaded")))?;
        let inputs = feeds.inputs(&step.ports, &start, 0.0, &[], &memory)?;
        let data = step.run(inputs, &mut memory)?;
        if data.len() != start.len() || !data.iter().all(|x| x.is_finite()) {
            let problem = "isn't a finite number for each of the noise: the model or its weights are broken (check with `dlc verify`)";
            return Err(RuntimeError::port(name, step.ports.output, problem));
        }
        Ok(Some(Samples { shape: [request.seeds.len(), channels, height, width], data }))
    }
}

/// Refuses a request that the graph wasn't made for.
pub(super) fn check(sampling: &Sampling, request: &SampleRequest<'_>) -> Result<()> {
    if sampling.guidance.to_bits() == request.guidance.to_bits() {
        return Ok(());
    }
    Err(RuntimeError::Input(format!(
        "the bundle's sampler is one graph with guidance {} in it: leave --guidance out, sample the whole model with `dlc sample --no-prune`, or \
         compile it again with guidance={}",
        sampling.guidance, request.guidance
    )))
}
