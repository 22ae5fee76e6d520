//! Runs whose outputs are fed again: they stay where the session computes.

use std::borrow::Cow;
use std::ptr::NonNull;

use ort::AsPointer;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::SessionInputValue;
use ort::value::{DynValue, TensorElementType};

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

/// A tensor over `bytes` bytes of memory that somebody else owns.
///
/// # Safety
/// `data` is aligned for the element type and has as many bytes as the shape asks; they stay where
/// they are for as long as the value lives, and nobody reads them while a session writes to the
/// value.
#[expect(
    unsafe_code,
    reason = "a value over mapped memory, or over a part of another one, which `ort` doesn't offer"
)]
pub(crate) unsafe fn value_over(
    memory: &MemoryInfo<'_>,
    data: *mut u8,
    bytes: usize,
    shape: &[i64],
    element: TensorElementType,
) -> ort::Result<DynValue> {
    let mut value = std::ptr::null_mut();
    let call = ort::api().CreateTensorWithDataAsOrtValue;
    // SAFETY: the caller's promise is what the call asks for; the value that comes out is ours.
    unsafe {
        let status = call(
            memory.ptr(),
            data.cast(),
            bytes,
            shape.as_ptr(),
            shape.len(),
            element.into(),
            &raw mut value,
        );
        ort::Error::result_from_status(status)?;
        let value = NonNull::new(value).ok_or_else(|| ort::Error::new("no value was made"))?;
        Ok(DynValue::from_ptr(value, Some(&Allocator::default())))
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
