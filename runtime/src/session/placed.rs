//! Runs whose outputs are fed again: they stay where the session computes.

use std::borrow::Cow;

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::SessionInputValue;
use ort::value::DynValue;

use super::Session;
use crate::{Provider, Result, RuntimeError};

/// Where a provider's tensors lie.
pub(crate) fn memory(provider: Provider) -> ort::Result<MemoryInfo<'static>> {
    let (device, id) = device(provider);
    MemoryInfo::new(device, id, AllocatorType::Device, MemoryType::Default)
}

/// The device that a provider computes on.
pub(crate) fn device(provider: Provider) -> (AllocationDevice<'static>, i32) {
    match provider {
        Provider::Cpu => (AllocationDevice::CPU, 0),
        Provider::Cuda(id) => (AllocationDevice::CUDA, id),
    }
}

impl Session {
    /// Runs the graph. Returns the output `read` in host memory, and the outputs `kept`, in this
    /// order, where the session computes.
    pub(crate) fn run_keeping(
        &mut self,
        inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)>,
        read: &str,
        kept: &[&str],
    ) -> Result<(DynValue, Vec<DynValue>)> {
        let graph = self.graph.clone();
        let missing =
            |name: &str| RuntimeError::port(&graph, name, "the session returned no such output");
        if self.provider == Provider::Cpu {
            let mut outputs = self.run(inputs)?;
            let value = outputs.remove(read).ok_or_else(|| missing(read))?;
            let kept = kept
                .iter()
                .map(|name| outputs.remove(name).ok_or_else(|| missing(name)));
            return Ok((value, kept.collect::<Result<_>>()?));
        }
        // Without a binding every output would be copied to host memory and back.
        let bound = (|| {
            let mut binding = self.inner.create_binding()?;
            for (name, value) in &inputs {
                binding.bind_input(name.as_ref(), value)?;
            }
            binding.bind_output_to_device(read, &memory(Provider::Cpu)?)?;
            for name in kept {
                binding.bind_output_to_device(*name, &memory(self.provider)?)?;
            }
            let mut outputs = self.inner.run_binding(&binding)?;
            let mut take = |name: &str| {
                outputs
                    .remove(name)
                    .ok_or_else(|| ort::Error::new(format!("no output `{name}`")))
            };
            Ok((
                take(read)?,
                kept.iter()
                    .map(|name| take(name))
                    .collect::<ort::Result<_>>()?,
            ))
        })();
        bound.map_err(|error: ort::Error| self.failed(&error))
    }
}
