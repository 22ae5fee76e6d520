//! One mapped copy of the weights for all sessions of a bundle, and one packed copy.
//!
//! ONNX Runtime packs weights into private memory for each session unless both hold: the sessions
//! are given the *same* values (`AddInitializer`) and one container for the packed form. Only
//! there, and only on the CPU: tract reads the external data by itself, and a GPU has its own copy
//! anyway. Never copies a weight.

use std::collections::BTreeMap;
use std::sync::Arc;

use dlc_bundle::WeightRecord;
use dlc_files::mapped::{self, Mapped};
use dlc_files::open_regular;
use dlc_ir::DType;
use ort::session::builder::{PrepackedWeights, SessionBuilder};
use ort::value::{DynValue, TensorElementType};

use super::session::{memory, value_over};
use super::{Backend, BackendKind, Bundle, Provider, Result, RuntimeError};

/// The mapped weights of a bundle. Sessions made with it keep it alive.
#[derive(Debug)]
pub struct SharedWeights {
    /// Values over [`Self::maps`], by the graphs that use them. Declared first: dropped before the
    /// maps.
    values: BTreeMap<String, Vec<(String, Arc<DynValue>)>>,
    packed: PrepackedWeights,
    maps: Vec<Mapped>,
}

impl SharedWeights {
    /// Maps the bundle's weights; None where sharing isn't possible or there is nothing to share.
    ///
    /// # Errors
    /// [`RuntimeError::File`] for a weight file that can't be mapped, or in which a weight doesn't
    /// fit.
    pub fn open(bundle: &Bundle, backend: &Backend) -> Result<Option<Arc<Self>>> {
        let records = &bundle.manifest().weights;
        if backend.kind() != BackendKind::OnnxRuntime || records.is_empty() {
            return Ok(None);
        }
        let mut maps = BTreeMap::new();
        for (name, path) in bundle.weights_paths() {
            let (file, _) = open_regular(&path)?;
            let map = mapped::map(&file, &path)
                .map_err(|error| RuntimeError::file(&path, format!("can't be mapped: {error}")))?;
            maps.insert(name, (path, map));
        }
        let mut values: BTreeMap<String, Vec<(String, Arc<DynValue>)>> = BTreeMap::new();
        // Vectors are left to each session: they are small, and not every kernel that packs one (a
        // half-precision norm) takes it shared.
        for record in records.iter().filter(|r| r.shape.len() >= 2) {
            let Some((path, map)) = maps.get(bundle.manifest().file_of(record)) else {
                continue;
            };
            let bytes = bytes_of(map, record).ok_or_else(|| {
                RuntimeError::file(path, format!("ends before weight `{}`", record.name))
            })?;
            let count = record
                .shape
                .iter()
                .try_fold(1usize, |n, &dim| n.checked_mul(dim));
            if count.and_then(|n| n.checked_mul(record.dtype.size())) != Some(bytes.len()) {
                return Err(RuntimeError::file(
                    path,
                    format!(
                        "weight `{}` of {} {:?} can't have {} bytes",
                        record.name,
                        record.dtype,
                        record.shape,
                        bytes.len()
                    ),
                ));
            }
            // Left to ONNX Runtime, which copies what it can't use in place.
            if bytes.is_empty() || bytes.as_ptr().align_offset(record.dtype.size()) != 0 {
                continue;
            }
            let value = borrowed_value(bytes, &record.shape, element_type(record.dtype)).map_err(
                |error| RuntimeError::file(path, format!("weight `{}`: {error}", record.name)),
            )?;
            let value = Arc::new(value);
            for graph in &record.graphs {
                values
                    .entry(graph.clone())
                    .or_default()
                    .push((record.name.clone(), Arc::clone(&value)));
            }
        }
        Ok(Some(Arc::new(Self {
            values,
            packed: PrepackedWeights::new(),
            maps: maps.into_values().map(|(_, map)| map).collect(),
        })))
    }

    /// Gives a session that is being built for `graph` the shared values. The session must keep
    /// `self` alive.
    pub(super) fn attach(
        &self,
        graph: &str,
        mut builder: SessionBuilder,
    ) -> ort::Result<SessionBuilder> {
        for (name, value) in self.values.get(graph).into_iter().flatten() {
            builder = builder.with_initializer(name, Arc::clone(value))?;
        }
        Ok(builder.with_prepacked_weights(&self.packed)?)
    }

    /// Lets the system drop the mapped pages that sessions have packed by now; what is still read
    /// is mapped in again.
    pub fn release_pages(&self) {
        self.maps.iter().for_each(Mapped::release_pages);
    }
}

fn bytes_of<'m>(map: &'m Mapped, record: &WeightRecord) -> Option<&'m [u8]> {
    let start = usize::try_from(record.offset).ok()?;
    map.get(start..start.checked_add(usize::try_from(record.bytes).ok()?)?)
}

/// A tensor value that borrows `bytes`; the caller keeps them alive and in place for as long as the
/// value lives.
fn borrowed_value(
    bytes: &[u8],
    shape: &[usize],
    element: TensorElementType,
) -> ort::Result<DynValue> {
    let shape: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
    let memory = memory(Provider::Cpu)?;
    let (data, length) = (bytes.as_ptr().cast_mut(), bytes.len());
    #[expect(unsafe_code, reason = "a value over mapped memory")]
    // SAFETY: `bytes` is aligned for the element type and as long as the shape asks (checked by the
    // caller). ONNX Runtime takes the pointer as mutable but never writes to an initializer. The
    // map after `bytes` outlives the value: `SharedWeights` drops its values first, and each
    // session holds the `SharedWeights` whose values it was given and is dropped before it.
    unsafe {
        value_over(&memory, data, length, &shape, element)
    }
}

/// ONNX Runtime's name of an element type.
pub(crate) fn element_type(dtype: DType) -> TensorElementType {
    match dtype {
        DType::F32 => TensorElementType::Float32,
        DType::F16 => TensorElementType::Float16,
        DType::Bf16 => TensorElementType::Bfloat16,
        DType::I64 => TensorElementType::Int64,
        DType::U8 => TensorElementType::Uint8,
    }
}
