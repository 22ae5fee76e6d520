//! Floats from safetensors files: embeddings of texts, classifiers, statistics. Files may come from
//! anyone.

use std::collections::BTreeMap;
use std::path::Path;

use dlc_files::read_input;
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::{Result, RuntimeError};

/// The largest file that is read.
const CAP: u64 = 1 << 30;

/// A dense tensor, row-major, converted to 32-bit floats.
#[derive(Debug, Clone, PartialEq)]
pub struct FloatTensor {
    /// Dimensions.
    pub shape: Vec<usize>,
    /// As many elements as the dimensions' product.
    pub data: Vec<f32>,
}

/// Every tensor of a file, by name.
///
/// # Errors
/// [`RuntimeError::File`] for a file that is no safetensors, or larger than a gigabyte, or holds
/// other numbers than floats and integers.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, FloatTensor>> {
    let bytes = read_input(path, CAP)?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| RuntimeError::file(path, format!("isn't a safetensors file: {error}")))?;
    let convert = |(name, view): (String, TensorView<'_>)| {
        let data = floats(&view).ok_or_else(|| {
            RuntimeError::file(
                path,
                format!("`{name}` holds {:?}; floats are read", view.dtype()),
            )
        })?;
        Ok((
            name,
            FloatTensor {
                shape: view.shape().to_vec(),
                data,
            },
        ))
    };
    file.tensors().into_iter().map(convert).collect()
}

fn floats(view: &TensorView<'_>) -> Option<Vec<f32>> {
    fn each<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes
            .as_chunks::<N>()
            .0
            .iter()
            .map(|chunk| read(*chunk))
            .collect()
    }
    let bytes = view.data();
    Some(match view.dtype() {
        Dtype::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
        Dtype::F32 => each(bytes, f32::from_le_bytes),
        Dtype::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::I64 => each(bytes, |b| i64::from_le_bytes(b) as f32),
        Dtype::I32 => each(bytes, |b| i32::from_le_bytes(b) as f32),
        _ => return None,
    })
}
