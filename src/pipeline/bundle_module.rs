//! Back from files to graphs: the module that a bundle was written from, or the graph that a single
//! ONNX file was.
//!
//! ONNX files written by dlc carry their graph's text form; weights come from the bundle's
//! `weights.bin`. So a bundle can be compared and evaluated without its checkpoint, and without
//! trusting the lowering.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dlc_bundle::{StackRecord, WeightRecord};
use dlc_files::guard::contain_panics;
use dlc_files::{mapped, open_regular};
use dlc_ir::{
    Blob, Expr, Graph, IrError, Module, WeightTable, parse_graph, parse_graph_over, weight_names,
};
use dlc_onnx::OnnxSummary;
use dlc_runtime::Bundle;

use super::error::PipelineError;

/// An ONNX file, and the graph that it was lowered from if dlc wrote it.
#[derive(Debug)]
pub struct OnnxModule {
    /// What the file says.
    pub summary: OnnxSummary,
    /// The graph, over weights without data.
    pub graph: Option<(Graph, WeightTable)>,
}

/// Reads an ONNX file of any origin.
///
/// # Errors
/// [`PipelineError::Onnx`] for a file that can't be read as ONNX; [`PipelineError::Config`] for one
/// that the reader fails on, or whose dlc graph doesn't parse.
pub fn read_onnx(path: &Path) -> Result<OnnxModule, PipelineError> {
    let summary = read_summary(path)?;
    let graph = summary
        .graph_text
        .as_deref()
        .map(parse_graph)
        .transpose()
        .map_err(|error| in_file(path, &error))?;
    Ok(OnnxModule { summary, graph })
}

/// What is wrong with the graph's text in an ONNX file.
fn in_file(path: &Path, error: &IrError) -> PipelineError {
    PipelineError::Config {
        place: path.display().to_string(),
        problem: format!("its dlc graph can't be read: {error}"),
    }
}

fn read_summary(path: &Path) -> Result<OnnxSummary, PipelineError> {
    let refused = |problem| PipelineError::Config {
        place: path.display().to_string(),
        problem,
    };
    Ok(contain_panics("the ONNX reader", || dlc_onnx::read_onnx(path)).map_err(refused)??)
}

/// The module that `bundle` was written from; its weights are mapped. It has no side files.
///
/// # Errors
/// [`PipelineError`] for a bundle whose graphs or weights don't fit each other.
pub fn module_of_bundle(bundle: &Bundle) -> Result<Module, PipelineError> {
    let manifest = bundle.manifest();
    let mut texts = Vec::new();
    for record in &manifest.graphs {
        let path = bundle.graph_path(record);
        bundle.check_graph(record)?;
        let text = read_summary(&path)?
            .graph_text
            .ok_or_else(|| PipelineError::Config {
                place: path.display().to_string(),
                problem:
                    "carries no dlc graph; was it written by another tool? Compile the bundle anew"
                        .into(),
            })?;
        texts.push((path, text));
    }
    let weights = weights(bundle, texts.iter().map(|(_, text)| text.as_str()))?;
    let parse = |(path, text): &(PathBuf, String)| {
        parse_graph_over(text, &weights).map_err(|error| in_file(path, &error))
    };
    let graphs = texts.iter().map(parse).collect::<Result<_, _>>()?;
    Ok(Module {
        graphs,
        weights,
        model: manifest.model.clone(),
        sampling: manifest.sampling.clone(),
        drafting: None,
        side_files: vec![],
    })
}

/// A mapped file.
type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// The bundle's weights, in the order in which the graphs' texts name them.
fn weights<'t>(
    bundle: &Bundle,
    texts: impl Iterator<Item = &'t str>,
) -> Result<WeightTable, PipelineError> {
    let mut table = WeightTable::default();
    let manifest = bundle.manifest();
    if manifest.weights.is_empty() {
        return Ok(table);
    }
    let mut maps: BTreeMap<&str, (PathBuf, Bytes)> = BTreeMap::new();
    for (name, path) in bundle.weights_paths() {
        let read = |source| PipelineError::Read {
            path: path.clone(),
            source,
        };
        let map: Bytes = Arc::new(mapped::map(&open_regular(&path)?.0, &path).map_err(read)?);
        maps.insert(name, (path, map));
    }
    let mut found: Vec<(&str, Vec<usize>, Expr)> = Vec::new();
    for record in &manifest.weights {
        let Some((path, map)) = maps.get(manifest.file_of(record)) else {
            continue;
        };
        let damaged = || PipelineError::Config {
            place: path.display().to_string(),
            problem: format!(
                "doesn't hold weight {} as the manifest says; the bundle is damaged, compile it anew",
                record.name
            ),
        };
        let data = expression(record, map).ok_or_else(damaged)?;
        match (&record.stack, &record.shape[..]) {
            (None, &[rows, columns]) if record.transposed => {
                found.push((&record.name, vec![columns, rows], data.transposed(columns)));
            }
            (None, shape) if !record.transposed => {
                found.push((&record.name, shape.to_vec(), data));
            }
            (Some(stack), _) if !record.transposed => {
                let weights = stacked(stack, data).ok_or_else(damaged)?;
                let weights = weights.into_iter();
                found.extend(weights.map(|(name, data)| (name, stack.shape.clone(), data)));
            }
            _ => return Err(damaged()),
        }
    }
    let mut places: HashMap<&str, usize> = HashMap::new();
    for name in texts.flat_map(weight_names) {
        let next = places.len();
        places.entry(name).or_insert(next);
    }
    found.sort_by_key(|(name, ..)| places.get(name).copied().unwrap_or(usize::MAX));
    for (name, shape, data) in found {
        table.add(name, &shape, data)?;
    }
    Ok(table)
}

fn expression(record: &WeightRecord, map: &Bytes) -> Option<Expr> {
    let start = usize::try_from(record.offset).ok()?;
    let end = start.checked_add(usize::try_from(record.bytes).ok()?)?;
    Some(Expr::Mapped {
        blob: Blob::new(Arc::clone(map), start..end)?,
        dtype: record.dtype,
    })
}

/// The weights that stand as one tensor, by name; nothing if they don't make it up.
fn stacked(stack: &StackRecord, data: Expr) -> Option<Vec<(&str, Expr)>> {
    let [rows, rest @ ..] = &stack.shape[..] else {
        return None;
    };
    let (rows, turns) = (*rows, stack.turns);
    let columns = rest.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    let elements = rows.checked_mul(columns).filter(|n| *n > 0)?;
    let whole = elements.checked_mul(stack.weights.len()) == Some(data.elements());
    if !whole || turns == 0 || !stack.weights.len().is_multiple_of(turns) {
        return None;
    }
    let data = Arc::new(data);
    let weight = |at: usize| {
        let first = at / turns * turns * rows + at % turns;
        let row = |row: usize| u32::try_from(first + row * turns).ok();
        let input = Arc::clone(&data);
        Some(if turns == 1 {
            Expr::Slice {
                input,
                from: at * elements,
                len: elements,
            }
        } else {
            let rows = (0..rows).map(row).collect::<Option<_>>()?;
            Expr::Rows {
                input,
                columns,
                rows,
            }
        })
    };
    let named = stack.weights.iter().enumerate();
    named
        .map(|(at, name)| Some((name.as_str(), weight(at)?)))
        .collect()
}
