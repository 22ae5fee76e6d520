//! Checkpoints that are quantised already: the tensors `X.qweight`, `X.qzeros`, `X.scales` and
//! `X.g_idx` of GPTQ and AWQ become the matrix `X.weight`, which is read when it is asked for.
//!
//! Reads the keys that say how, scales and groups of inputs; no codes.

mod matrix;
mod scheme;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dlc_ir::{CodedPart, Expr};
use serde_json::{Map, Value};

use super::error::{CheckpointError, shown};
use super::tensors::{StoredType, TensorRecord};
use super::{CONFIG, CONFIG_CAP, Checkpoint, CheckpointFile, files};
use matrix::{PackedMatrix, Parts};
use scheme::{Method, Scheme};

/// The key that says how a checkpoint is quantised.
const KEY: &str = "quantization_config";
/// The files that said it before the key did, and their methods.
const FILES: [(&str, Method); 2] = [
    ("quantize_config.json", Method::Gptq),
    ("quant_config.json", Method::Awq),
];
const CODES: &str = "qweight";

/// The methods that are read, for messages.
pub(crate) const METHODS: &str = "gptq and awq";

/// The names of the files that may say how a checkpoint is quantised.
pub(super) fn file_names() -> [&'static str; 2] {
    FILES.map(|(name, _)| name)
}

/// What came of the quantised layers of a checkpoint.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    /// The files that were read.
    files: Vec<CheckpointFile>,
    /// What is to be said of it.
    notes: Vec<String>,
    /// Biases of zeros, which older packers gave to layers that have none.
    zero_biases: BTreeSet<String>,
    /// What people call the method.
    method: Option<&'static str>,
}

impl Checkpoint {
    /// What people call the way in which the checkpoint is quantised, if it is, in a file that isn't
    /// GGUF.
    pub fn quantized_by(&self) -> Option<&'static str> {
        self.unpacked.method
    }

    /// Biases of zeros of quantised layers, which older packers gave to layers that have none.
    pub(crate) fn zero_biases(&self) -> impl Iterator<Item = &str> {
        self.unpacked.zero_biases.iter().map(String::as_str)
    }

    /// Makes matrices of the quantised layers, if there are any.
    pub(super) fn unpack(&mut self) -> Result<(), CheckpointError> {
        let unpacked = unpack(&mut self.tensors, &mut self.config, &self.folder)?;
        self.overlaid |= unpacked.method.is_some();
        self.files.extend(unpacked.files.iter().cloned());
        self.notes.extend(unpacked.notes.iter().cloned());
        self.unpacked = unpacked;
        Ok(())
    }
}

/// Makes matrices of the quantised layers among `tensors`, if there are any, and takes the key that
/// says how out of `config`.
///
/// # Errors
/// [`CheckpointError::Quantized`] with every key that can't be followed, or every tensor that doesn't
/// fit the others.
fn unpack(
    tensors: &mut BTreeMap<String, TensorRecord>,
    config: &mut Map<String, Value>,
    folder: &Path,
) -> Result<Unpacked, CheckpointError> {
    let layers: Vec<String> = tensors
        .keys()
        .filter_map(|name| name.strip_suffix(CODES)?.strip_suffix('.'))
        .map(str::to_owned)
        .collect();
    if layers.is_empty() {
        return Ok(Unpacked::default());
    }
    // What else quantises is refused by the method's name when the model is imported.
    let Some((sayings, files)) = sayings(config, folder)? else {
        return Ok(Unpacked::default());
    };
    let found = agreed(&sayings, folder)?;
    config.remove(KEY);
    let mut problems = Vec::new();
    let mut reordered = 0;
    let mut zero_biases = BTreeSet::new();
    for layer in &layers {
        match replace(tensors, layer, found.scheme) {
            Ok(matrix) => reordered += usize::from(matrix.is_reordered()),
            Err(problem) => problems.push(problem),
        }
        let bias = format!("{layer}.bias");
        if tensors
            .get(&bias)
            .is_some_and(|record| record.blob.as_ref().iter().all(|byte| *byte == 0))
        {
            zero_biases.insert(bias);
        }
        problems.extend(contradiction(layer, &found.left_plain));
    }
    if !problems.is_empty() {
        return Err(quantized(folder, problems, false));
    }
    let method = found.scheme.method.name();
    Ok(Unpacked {
        files,
        notes: [
            vec![note(found.scheme, layers.len(), reordered)],
            found.notes,
        ]
        .concat(),
        zero_biases,
        method: Some(method),
    })
}

/// One place that says how a checkpoint is quantised.
struct Saying {
    method: Method,
    keys: Map<String, Value>,
    place: PathBuf,
    /// What messages put before its keys.
    prefix: &'static str,
}

/// All places that say how a checkpoint is quantised, and the files among them.
type Sayings = (Vec<Saying>, Vec<CheckpointFile>);

/// All places that say how, and the files among them; none if the method is one that isn't read.
fn sayings(config: &Map<String, Value>, folder: &Path) -> Result<Option<Sayings>, CheckpointError> {
    let (mut all, mut read_files) = (Vec::new(), Vec::new());
    let is_empty = |value: &&Value| value.is_null() || value.as_object().is_some_and(Map::is_empty);
    if let Some(value) = config.get(KEY).filter(|value| !is_empty(value)) {
        let named = value.as_object().and_then(|keys| {
            let name = keys.get("quant_method")?.as_str()?;
            Some((Method::named(name)?, keys))
        });
        let Some((method, keys)) = named else {
            return Ok(None);
        };
        all.push(Saying {
            method,
            keys: keys.clone(),
            place: folder.join(CONFIG),
            prefix: "quantization_config.",
        });
    }
    for (name, method) in FILES {
        let path = folder.join(name);
        if !path.exists() {
            continue;
        }
        let (keys, file) = CheckpointFile::read(path, |path| files::read_object(path, CONFIG_CAP))?;
        let named = keys.get("quant_method").and_then(Value::as_str);
        let Some(method) = named.map_or(Some(method), Method::named) else {
            let named = shown(named.unwrap_or_default());
            let problem = format!("`quant_method` is {named}; dlc reads {METHODS}");
            return Err(quantized(&file.path, vec![problem], true));
        };
        all.push(Saying {
            method,
            keys,
            place: file.path.clone(),
            prefix: "",
        });
        read_files.push(file);
    }
    Ok(Some((all, read_files)))
}

