//! Making cache tensors and copying rows between them, for every element type and device.

use ort::memory::{AllocationDevice, Allocator};
use ort::value::{
    DynTensor, DynTensorValueType, DynValue, PrimitiveTensorElementType, Tensor, TensorElementType,
};

use super::ports::CachePort;
use crate::session::device;
pub(super) use crate::session::memory;
use crate::{Provider, Session};

/// A cache of `length` entries where the session computes: zeros on the CPU, anything on a GPU.
pub(super) fn allocate(
    session: &mut Session,
    port: &CachePort,
    length: usize,
) -> ort::Result<DynValue> {
    let shape = [1, port.heads as i64, length as i64, port.head_dim as i64];
    let allocator = match session.provider() {
        Provider::Cpu => Allocator::default(),
        provider @ Provider::Cuda(_) => Allocator::new(session.ort(), memory(provider)?)?,
    };
    Ok(DynTensor::new(&allocator, port.element, shape)?.into_dyn())
}

/// A new cache that holds the `rows` of an old one, in this order, and room for `length` entries;
/// on the same device.
pub(super) fn select(
    session: &Session,
    port: &CachePort,
    from: &DynValue,
    rows: &[usize],
    length: usize,
) -> ort::Result<DynValue> {
    let provider = session.provider();
    if provider == Provider::Cpu {
        return select_on_host(port, from, rows, length);
    }
    let host = from
        .downcast_ref::<DynTensorValueType>()?
        .to(AllocationDevice::CPU, 0)?
        .into_dyn();
    let (device, id) = device(provider);
    Ok(select_on_host(port, &host, rows, length)?
        .downcast::<DynTensorValueType>()?
        .to(device, id)?
        .into_dyn())
}

/// A cache without entries.
pub(super) fn empty(port: &CachePort) -> ort::Result<DynValue> {
    let shape = [1, port.heads, 0, port.head_dim];
    Ok(match port.element {
        TensorElementType::Float16 => {
            Tensor::from_array((shape, Vec::<half::f16>::new()))?.into_dyn()
        }
        TensorElementType::Bfloat16 => {
            Tensor::from_array((shape, Vec::<half::bf16>::new()))?.into_dyn()
        }
        _ => Tensor::from_array((shape, Vec::<f32>::new()))?.into_dyn(),
    })
}

fn select_on_host(
    port: &CachePort,
    from: &DynValue,
    rows: &[usize],
    length: usize,
) -> ort::Result<DynValue> {
    match port.element {
        TensorElementType::Float16 => select_elements::<half::f16>(port, from, rows, length),
        TensorElementType::Bfloat16 => select_elements::<half::bf16>(port, from, rows, length),
        _ => select_elements::<f32>(port, from, rows, length),
    }
}

fn select_elements<T>(
    port: &CachePort,
    from: &DynValue,
    rows: &[usize],
    length: usize,
) -> ort::Result<DynValue>
where
    T: PrimitiveTensorElementType + Copy + Default + std::fmt::Debug + 'static,
{
    let (shape, data) = from.try_extract_tensor::<T>()?;
    let old_length = shape.get(2).map_or(0, |&dim| dim.max(0) as usize);
    let mut selected = vec![T::default(); port.heads * length * port.head_dim];
    for head in 0..port.heads {
        for (to, &row) in rows.iter().enumerate() {
            let source = (head * old_length + row) * port.head_dim;
            let target = (head * length + to) * port.head_dim;
            let source = data
                .get(source..source + port.head_dim)
                .ok_or_else(|| ort::Error::new(format!("a cache has the shape {shape:?}")))?;
            selected[target..target + port.head_dim].copy_from_slice(source);
        }
    }
    Ok(Tensor::from_array(([1, port.heads, length, port.head_dim], selected))?.into_dyn())
}
