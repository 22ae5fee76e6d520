//! Making cache tensors and copying rows between them, for every element type and device.

use ort::memory::{AllocationDevice, Allocator};
use ort::value::{
    DynTensor, DynTensorValueType, DynValue, PrimitiveTensorElementType, Tensor, TensorElementType,
};

use super::ports::CachePort;
use crate::session::{device, memory, share, value_over};
use crate::{Provider, Result, RuntimeError, Session};

/// A cache of so many rows of `length` entries where the session computes: zeros on the CPU,
/// anything on a GPU.
pub(super) fn allocate(
    session: &mut Session,
    port: &CachePort,
    rows: usize,
    length: usize,
) -> ort::Result<DynValue> {
    let shape = [rows, port.heads, length, port.head_dim].map(|dim| dim as i64);
    let allocator = match session.provider() {
        Provider::Cpu => Allocator::default(),
        provider @ Provider::Cuda(_) => Allocator::new(session.ort(), memory(provider)?)?,
    };
    Ok(DynTensor::new(&allocator, port.element, shape)?.into_dyn())
}

/// Which entries of which rows of a cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    /// The rows that the cache has.
    pub rows: usize,
    /// The entries that a row has room for.
    pub length: usize,
}

/// `count` rows of a cache from row `first` on, over the same memory: valid as long as the cache
/// is.
pub(super) fn rows(
    cache: &DynValue,
    port: &CachePort,
    Window { rows, length }: Window,
    first: usize,
    count: usize,
) -> Result<DynValue> {
    if (first, count) == (0, rows) {
        return share(cache);
    }
    let failed = |error: ort::Error| RuntimeError::Bug(format!("a view of a cache: {error}"));
    let row = port.heads * length * port.head_dim * width(port.element);
    let whole = cache
        .downcast_ref::<DynTensorValueType>()
        .map_err(failed)?
        .data_ptr();
    let shape = [count, port.heads, length, port.head_dim].map(|dim| dim as i64);
    let memory = memory(Provider::Cpu).map_err(failed)?;
    if first + count > rows {
        return Err(RuntimeError::Bug(format!(
            "rows {first} to {} of {rows} of a cache",
            first + count
        )));
    }
    #[expect(unsafe_code, reason = "a view of some rows of a tensor")]
    // SAFETY: rows lie one after the other in the cache, which is on the CPU wherever there are
    // several, and `count` of them from `first` on are within it (checked above). Whoever asks for
    // the view holds the cache for as long, and runs one session at a time over it.
    unsafe {
        let data = whole.cast::<u8>().cast_mut().add(first * row);
        value_over(&memory, data, count * row, &shape, port.element).map_err(failed)
    }
}

/// Bytes of an element.
pub(super) fn width(element: TensorElementType) -> usize {
    if element == TensorElementType::Float32 {
        4
    } else {
        2
    }
}

/// What to do with the first `entries` of two rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Move {
    pub from: usize,
    pub to: usize,
    pub entries: usize,
    /// Whether those of `to` go to `from`.
    pub swaps: bool,
}

/// Copies or swaps entries of two rows of a cache on the CPU.
pub(super) fn move_entries(
    cache: &mut DynValue,
    port: &CachePort,
    window: Window,
    what: Move,
) -> ort::Result<()> {
    match port.element {
        TensorElementType::Float16 => move_elements::<half::f16>(cache, port, window, what),
        TensorElementType::Bfloat16 => move_elements::<half::bf16>(cache, port, window, what),
        _ => move_elements::<f32>(cache, port, window, what),
    }
}

fn move_elements<T: PrimitiveTensorElementType + Copy>(
    cache: &mut DynValue,
    port: &CachePort,
    window: Window,
    what: Move,
) -> ort::Result<()> {
    let Move { from, to, .. } = what;
    let (_, data) = cache.try_extract_tensor_mut::<T>()?;
    let (head, moved) = (window.length * port.head_dim, what.entries * port.head_dim);
    let row = port.heads * head;
    let (low, high) = (from.min(to), from.max(to));
    if low == high || data.len() < (high + 1) * row || moved > head {
        return Ok(());
    }
    let (before, after) = data.split_at_mut(high * row);
    let (low, high) = (&mut before[low * row..][..row], &mut after[..row]);
    for (a, b) in low.chunks_exact_mut(head).zip(high.chunks_exact_mut(head)) {
        let (a, b) = (&mut a[..moved], &mut b[..moved]);
        match (what.swaps, from < to) {
            (true, _) => a.swap_with_slice(b),
            (false, true) => b.copy_from_slice(a),
            (false, false) => a.copy_from_slice(b),
        }
    }
    Ok(())
}

/// A new cache that holds these `entries` of each row of an old one, in this order, and room for
/// `length`; on the same device.
pub(super) fn select(
    session: &Session,
    port: &CachePort,
    from: &DynValue,
    entries: &[usize],
    length: usize,
) -> ort::Result<DynValue> {
    let provider = session.provider();
    if provider == Provider::Cpu {
        return select_on_host(port, from, entries, length);
    }
    let host = from
        .downcast_ref::<DynTensorValueType>()?
        .to(AllocationDevice::CPU, 0)?
        .into_dyn();
    let (device, id) = device(provider);
    Ok(select_on_host(port, &host, entries, length)?
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
    entries: &[usize],
    length: usize,
) -> ort::Result<DynValue> {
    match port.element {
        TensorElementType::Float16 => select_elements::<half::f16>(port, from, entries, length),
        TensorElementType::Bfloat16 => select_elements::<half::bf16>(port, from, entries, length),
        _ => select_elements::<f32>(port, from, entries, length),
    }
}

fn select_elements<T>(
    port: &CachePort,
    from: &DynValue,
    entries: &[usize],
    length: usize,
) -> ort::Result<DynValue>
where
    T: PrimitiveTensorElementType + Copy + Default + std::fmt::Debug + 'static,
{
    let (shape, data) = from.try_extract_tensor::<T>()?;
    let dim = |at: usize| shape.get(at).map_or(0, |&dim| dim.max(0) as usize);
    let (rows, old_length) = (dim(0), dim(2));
    let mut selected = vec![T::default(); rows * port.heads * length * port.head_dim];
    for head in 0..rows * port.heads {
        for (to, &entry) in entries.iter().enumerate() {
            let source = (head * old_length + entry) * port.head_dim;
            let target = (head * length + to) * port.head_dim;
            let source = data
                .get(source..source + port.head_dim)
                .ok_or_else(|| ort::Error::new(format!("a cache has the shape {shape:?}")))?;
            selected[target..target + port.head_dim].copy_from_slice(source);
        }
    }
    let shape = [rows, port.heads, length, port.head_dim];
    Ok(Tensor::from_array((shape, selected))?.into_dyn())
}
