//! Compares an ONNX file of a bundle with what the manifest says of it, so that a runtime may go by
//! the manifest.
//!
//! The file may be hostile. Whatever makes a runtime read another file than the one with the
//! bundle's weights is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use dlc_errors::{Fault, Faulty};
use dlc_files::wire::{Fields, Payload};
use dlc_ir::DType;
use dlc_onnx::proto::{DataLocation, TensorProto, UINT4, data_type_name};
use dlc_onnx::{OnnxError, OnnxPort, initializer_head, port, read_bytes};
use thiserror::Error;

use crate::manifest::{GraphRecord, Manifest, PortRecord, WeightRecord};

/// The most differences that are listed.
const SHOWN: usize = 8;

/// An ONNX file that can't be run as the manifest says.
#[derive(Debug, Error)]
pub enum CheckError {
    /// It can't be read.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// It is another graph, or takes its weights from elsewhere.
    #[error("{}: it isn't what the manifest says of it: {problems}. Compile the bundle again", path.display())]
    Differs {
        /// The file.
        path: PathBuf,
        /// What differs.
        problems: String,
    },
}

impl Faulty for CheckError {
    fn fault(&self) -> Fault {
        Fault::BadInput
    }
}

/// Checks that the file at `path` has the boundary of `graph`, and takes from the weight file of
/// `manifest` just those weights that name it, as they are recorded.
///
/// # Errors
/// [`CheckError`], also for a file that can't be read.
pub fn check_graph(
    path: &Path,
    graph: &GraphRecord,
    manifest: &Manifest,
) -> Result<(), CheckError> {
    let bytes = read_bytes(path)?;
    let own = manifest
        .weights
        .iter()
        .filter(|weight| weight.graphs.contains(&graph.name))
        .map(|weight| (weight.name.as_str(), weight));
    let own: BTreeMap<_, _> = own.collect();
    let mut check = Check {
        graph,
        location: last_part(manifest.weights_of(graph)),
        missing: own.keys().copied().collect(),
        own,
        ports: [0; 2],
        names: BTreeSet::new(),
        problems: vec![],
    };
    check.model(&bytes).map_err(OnnxError::damaged(path))?;
    let problems = check.finish();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(CheckError::Differs {
            path: path.to_owned(),
            problems: problems.join("; "),
        })
    }
}

/// A file's name without the folders before it.
fn last_part(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

struct Check<'a> {
    graph: &'a GraphRecord,
    /// How the file names the weight file, which lies beside it.
    location: &'a str,
    /// The records of the graph's weights.
    own: BTreeMap<&'a str, &'a WeightRecord>,
    /// The weights that the file hasn't named yet.
    missing: BTreeSet<&'a str>,
    /// How many inputs and outputs there were.
    ports: [usize; 2],
    names: BTreeSet<String>,
    problems: Vec<String>,
}

impl<'a> Check<'a> {
    fn model(&mut self, bytes: &[u8]) -> Result<(), String> {
        for field in Fields::new(bytes) {
            match field? {
                (7, Payload::Bytes(graph)) => self.body(graph)?,
                (20 | 25, _) => self.problem(|| {
                    "it has functions or training graphs, which dlc doesn't write".to_owned()
                }),
                _ => {}
            }
        }
        Ok(())
    }

