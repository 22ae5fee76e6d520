//! The files of a merged checkpoint whose tensors don't fit the layout of the base: configuration,
//! weights and index are laid out anew.

use std::collections::BTreeMap;
use std::path::Path;

use dlc_exporters::{CopiedFile, Origin, Patch};
use dlc_ir::{DType, SideFile, WeightTable};
use serde_json::{Map, Value, json};

use super::error::PipelineError;
use crate::checkpoint::{Checkpoint, StoredType, TensorRecord};

/// Every file of the checkpoint, in which tensors that `stored` has by their names are those;
/// others are as they were.
pub(super) fn files(
    checkpoint: &Checkpoint,
    stored: &mut WeightTable,
    tokenizer: Vec<SideFile>,
) -> Result<Vec<CopiedFile>, PipelineError> {
    let weight_files: Vec<&Path> = checkpoint
        .files()
        .iter()
        .map(|f| f.path.as_path())
        .filter(|path| ends(path, ".safetensors"))
        .collect();
    let mut homes: BTreeMap<&Path, Vec<(&str, &TensorRecord)>> = BTreeMap::new();
    for (name, record) in checkpoint.tensors() {
        // What the adapter brought goes into the last file.
        let home = weight_files
            .iter()
            .find(|path| ***path == *record.file)
            .or(weight_files.last());
        homes
            .entry(home.copied().unwrap_or(&record.file))
            .or_default()
            .push((name, record));
    }
    let mut files = Vec::new();
    for file in checkpoint.files() {
        let (path, name) = (&file.path, file_name(&file.path));
        if let Some(tensors) = homes.get(path.as_path()) {
            files.push(weights(name, tensors, stored)?);
        } else if ends(path, ".index.json") {
            files.push(text(name, &index(&homes)));
        } else if *path == checkpoint.config_path() {
            files.push(text(name, &Value::from(checkpoint.config().clone())));
        } else {
            files.push(CopiedFile {
                name,
                from: Origin::File(path.clone()),
                patches: vec![],
            });
        }
    }
    let mut companions = checkpoint.companions()?;
    companions.retain(|old| !tokenizer.iter().any(|new| new.name == old.name));
    files.extend(companions.into_iter().chain(tokenizer).map(|f| CopiedFile {
        name: f.name,
        from: Origin::File(f.path),
        patches: vec![],
    }));
    Ok(files)
}

fn ends(path: &Path, end: &str) -> bool {
    path.to_str().is_some_and(|path| path.ends_with(end))
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn text(name: String, value: &Value) -> CopiedFile {
    made(name, serde_json::to_vec_pretty(value).unwrap_or_default())
}

/// A file of these bytes.
pub(super) fn made(name: String, bytes: Vec<u8>) -> CopiedFile {
    CopiedFile {
        name,
        from: Origin::Assembled {
            size: bytes.len() as u64,
            pieces: vec![(0, bytes)],
        },
        patches: vec![],
    }
}

/// Which file holds which tensor.
fn index(homes: &BTreeMap<&Path, Vec<(&str, &TensorRecord)>>) -> Value {
    let all = || {
        homes.iter().flat_map(|(path, tensors)| {
            tensors
                .iter()
                .map(move |(name, record)| (path, name, record))
        })
    };
    let map: Map<String, Value> = all()
        .map(|(path, name, _)| ((*name).to_owned(), file_name(path).into()))
        .collect();
    let size: usize = all().map(|(.., record)| record.blob.as_ref().len()).sum();
    json!({"metadata": {"total_size": size}, "weight_map": map})
}

/// A safetensors file of these tensors.
fn weights(
    name: String,
    tensors: &[(&str, &TensorRecord)],
    stored: &mut WeightTable,
) -> Result<CopiedFile, PipelineError> {
    let head = header(tensors.iter().map(|(name, record)| {
        let length = record.blob.as_ref().len();
        (
            *name,
            type_name(record.dtype),
            record.shape.as_slice(),
            length,
        )
    }));
    let mut at = head.len() as u64;
    let mut pieces = vec![(0, head)];
    let mut patches = Vec::new();
    for (name, record) in tensors {
        match (stored.find(name), record.expr()) {
            (Some(weight), _) => patches.push(Patch { offset: at, weight }),
            (None, Some(data)) => patches.push(Patch {
                offset: at,
                weight: stored.add(name, &record.shape, data)?,
            }),
            (None, None) => pieces.push((at, record.blob.as_ref().to_vec())),
        }
        at += record.blob.as_ref().len() as u64;
    }
    Ok(CopiedFile {
        name,
        from: Origin::Assembled { size: at, pieces },
        patches,
    })
}

/// The beginning of a safetensors file of tensors with these names, types, shapes and lengths in
/// bytes, which lie after each other.
pub(super) fn header<'t>(
    tensors: impl Iterator<Item = (&'t str, String, &'t [usize], usize)>,
) -> Vec<u8> {
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut end = 0;
    for (name, dtype, shape, length) in tensors {
        let start = end;
        end += length;
        header.insert(
            name.to_owned(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}),
        );
    }
    let mut head = serde_json::to_vec(&header).unwrap_or_default();
    head.resize(head.len().next_multiple_of(8), b' ');
    [&(head.len() as u64).to_le_bytes(), head.as_slice()].concat()
}

/// An element type as safetensors calls it.
pub(super) fn type_name(dtype: StoredType) -> String {
    match dtype {
        StoredType::Float(DType::F16) => "F16".into(),
        StoredType::Float(DType::Bf16) => "BF16".into(),
        StoredType::Float(_) | StoredType::Packed(_) => "F32".into(),
        StoredType::Other(other) => other.to_string(),
    }
}
