//! Entries of caches as bytes, and back: what outlives the process.
//!
//! The bytes are those of the elements, lowest first, head after head.

use ort::value::{DynValue, PrimitiveTensorElementType, TensorElementType};

use super::ports::CachePort;
use super::values::width;

/// An element of a cache.
trait Element: PrimitiveTensorElementType + Copy + Default {
    fn write(self, bytes: &mut Vec<u8>);
    /// From as many bytes as it has.
    fn read(bytes: &[u8]) -> Option<Self>;
}

macro_rules! elements {
    ($($float:ty),*) => {$(
        impl Element for $float {
            fn write(self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_le_bytes());
            }

            fn read(bytes: &[u8]) -> Option<Self> {
                Some(Self::from_le_bytes(bytes.try_into().ok()?))
            }
        }
    )*};
}
elements!(f32, half::f16, half::bf16);

/// A row of a cache on the CPU.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'p> {
    pub port: &'p CachePort,
    pub number: usize,
    /// Entries that it has room for.
    pub length: usize,
}

/// Bytes of `count` entries.
fn bytes_of(port: &CachePort, count: usize) -> usize {
    port.heads * count * port.head_dim * width(port.element)
}

/// Whether `cache` has `count` entries of every port.
pub(super) fn fits(ports: &[CachePort], count: usize, cache: &[Vec<u8>]) -> bool {
    let mut parts = ports.iter().zip(cache);
    cache.len() == ports.len() && parts.all(|(port, bytes)| bytes.len() == bytes_of(port, count))
}

impl Row<'_> {
    /// These entries.
    pub fn save(self, cache: &DynValue, entries: &[usize]) -> ort::Result<Vec<u8>> {
        match self.port.element {
            TensorElementType::Float16 => self.save_elements::<half::f16>(cache, entries),
            TensorElementType::Bfloat16 => self.save_elements::<half::bf16>(cache, entries),
            _ => self.save_elements::<f32>(cache, entries),
        }
    }

    /// Writes `count` entries to the row's beginning.
    pub fn restore(self, cache: &mut DynValue, count: usize, bytes: &[u8]) -> ort::Result<()> {
        match self.port.element {
            TensorElementType::Float16 => self.restore_elements::<half::f16>(cache, count, bytes),
            TensorElementType::Bfloat16 => self.restore_elements::<half::bf16>(cache, count, bytes),
            _ => self.restore_elements::<f32>(cache, count, bytes),
        }
    }

    /// Where its heads begin, in elements.
    fn heads(self) -> impl Iterator<Item = usize> {
        let heads = self.number * self.port.heads..(self.number + 1) * self.port.heads;
        heads.map(move |head| head * self.length * self.port.head_dim)
    }

    fn save_elements<T: Element>(
        self,
        cache: &DynValue,
        entries: &[usize],
    ) -> ort::Result<Vec<u8>> {
        let (_, data) = cache.try_extract_tensor::<T>()?;
        let dim = self.port.head_dim;
        let mut bytes = Vec::with_capacity(bytes_of(self.port, entries.len()));
        for head in self.heads() {
            for entry in entries {
                let values = data.get(head + entry * dim..head + (entry + 1) * dim);
                let values = values.ok_or_else(|| ort::Error::new("a cache is too short"))?;
                for value in values {
                    value.write(&mut bytes);
                }
            }
        }
        Ok(bytes)
    }

    fn restore_elements<T: Element>(
        self,
        cache: &mut DynValue,
        count: usize,
        bytes: &[u8],
    ) -> ort::Result<()> {
        let (_, data) = cache.try_extract_tensor_mut::<T>()?;
        let of_head = count * self.port.head_dim;
        let parts = bytes.chunks_exact(size_of::<T>()).map(T::read);
        let mut values = parts.map(Option::unwrap_or_default);
        for head in self.heads() {
            let place = data.get_mut(head..head + of_head);
            let place = place.ok_or_else(|| ort::Error::new("a cache is too short"))?;
            for (to, from) in place.iter_mut().zip(&mut values) {
                *to = from;
            }
        }
        Ok(())
    }
}