    fn body(&mut self, graph: &[u8]) -> Result<(), String> {
        for field in Fields::new(graph) {
            let (tag, Payload::Bytes(bytes)) = field? else {
                continue;
            };
            match tag {
                1 => self.node(bytes)?,
                5 => self.initializer(&initializer_head(bytes)?),
                11 => self.port(0, &port(bytes)?),
                12 => self.port(1, &port(bytes)?),
                15 => self.problem(|| "it has sparse tensors, which dlc doesn't write".to_owned()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Tensors and graphs inside of nodes may name files too.
    fn node(&mut self, node: &[u8]) -> Result<(), String> {
        for field in Fields::new(node) {
            let (5, Payload::Bytes(attribute)) = field? else {
                continue;
            };
            for field in Fields::new(attribute) {
                if let (5 | 6 | 10 | 11 | 22 | 23, _) = field? {
                    self.problem(|| {
                        "a node has a tensor or a graph as an attribute, which dlc doesn't write"
                            .to_owned()
                    });
                }
            }
        }
        Ok(())
    }

    fn initializer(&mut self, tensor: &TensorProto) {
        let name = &tensor.name;
        if !self.names.insert(name.clone()) {
            self.problem(|| format!("tensor `{name}` is there twice"));
        }
        if tensor.data_location != Some(DataLocation::External as i32)
            && tensor.external_data.is_empty()
        {
            return;
        }
        let Some((of, record)) = self.own.get_key_value(tensor.weight_name()) else {
            return self.problem(|| {
                format!("tensor `{name}` lies in another file, and isn't a weight of this graph")
            });
        };
        self.missing.remove(of);
        let entries: BTreeMap<&str, &str> = tensor
            .external_data
            .iter()
            .map(|entry| (entry.key.as_str(), entry.value.as_str()))
            .collect();
        let (offset, length) = (record.offset.to_string(), record.bytes.to_string());
        let wanted = BTreeMap::from([
            ("location", self.location),
            ("offset", &offset),
            ("length", &length),
        ]);
        if entries != wanted || tensor.external_data.len() != wanted.len() {
            let location = self.location;
            return self.problem(|| format!("weight `{name}` lies elsewhere than at {offset} in {location}, {length} bytes long"));
        }
        if !is_weight(record, tensor) {
            let dtype = data_type_name(tensor.data_type).0;
            let (ty, shape, recorded) = (&record.dtype, &record.shape, record.bytes);
            self.problem(|| {
                format!(
                    "weight `{name}` is {dtype}{:?}, not {ty}{shape:?} of {recorded} bytes",
                    tensor.dims
                )
            });
        }
    }

    fn port(&mut self, side: usize, found: &OnnxPort) {
        let (what, record) = if side == 0 {
            ("input", self.inputs().nth(self.ports[0]))
        } else {
            ("output", self.graph.outputs.get(self.ports[1]))
        };
        self.ports[side] += 1;
        if !record.is_some_and(|record| is_port(record, found)) {
            let wanted = record.map_or_else(
                || "no more".to_owned(),
                |port| format!("`{}`: {}[{}]", port.name, port.dtype, port.shape.join(", ")),
            );
            self.problem(|| {
                format!(
                    "{what} `{}` is {}, and the manifest has {wanted}",
                    found.name, found.ty
                )
            });
        }
    }

    /// The inputs that the file must have; those with a default stand last.
    fn inputs(&self) -> impl Iterator<Item = &'a PortRecord> {
        let GraphRecord {
            inputs,
            optional_inputs,
            ..
        } = self.graph;
        inputs.iter().chain(optional_inputs)
    }

    fn problem(&mut self, problem: impl FnOnce() -> String) {
        if self.problems.len() < SHOWN {
            self.problems.push(problem().chars().take(400).collect());
        }
    }

    fn finish(mut self) -> Vec<String> {
        if self.ports != [self.inputs().count(), self.graph.outputs.len()] {
            let [inputs, outputs] = self.ports;
            self.problem(|| format!("it has {inputs} inputs and {outputs} outputs"));
        }
        let lost: Vec<String> = self
            .missing
            .iter()
            .take(SHOWN)
            .map(|name| format!("weight `{name}` isn't one of its tensors"))
            .collect();
        for lost in lost {
            self.problem(|| lost);
        }
        self.problems
    }
}

/// Whether a tensor is a weight as it is recorded, or its bytes as codes of 4 bits.
fn is_weight(record: &WeightRecord, tensor: &TensorProto) -> bool {
    let dims = tensor.dims.iter().map(|&dim| usize::try_from(dim).ok());
    let Some(dims) = dims.collect::<Option<Vec<_>>>() else {
        return false;
    };
    let (dtype, bits) = data_type_name(tensor.data_type);
    let bits = dims
        .iter()
        .try_fold(bits, |n, &dim| n.checked_mul(dim as u64));
    let is_recorded = match tensor.data_type {
        UINT4 => record.dtype == DType::U8,
        _ => dtype == record.dtype.name() && dims == record.shape,
    };
    is_recorded && bits.is_some() && bits == record.bytes.checked_mul(8)
}

/// Whether a port has the recorded name, element type and numbers; the names of other axes may
/// differ.
fn is_port(record: &PortRecord, found: &OnnxPort) -> bool {
    let Some(axes) = found
        .ty
        .strip_prefix(record.dtype.name())
        .and_then(|ty| ty.strip_prefix('[')?.strip_suffix(']'))
    else {
        return false;
    };
    let axes: Vec<&str> = axes.split(", ").filter(|axis| !axis.is_empty()).collect();
    let number = |axis: &str| axis.parse::<u64>().ok();
    let same = |(a, b): (&&str, &String)| number(a) == number(b);
    record.name == found.name
        && axes.len() == record.shape.len()
        && axes.iter().zip(&record.shape).all(same)
}
