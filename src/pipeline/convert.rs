//! `dlc convert`: a GGUF file -> checkpoint.

use std::collections::BTreeMap;
use std::path::PathBuf;

use dlc_exporters::{CopiedFile, Origin, Patch, check_replaceable, write_checkpoint};
use dlc_files::FileStamp;
use dlc_ir::{DType, Expr, Weight, WeightId, WeightTable};
use half::{bf16, f16};
use rayon::prelude::*;
use serde_json::{Map, Value};

use super::compile::pool;
use super::error::PipelineError;
use super::monitor::Monitor;
use super::off_grid::{self, Tensors};
use super::relayout;
use crate::checkpoint::{Checkpoint, StoredType};
use crate::import::{ImportOptions, import_with_sources};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
/// Elements that are rounded at a time.
const TILE: usize = 1 << 16;

/// What to convert.
#[derive(Debug, Clone)]
pub struct ConvertRequest {
    /// The GGUF file.
    pub model: PathBuf,
    /// The checkpoint's folder.
    pub output: PathBuf,
    /// Element type of the weights.
    pub dtype: DType,
    /// Whether weights are rewritten so that they no longer lie on the grid that they were
    /// quantised to.
    pub off_grid: bool,
    /// How many threads to use.
    pub threads: usize,
}

/// What was converted.
#[derive(Debug)]
pub struct ConvertOutcome {
    /// How many tensors there are.
    pub tensors: usize,
    /// How many numbers they hold.
    pub parameters: usize,
    /// How many tensors the file stores in which type.
    pub stored: BTreeMap<String, usize>,
    /// The largest difference between a number and what was written of it.
    pub rounding: f32,
    /// What the user should know although the checkpoint is good.
    pub warnings: Vec<String>,
}

/// Writes the checkpoint that a GGUF file stands for, with a configuration, a tokenizer and weights
/// in one type, rounded once.
///
/// # Errors
/// The first error of any stage, among them what [`import_with_sources`] says of the checkpoint;
/// then nothing is left at the output.
pub fn convert(
    request: &ConvertRequest,
    monitor: &dyn Monitor,
) -> Result<ConvertOutcome, PipelineError> {
    check_replaceable(&request.output, false)?;
    let pool = pool(request.threads)?;
    monitor.phase("reading the file");
    let checkpoint = Checkpoint::open(&request.model)?;
    if !checkpoint.is_gguf() {
        return Err(PipelineError::Misfit {
            path: request.model.clone(),
            problem:
                "is a checkpoint already, and `dlc convert` is for GGUF files. Compile it as it is"
                    .into(),
        });
    }
    // What can't be compiled is found before it is written.
    let imported = import_with_sources(&checkpoint, &ImportOptions::default())?;
    let warnings = [
        imported.warnings,
        checkpoint.warnings(imported.module.model.task),
    ]
    .concat();
    let mut tensors = tensors(&checkpoint);
    if request.off_grid {
        off_grid::rewrite(&mut tensors, checkpoint.config()).map_err(|problem| {
            PipelineError::Misfit {
                path: request.model.clone(),
                problem,
            }
        })?;
    }
    let (weights, ids) = weights(&tensors, request.dtype)?;
    monitor.phase("checking weights");
    let rounding = pool.install(|| rounding(&weights, request.dtype))?;
    monitor.phase("writing the checkpoint");
    let files = files(&checkpoint, &weights, &ids, request.dtype);
    let inputs: Vec<FileStamp> = checkpoint.files().iter().map(|f| f.stamp.clone()).collect();
    pool.install(|| write_checkpoint(&files, &weights, &inputs, &request.output, monitor))?;
    Ok(ConvertOutcome {
        tensors: tensors.len(),
        parameters: tensors.values().map(|(_, data)| data.elements()).sum(),
        stored: stored(&checkpoint),
        rounding,
        warnings,
    })
}

fn tensors(checkpoint: &Checkpoint) -> Tensors {
    checkpoint
        .tensors()
        .filter_map(|(name, record)| {
            Some((name.to_owned(), (record.shape.clone(), record.expr()?)))
        })
        .collect()
}