/// How a checkpoint is quantised, by all that says it.
struct Found {
    scheme: Scheme,
    /// Modules that are said to be left as they were.
    left_plain: Vec<String>,
    /// What is to be said of keys.
    notes: Vec<String>,
}

/// What all places say; they have to agree.
fn agreed(sayings: &[Saying], folder: &Path) -> Result<Found, CheckpointError> {
    let mut found: Option<(Scheme, &Path)> = None;
    let (mut left_plain, mut notes) = (Vec::new(), Vec::new());
    for saying in sayings {
        let (scheme, said) = scheme::read(saying.method, &saying.keys, saying.prefix);
        let Some(scheme) = scheme else {
            return Err(quantized(&saying.place, said.problems, true));
        };
        let (first, place) = *found.get_or_insert((scheme, &saying.place));
        if first != scheme {
            let problem = format!(
                "says otherwise than {} how the checkpoint is quantised. Remove the one that is wrong",
                place.display()
            );
            return Err(CheckpointError::file(&saying.place, problem));
        }
        left_plain.extend(said.left_plain);
        if !said.unknown.is_empty() {
            let keys = said.unknown.iter().map(|key| format!("`{key}`"));
            let keys = keys.collect::<Vec<_>>().join(", ");
            let place = saying.place.display();
            notes.push(format!(
                "{place}: keys of the quantisation that dlc doesn't know, and leaves out: {keys}"
            ));
        }
    }
    if let Some((scheme, _)) = found {
        return Ok(Found {
            scheme,
            left_plain,
            notes,
        });
    }
    let [(gptq, _), (awq, _)] = FILES;
    let problem = format!(
        "has no `{KEY}`, and there is no {gptq} and no {awq}, but tensors are quantised (`*.{CODES}`). Download the whole checkpoint"
    );
    Err(CheckpointError::file(&folder.join(CONFIG), problem))
}

fn quantized(path: &Path, problems: Vec<String>, unsupported: bool) -> CheckpointError {
    CheckpointError::Quantized {
        path: path.to_owned(),
        problems,
        unsupported,
    }
}

/// Puts `layer.weight` in the place of the layer's packed tensors.
fn replace(
    tensors: &mut BTreeMap<String, TensorRecord>,
    layer: &str,
    scheme: Scheme,
) -> Result<Arc<PackedMatrix>, String> {
    let name = |part: &str| format!("{layer}.{part}");
    let called = |part: &str| format!("`{}`", shown(&name(part)));
    let get = |part: &str| {
        tensors
            .get(&name(part))
            .ok_or_else(|| format!("{} is missing", called(part)))
    };
    if tensors.contains_key(&name("weight")) {
        return Err(format!(
            "{} is there, and {} as well. Remove one of them",
            called(CODES),
            called("weight")
        ));
    }
    let groups = match scheme.method {
        Method::Gptq => tensors.get(&name("g_idx")),
        Method::Awq => None,
    };
    let parts = Parts {
        codes: get(CODES)?,
        zero_points: get("qzeros")?,
        scales: get("scales")?,
        groups,
    };
    let matrix = PackedMatrix::new(scheme, &parts)
        .map_err(|(part, problem)| format!("{} {problem}", called(part)))?;
    let matrix = Arc::new(matrix);
    let record = TensorRecord {
        dtype: StoredType::Packed(scheme.method.name()),
        shape: dlc_ir::Coded::shape(&*matrix).to_vec(),
        blob: parts.codes.blob.clone(),
        laid_out: Some(Expr::Coded {
            matrix: Arc::clone(&matrix) as Arc<dyn dlc_ir::Coded>,
            part: CodedPart::Entries,
        }),
        file: Arc::clone(&parts.codes.file),
    };
    let of_layer = [CODES, "qzeros", "scales"]
        .into_iter()
        .chain(groups.map(|_| "g_idx"));
    for part in of_layer.collect::<Vec<_>>() {
        tensors.remove(&name(part));
    }
    tensors.insert(name("weight"), record);
    Ok(matrix)
}

/// What is wrong where a layer is packed that is said not to be.
fn contradiction(layer: &str, left_plain: &[String]) -> Option<String> {
    let framed = format!(".{layer}.");
    let name = left_plain
        .iter()
        .find(|name| framed.contains(&format!(".{name}.")))?;
    Some(format!(
        "`{}` is packed, and `{KEY}.modules_to_not_convert` says that {} isn't",
        shown(&format!("{layer}.{CODES}")),
        shown(name)
    ))
}

/// What is quantised, and how.
fn note(scheme: Scheme, layers: usize, reordered: usize) -> String {
    let groups = scheme
        .group_size
        .map_or("whole rows".to_owned(), |size| format!("groups of {size}"));
    let order = if reordered > 0 {
        format!("; the inputs of {reordered} in another order")
    } else {
        String::new()
    };
    let (method, bits) = (scheme.method.name(), scheme.bits);
    format!("{layers} matrices are quantised by {method} ({bits} bits in {groups}{order})")
}
