//! One safetensors file: mapped, its header checked, its tensors handed out as byte ranges. No byte
//! of data is read.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use dlc_files::mapped;
use dlc_ir::{Blob, DType, Expr};
use safetensors::tensor::{Metadata, SafeTensors, TensorInfo};

use super::error::CheckpointError;
use super::files::open;
use super::header;

/// The longest header that is parsed: room for some 250 000 tensors.
const HEADER_CAP: u64 = 32 << 20;

/// Element type of a tensor in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredType {
    /// One that the IR computes with.
    Float(DType),
    /// Blocks of codes and scales, of that name, which are read as `f32`.
    Packed(&'static str),
    /// Any other; such a tensor can't be a weight.
    Other(safetensors::Dtype),
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(dtype) => fmt::Display::fmt(dtype, f),
            Self::Packed(name) => f.write_str(name),
            Self::Other(dtype) => fmt::Display::fmt(dtype, f),
        }
    }
}

/// One tensor of a checkpoint.
#[derive(Debug, Clone)]
pub struct TensorRecord {
    /// Element type in the file.
    pub dtype: StoredType,
    /// Axes, outermost first; none is 0.
    pub shape: Vec<usize>,
    /// Its bytes: exactly as many as shape and type say.
    pub blob: Blob,
    /// Its elements, where they don't stand in its bytes one by one.
    pub laid_out: Option<Expr>,
    /// The file that holds it.
    pub file: Arc<Path>,
}

impl TensorRecord {
    /// The tensor as a weight's data, unless its elements aren't floats.
    pub fn expr(&self) -> Option<Expr> {
        match (&self.laid_out, self.dtype) {
            (Some(data), _) => Some(data.clone()),
            (None, StoredType::Float(dtype)) => Some(Expr::Mapped {
                blob: self.blob.clone(),
                dtype,
            }),
            (None, StoredType::Packed(_) | StoredType::Other(_)) => None,
        }
    }
}

/// What a file says of itself beside its tensors.
pub type FileMetadata = BTreeMap<String, String>;

/// The tensors of a file in the order of their bytes, and the file's size.
pub(super) fn read_tensors(
    path: &Path,
) -> Result<(Vec<(String, TensorRecord)>, u64), CheckpointError> {
    read_file(path).map(|(file, size)| (file.tensors, size))
}

/// A safetensors file.
pub(super) struct TensorFile {
    /// Its tensors in the order of their bytes.
    pub tensors: Vec<(String, TensorRecord)>,
    /// What it says of itself.
    pub metadata: FileMetadata,
}

/// As [`read_tensors`], with what the file says of itself.
pub(super) fn read_file(path: &Path) -> Result<(TensorFile, u64), CheckpointError> {
    let bytes = map(path)?;
    let all = (*bytes).as_ref();
    let (start, metadata) = read_header(path, all)?;
    let file: Arc<Path> = Arc::from(path);
    let mut tensors = Vec::new();
    for name in metadata.offset_keys() {
        let Some(TensorInfo {
            dtype,
            shape,
            data_offsets: (from, to),
        }) = metadata.info(&name)
        else {
            continue;
        };
        if from == to {
            let problem =
                format!("is empty (shape {shape:?}). Save the checkpoint again without it");
            return Err(CheckpointError::tensor(path, &name, problem));
        }
        let range = from.saturating_add(start)..to.saturating_add(start);
        let Some(blob) = Blob::new(bytes.clone(), range) else {
            return Err(CheckpointError::tensor(
                path,
                &name,
                "lies past the end of the file. Download the file again",
            ));
        };
        tensors.push((
            name,
            TensorRecord {
                dtype: stored(*dtype),
                shape: shape.clone(),
                blob,
                laid_out: None,
                file: file.clone(),
            },
        ));
    }
    let said = metadata
        .metadata()
        .iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    Ok((
        TensorFile {
            tensors,
            metadata: said,
        },
        all.len() as u64,
    ))
}

fn map(path: &Path) -> Result<Arc<dyn AsRef<[u8]> + Send + Sync>, CheckpointError> {
    let (file, _) = open(path)?;
    let map = mapped::map(&file, path).map_err(|e| CheckpointError::read(path, e))?;
    Ok(Arc::new(map))
}

/// Where the data starts, and the checked header. The crate's checks decide; ours come before to
/// bound them, and after to explain them.
fn read_header(path: &Path, all: &[u8]) -> Result<(usize, Metadata), CheckpointError> {
    let fail = |problem: String| Err(CheckpointError::file(path, problem));
    let size = all.len();
    let Some(&length) = all.first_chunk::<8>() else {
        return fail(format!(
            "is {size} bytes long, too short for a safetensors file. Download it again"
        ));
    };
    if dlc_gguf::is_gguf(all) {
        return fail(
            "is a GGUF file in spite of its name. Give it a name that ends in .gguf".into(),
        );
    }
    let length = u64::from_le_bytes(length);
    if length > (size - 8) as u64 {
        return fail(format!(
            "its header should be {length} bytes long, but the whole file is {size}: it is cut short or no safetensors. Download it again"
        ));
    }
    if length > HEADER_CAP {
        return fail(format!(
            "its header is {length} bytes long, more than the {HEADER_CAP} that dlc reads. Split the checkpoint into shards"
        ));
    }
    let start = 8 + length as usize;
    match SafeTensors::read_metadata(all) {
        Ok((_, metadata)) => Ok((start, metadata)),
        Err(error) => Err(header::explain(path, &all[8..start], size - start, &error)),
    }
}

fn stored(dtype: safetensors::Dtype) -> StoredType {
    match dtype {
        safetensors::Dtype::F32 => StoredType::Float(DType::F32),
        safetensors::Dtype::F16 => StoredType::Float(DType::F16),
        safetensors::Dtype::BF16 => StoredType::Float(DType::Bf16),
        other => StoredType::Other(other),
    }
}
