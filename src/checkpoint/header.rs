//! Why a safetensors header is bad: names the tensor at fault, which the `safetensors` crate's
//! errors mostly don't.
//!
//! Only ever runs on headers that the crate has refused, and only explains: it accepts nothing.

use std::path::Path;

use safetensors::{Dtype, SafeTensorError};
use serde_json::{Map, Value};

use super::error::{CheckpointError, shown};

const AGAIN: &str = "Download or save the file again";

struct Entry<'a> {
    name: &'a str,
    from: usize,
    to: usize,
}

/// The error for a header that was refused with `refusal`, over `data` bytes of tensors.
pub(super) fn explain(
    path: &Path,
    header: &[u8],
    data: usize,
    refusal: &SafeTensorError,
) -> CheckpointError {
    let object: Map<String, Value> = match serde_json::from_slice(header) {
        Ok(object) => object,
        Err(error) => {
            return CheckpointError::file(
                path,
                format!("its header is not a JSON object ({error}). {AGAIN}"),
            );
        }
    };
    let mut entries = Vec::new();
    for (name, value) in object.iter().filter(|(name, _)| *name != "__metadata__") {
        match entry(name, value, data) {
            Ok(entry) => entries.push(entry),
            Err(problem) => {
                return CheckpointError::tensor(path, name, format!("{problem}. {AGAIN}"));
            }
        }
    }
    entries.sort_by_key(|e| (e.from, e.to));
    let mut before: Option<&Entry<'_>> = None;
    for entry in &entries {
        let end = before.map_or(0, |b| b.to);
        if entry.from != end {
            let problem = match before {
                Some(other) if entry.from < end => {
                    format!("overlaps with tensor `{}`", shown(other.name))
                }
                _ => format!(
                    "bytes {end} to {} before it belong to no tensor",
                    entry.from
                ),
            };
            return CheckpointError::tensor(path, entry.name, format!("{problem}. {AGAIN}"));
        }
        before = Some(entry);
    }
    let end = before.map_or(0, |b| b.to);
    if end != data {
        return CheckpointError::file(
            path,
            format!("holds {data} bytes of data, its header describes {end}. {AGAIN}"),
        );
    }
    CheckpointError::file(
        path,
        format!(
            "is no valid safetensors file ({}). {AGAIN}",
            shown(&refusal.to_string())
        ),
    )
}

/// One tensor's record, checked by itself.
fn entry<'a>(name: &'a str, value: &Value, data: usize) -> Result<Entry<'a>, String> {
    let field = |key: &str| {
        value
            .get(key)
            .cloned()
            .ok_or_else(|| format!("its record has no `{key}`"))
    };
    let dtype = field("dtype")?;
    let shape = field("shape")?;
    let offsets = field("data_offsets")?;
    let name_of = |value: &Value| shown(&value.to_string());
    let dtype: Dtype = serde_json::from_value(dtype.clone())
        .map_err(|_| format!("its element type {} is unknown", name_of(&dtype)))?;
    let axes: Vec<usize> = serde_json::from_value(shape.clone())
        .map_err(|_| format!("its shape {} is not a list of sizes", name_of(&shape)))?;
    let (from, to): (usize, usize) = serde_json::from_value(offsets.clone()).map_err(|_| {
        format!(
            "its data_offsets {} are not two positions",
            name_of(&offsets)
        )
    })?;
    if from > to || to > data {
        return Err(format!(
            "its bytes {from} to {to} are not inside the file's {data} bytes of data"
        ));
    }
    let elements = axes.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let Some(bits) = elements.and_then(|n| n.checked_mul(dtype.bitsize())) else {
        return Err(format!("its shape {} overflows", name_of(&shape)));
    };
    if bits % 8 != 0 || bits / 8 != to - from {
        return Err(format!(
            "its shape {} of {dtype} needs {} bytes, it has {}",
            name_of(&shape),
            bits.div_ceil(8),
            to - from
        ));
    }
    Ok(Entry { name, from, to })
}
