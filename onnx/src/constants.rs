//! The constants of an ONNX file of any origin, each as the hash of its values: what two files are
//! compared by.
//!
//! Values may stand in the file in several forms, or in another file beside it; equal values have
//! equal hashes. Reads other files piece by piece, and only regular ones in the ONNX file's folder
//! or below it.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path};

use dlc_files::wire::{Fields, Payload};
use dlc_files::{InputError, open_regular, read_input};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::OnnxError;
use crate::proto::{DataLocation, StringStringEntryProto, data_type_name};
use crate::reader::{MAX_AXES, MAX_COUNT, MAX_FILE, MAX_SMALL, decode, text};

/// Graphs inside of graphs.
const MAX_DEPTH: usize = 16;
/// Bytes of another file that are read at a time.
const PIECE: usize = 1 << 20;

/// A constant tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnnxConstant {
    /// Its type: `f32[2, 3]`.
    pub ty: String,
    /// SHA-256 of its values, little-endian, in lower-case hexadecimal.
    pub sha256: String,
}

/// Every constant of a file by its name: initializers, tensors in attributes as `OUTPUT.ATTRIBUTE`
/// of their node, and those of graphs in attributes after the like. Runs on rayon's current pool.
///
/// # Errors
/// [`OnnxError::Input`] for a file that can't be read, one with values beside it too, and
/// [`OnnxError::Damaged`] for a damaged one.
pub fn hash_constants(path: &Path) -> Result<BTreeMap<String, OnnxConstant>, OnnxError> {
    let fail = |problem: String| OnnxError::Damaged {
        path: path.to_owned(),
        problem,
    };
    let bytes = read_input(path, MAX_FILE)?;
    let mut found = Vec::new();
    for field in Fields::new(&bytes) {
        if let (7, Payload::Bytes(graph)) = field.map_err(|problem| fail(problem.to_owned()))? {
            walk(graph, "", 0, &mut found).map_err(fail)?;
        }
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    found
        .into_par_iter()
        .map(|(name, tensor)| Ok((name, hash(&tensor, folder, path)?)))
        .collect()
}

/// A tensor with its name.
type Found<'a> = (String, Tensor<'a>);

/// A tensor whose values were not touched yet.
#[derive(Debug, Default)]
struct Tensor<'a> {
    dims: Vec<u64>,
    data_type: i32,
    /// The fields with values, by number.
    values: Vec<(u32, Payload<'a>)>,
    is_external: bool,
    external: Vec<StringStringEntryProto>,
}

fn walk<'a>(
    graph: &'a [u8],
    inside: &str,
    depth: usize,
    found: &mut Vec<Found<'a>>,
) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!(
            "more than {MAX_DEPTH} graphs stand inside of each other"
        ));
    }
    for field in Fields::new(graph) {
        match field? {
            (1, Payload::Bytes(node)) => attributes(node, inside, depth, found)?,
            (5, Payload::Bytes(bytes)) => {
                let (name, tensor) = tensor(bytes)?;
                add(format!("{inside}{name}"), tensor, found)?;
            }
            (15, Payload::Bytes(_)) => {
                return Err("it has sparse tensors, whose values dlc doesn't read".to_owned());
            }
            _ => {}
        }
    }
    Ok(())
}

fn add<'a>(name: String, tensor: Tensor<'a>, found: &mut Vec<Found<'a>>) -> Result<(), String> {
    found.push((name, tensor));
    if found.len() > MAX_COUNT {
        Err(format!("it has more than {MAX_COUNT} tensors"))
    } else {
        Ok(())
    }
}