fn stored(checkpoint: &Checkpoint) -> BTreeMap<String, usize> {
    let mut stored = BTreeMap::new();
    for (_, record) in checkpoint.tensors() {
        let name = match record.dtype {
            StoredType::Packed(name) => name.to_owned(),
            other => relayout::type_name(other),
        };
        *stored.entry(name).or_default() += 1;
    }
    stored
}

/// Weights by the names of their tensors.
type Named<'a> = Vec<(&'a str, WeightId)>;

/// The weights in `dtype`, and which tensor is which.
fn weights(tensors: &Tensors, dtype: DType) -> Result<(WeightTable, Named<'_>), PipelineError> {
    let mut weights = WeightTable::default();
    let mut ids = Vec::new();
    for (name, (shape, data)) in tensors {
        let id = weights.add(name, shape, data.clone().cast(dtype))?;
        ids.push((name.as_str(), id));
    }
    Ok((weights, ids))
}

/// The largest difference that rounding makes. Refuses numbers that aren't finite afterwards.
fn rounding(weights: &WeightTable, dtype: DType) -> Result<f32, PipelineError> {
    let all: Vec<&Weight> = weights.entries().map(|(_, weight)| weight).collect();
    let found = all
        .par_iter()
        .map(|weight| Ok((weight.name.as_str(), rounded(weight.unrounded()?, dtype))))
        .collect::<Result<Vec<_>, PipelineError>>()?;
    let tensors: Vec<(String, usize)> = found
        .iter()
        .filter_map(|(name, found)| Some(((*name).to_owned(), (*found).err()?)))
        .collect();
    if !tensors.is_empty() {
        return Err(PipelineError::Converted { dtype, tensors });
    }
    let largest = found.into_iter().filter_map(|(_, found)| found.ok());
    Ok(largest.fold(0.0, f32::max))
}

/// The largest difference that rounding makes in one tensor, or the first element that isn't finite
/// afterwards.
fn rounded(data: &Expr, dtype: DType) -> Result<f32, usize> {
    let mut numbers = vec![0.0; TILE.min(data.elements())];
    let mut largest = 0f32;
    for from in (0..data.elements()).step_by(TILE) {
        let tile = &mut numbers[..TILE.min(data.elements() - from)];
        data.read_f32(from, tile);
        for (i, x) in tile.iter().enumerate() {
            let written = match dtype {
                DType::F16 => f16::from_f32(*x).to_f32(),
                DType::Bf16 => bf16::from_f32(*x).to_f32(),
                DType::F32 | DType::I64 | DType::U8 => *x,
            };
            if !written.is_finite() {
                return Err(from + i);
            }
            largest = largest.max((x - written).abs());
        }
    }
    Ok(largest)
}

fn files(
    checkpoint: &Checkpoint,
    weights: &WeightTable,
    ids: &[(&str, WeightId)],
    dtype: DType,
) -> Vec<CopiedFile> {
    let derived = checkpoint.derived_files().iter();
    let mut files: Vec<CopiedFile> = derived
        .map(|(name, bytes)| {
            let bytes = if *name == CONFIG {
                config(checkpoint.config(), dtype)
            } else {
                bytes.clone()
            };
            relayout::made((*name).to_owned(), bytes)
        })
        .collect();
    let head = relayout::header(ids.iter().map(|(name, id)| {
        let weight = &weights[*id];
        let dtype = relayout::type_name(StoredType::Float(weight.dtype));
        (*name, dtype, weight.shape.as_slice(), weight.bytes())
    }));
    let mut at = head.len() as u64;
    let mut patches = Vec::new();
    for (_, weight) in ids {
        patches.push(Patch {
            offset: at,
            weight: *weight,
        });
        at += weights[*weight].bytes() as u64;
    }
    files.push(CopiedFile {
        name: WEIGHTS.to_owned(),
        from: Origin::Assembled {
            size: at,
            pieces: vec![(0, head)],
        },
        patches,
    });
    files
}

/// The configuration, which says in which type the weights are.
fn config(config: &Map<String, Value>, dtype: DType) -> Vec<u8> {
    let name = match dtype {
        DType::F16 => "float16",
        DType::Bf16 => "bfloat16",
        DType::F32 | DType::I64 | DType::U8 => "float32",
    };
    let mut config = config.clone();
    config.insert("torch_dtype".into(), name.into());
    serde_json::to_vec_pretty(&config).unwrap_or_default()
}