/// The tensors in a node's attributes.
fn attributes<'a>(
    node: &'a [u8],
    inside: &str,
    depth: usize,
    found: &mut Vec<Found<'a>>,
) -> Result<(), String> {
    let mut output = None;
    for field in Fields::new(node) {
        if let ((2, Payload::Bytes(name)), None) = (field?, &output) {
            output = Some(text(name)?);
        }
    }
    for field in Fields::new(node) {
        let (5, Payload::Bytes(attribute)) = field? else {
            continue;
        };
        let mut name = String::new();
        for field in Fields::new(attribute) {
            if let (1, Payload::Bytes(bytes)) = field? {
                name = format!(
                    "{inside}{}.{}",
                    output.as_deref().unwrap_or_default(),
                    text(bytes)?
                );
            }
        }
        let mut number = 0;
        let mut next = || {
            number += 1;
            if number == 1 {
                name.clone()
            } else {
                format!("{name}.{number}")
            }
        };
        for field in Fields::new(attribute) {
            match field? {
                (5 | 10, Payload::Bytes(bytes)) => add(next(), tensor(bytes)?.1, found)?,
                (6 | 11, Payload::Bytes(graph)) => {
                    walk(graph, &format!("{}.", next()), depth + 1, found)?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn tensor(bytes: &[u8]) -> Result<(String, Tensor<'_>), String> {
    let (mut name, mut tensor) = (String::new(), Tensor::default());
    for field in Fields::new(bytes) {
        match field? {
            (1, Payload::Number(n)) => tensor.dims.push(n),
            (1, Payload::Bytes(packed)) => {
                let mut packed = Fields::new(packed);
                while let (Some(n), true) = (packed.number(), tensor.dims.len() <= MAX_AXES) {
                    tensor.dims.push(n?);
                }
            }
            (2, Payload::Number(n)) => tensor.data_type = n as i32,
            (8, Payload::Bytes(bytes)) => name = text(bytes)?,
            (13, Payload::Bytes(entry)) => {
                tensor
                    .external
                    .push(decode("an external location", entry, MAX_SMALL)?);
            }
            (14, Payload::Number(n)) => tensor.is_external = n == DataLocation::External as u64,
            (tag @ (4..=7 | 9..=11), payload) => tensor.values.push((tag, payload)),
            _ => {}
        }
        if tensor.dims.len() > MAX_AXES || tensor.external.len() > MAX_AXES {
            return Err(format!("tensor {name} has too many axes or locations"));
        }
    }
    Ok((name, tensor))
}

fn hash(tensor: &Tensor<'_>, folder: &Path, path: &Path) -> Result<OnnxConstant, OnnxError> {
    let fail = |problem: String| OnnxError::Damaged {
        path: path.to_owned(),
        problem,
    };
    let (dtype, bits) = data_type_name(tensor.data_type);
    let dims: Vec<String> = tensor.dims.iter().map(ToString::to_string).collect();
    let ty = format!("{dtype}[{}]", dims.join(", "));
    let mut hasher = Sha256::new();
    if tensor.is_external {
        let all = tensor
            .dims
            .iter()
            .try_fold(bits, |n, &dim| n.checked_mul(dim));
        let size = all
            .ok_or_else(|| fail(format!("the shape of a tensor, {ty}, is absurd")))?
            .div_ceil(8);
        external(
            tensor,
            Some(size).filter(|_| bits > 0),
            folder,
            &mut hasher,
            &fail,
        )?;
    } else {
        let width = if bits == 0 {
            8
        } else {
            bits.div_ceil(8) as usize
        };
        for &(tag, payload) in &tensor.values {
            inline(tag, payload, width, &mut hasher).map_err(|problem| fail(problem.to_owned()))?;
        }
    }
    Ok(OnnxConstant {
        ty,
        sha256: format!("{:x}", hasher.finalize()),
    })
}

/// Adds the values in a field: raw, or in a field of their own type, where numbers narrower than 32
/// bits stand as 32.
fn inline(
    tag: u32,
    payload: Payload<'_>,
    width: usize,
    hasher: &mut Sha256,
) -> Result<(), &'static str> {
    let mut number = |n: u64| hasher.update(&n.to_le_bytes()[..width.min(8)]);
    match (tag, payload) {
        (5 | 7 | 11, Payload::Number(n)) => number(n),
        (5 | 7 | 11, Payload::Bytes(packed)) => {
            let mut packed = Fields::new(packed);
            while let Some(n) = packed.number() {
                number(n?);
            }
        }
        (6, Payload::Bytes(text)) => {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        }
        (_, Payload::Bytes(bytes) | Payload::Fixed(bytes)) => hasher.update(bytes),
        (_, Payload::Number(_)) => {
            return Err("a tensor's values stand in a field of another type");
        }
    }
    Ok(())
}

/// Adds the bytes that lie in another file, `size` of them if the type is known.
fn external(
    tensor: &Tensor<'_>,
    size: Option<u64>,
    folder: &Path,
    hasher: &mut Sha256,
    fail: &dyn Fn(String) -> OnnxError,
) -> Result<(), OnnxError> {
    let value = |key: &str| {
        tensor
            .external
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| entry.value.as_str())
    };
    let number = |key: &str| {
        value(key)
            .map(|n| {
                n.trim()
                    .parse::<u64>()
                    .map_err(|_| fail(format!("a tensor's {key} is no number")))
            })
            .transpose()
    };
    let location = Path::new(value("location").unwrap_or_default());
    let contained = location
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !contained || location.as_os_str().is_empty() {
        return Err(fail(format!(
            "a tensor lies in `{}`, which is no file below its folder",
            location.display()
        )));
    }
    let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
    let size = match (size, length) {
        (Some(size), Some(length)) if length != size => {
            return Err(fail(format!(
                "a tensor of {size} bytes takes {length} bytes of {}",
                location.display()
            )));
        }
        (size, length) => size
            .or(length)
            .ok_or_else(|| fail("a tensor of unknown type has no length".to_owned()))?,
    };
    let path = folder.join(location);
    let system = |error: io::Error| InputError::system(&path, error);
    let (mut file, there) = open_regular(&path)?;
    if offset.checked_add(size).is_none_or(|end| end > there) {
        return Err(fail(format!(
            "a tensor ends after the {there} bytes of {}",
            location.display()
        )));
    }
    file.seek(SeekFrom::Start(offset)).map_err(system)?;
    let mut rest = file.take(size);
    let mut piece = vec![0; PIECE.min(usize::try_from(size).unwrap_or(PIECE))];
    loop {
        let n = rest.read(&mut piece).map_err(system)?;
        if n == 0 {
            return Ok(());
        }
        hasher.update(&piece[..n]);
    }
}
