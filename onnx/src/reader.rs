//! Reads what an ONNX file of any origin holds: boundary, operators, sizes, and the text form that
//! dlc leaves in its own files.
//!
//! The file may be hostile: sizes are capped, and nothing outside of the file is opened, external
//! data included.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use dlc_files::read_input;
use dlc_files::wire::{Fields, Payload};
use prost::Message;
use sha2::{Digest, Sha256};

use crate::OnnxError;
use crate::proto::{
    AttributeProto, AttributeType, DimensionValue, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, ValueInfoProto, data_type_name,
};

/// Key of the text form of the graph in the metadata of a file that dlc wrote.
pub const GRAPH_KEY: &str = "dlc.graph";
/// Key of the names of matrices that the file has with rows and columns exchanged, a line each.
pub const TRANSPOSED_KEY: &str = "dlc.transposed";
/// Largest file that is read: protobuf allows no message of 2 GiB.
pub(super) const MAX_FILE: u64 = (1 << 31) - 1;
/// Largest node, subgraphs and constants included.
const MAX_NODE: usize = 32 << 20;
/// Most attributes, and most names and numbers, of a node: they take up to 150 times as much memory
/// as bytes in the file.
const MAX_ATTRIBUTES: usize = 10_000;
const MAX_ENTRIES: usize = 1 << 20;
/// Largest other message that is decoded as a whole.
pub(super) const MAX_SMALL: usize = 1 << 20;
/// Largest metadata entry; the text form of a graph is one.
const MAX_METADATA: usize = 32 << 20;
/// Most text that is kept of all nodes and boundary values, in bytes.
const MAX_TEXT: usize = 256 << 20;
/// Most operator sets.
const MAX_OPSETS: usize = 1000;
/// Most axes, and most locations, of a tensor.
pub(super) const MAX_AXES: usize = 64;
/// Most nodes, and most initializers, inputs and outputs.
pub(super) const MAX_COUNT: usize = 1_000_000;

/// What an ONNX file holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OnnxSummary {
    /// Version of the format.
    pub ir_version: i64,
    /// Version of the operator set of each domain; the domain of ai.onnx is empty.
    pub opsets: BTreeMap<String, i64>,
    /// Name and version of what wrote the file.
    pub producer: String,
    /// Name of the graph.
    pub graph_name: String,
    /// Inputs, without those that only give the shape of an initializer.
    pub inputs: Vec<OnnxPort>,
    /// Outputs.
    pub outputs: Vec<OnnxPort>,
    /// The nodes, in order; nodes of subgraphs belong to their attribute and are not listed.
    pub nodes: Vec<OnnxNode>,
    /// Number of constant tensors.
    pub initializers: usize,
    /// Their size in bytes, by shape and type, in the file or out of it.
    pub initializer_bytes: u64,
    /// Names of the files in which external tensors lie, unchecked.
    pub external_files: Vec<String>,
    /// The text form of the graph that the file was lowered from, if dlc wrote it.
    pub graph_text: Option<String>,
    /// The weights of that graph that the file has with rows and columns exchanged.
    pub transposed: BTreeSet<String>,
}

/// A value on the boundary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnnxPort {
    /// Its name.
    pub name: String,
    /// Its type: `f32[batch_size, 3]`.
    pub ty: String,
}

/// A node.
#[derive(Debug, Clone, PartialEq)]
pub struct OnnxNode {
    /// Its name, which may be empty.
    pub name: String,
    /// Operator, after its domain unless that is ai.onnx.
    pub operator: String,
    /// The node in one line, without its name.
    line: String,
}

impl OnnxSummary {
    /// How often each operator is used.
    pub fn operators(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for node in &self.nodes {
            *counts.entry(node.operator.as_str()).or_default() += 1;
        }
        counts
    }

    /// The graph as text, one line a node, for reading and for line-by-line differences.
    pub fn listing(&self) -> String {
        let mut text = String::new();
        let ports = |text: &mut String, kind: &str, ports: &[OnnxPort]| {
            for port in ports {
                let _ = writeln!(text, "{kind} {}: {}", port.name, port.ty);
            }
        };
        ports(&mut text, "input", &self.inputs);
        for node in &self.nodes {
            text.push_str(&node.line);
            text.push('\n');
        }
        ports(&mut text, "output", &self.outputs);
        text
    }
}

/// Reads an ONNX file.
///
/// # Errors
/// [`OnnxError::Input`], or [`OnnxError::Damaged`] for a file that is damaged or no ONNX file.
pub fn read_onnx(path: &Path) -> Result<OnnxSummary, OnnxError> {
    let bytes = read_bytes(path)?;
    summarize(&bytes).map_err(|problem| OnnxError::Damaged {
        path: path.to_owned(),
        problem,
    })
}

/// The bytes of an ONNX file.
///
/// # Errors
/// [`OnnxError::Input`] for a file that can't be read, or is too large.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, OnnxError> {
    Ok(read_input(path, MAX_FILE)?)
}

/// What the bytes of an ONNX file hold, or what is wrong with them.
pub(crate) fn summarize(bytes: &[u8]) -> Result<OnnxSummary, String> {
    let mut summary = OnnxSummary::default();
    let mut version = String::new();
    let mut has_graph = false;
    for field in Fields::new(bytes) {
        match field? {
            (1, Payload::Number(n)) => summary.ir_version = n as i64,
            (2, Payload::Bytes(name)) => summary.producer = text(name)?,
            (3, Payload::Bytes(v)) => version = text(v)?,
            (7, Payload::Bytes(graph)) => {
                has_graph = true;
                summary.graph(graph)?;
            }
            (8, Payload::Bytes(opset)) => {
                let opset: OperatorSetIdProto = decode("an operator set", opset, MAX_SMALL)?;
                let domain = if opset.domain == "ai.onnx" {
                    String::new()
                } else {
                    opset.domain
                };
                summary.opsets.insert(domain, opset.version);
                if summary.opsets.len() > MAX_OPSETS {
                    return Err(format!("it has more than {MAX_OPSETS} operator sets"));
                }
            }
            (14, Payload::Bytes(entry)) => {
                let entry: StringStringEntryProto =
                    decode("a metadata entry", entry, MAX_METADATA)?;
                if entry.key == GRAPH_KEY {
                    summary.graph_text = Some(entry.value);
                } else if entry.key == TRANSPOSED_KEY {
                    summary.transposed = entry.value.lines().map(str::to_owned).collect();
                }
            }
            _ => {}
        }
    }
    if !has_graph {
        return Err("it holds no graph".to_owned());
    }
    if !version.is_empty() {
        summary.producer = format!("{} {version}", summary.producer);
    }
    Ok(summary)
}

impl OnnxSummary {
    fn graph(&mut self, graph: &[u8]) -> Result<(), String> {
        let mut constants = BTreeSet::new();
        let mut files: BTreeSet<String> = self.external_files.iter().cloned().collect();
        let mut kept = 0;
        for field in Fields::new(graph) {
            let (tag, Payload::Bytes(bytes)) = field? else {
                continue;
            };
            match tag {
                1 => {
                    let node = node(bytes)?;
                    kept += node.line.len();
                    self.nodes.push(node);
                }
                2 => self.graph_name = text(bytes)?,
                5 => {
                    let name = self.initializer(bytes, &mut files)?;
                    kept += name.as_ref().map_or(0, String::len);
                    constants.extend(name);
                }
                11 | 12 => {
                    let port = port(bytes)?;
                    kept += port.name.len() + port.ty.len();
                    if tag == 11 {
                        &mut self.inputs
                    } else {
                        &mut self.outputs
                    }
                    .push(port);
                }
                _ => {}
            }
            if kept > MAX_TEXT {
                return Err(format!(
                    "its nodes and names make more than {MAX_TEXT} bytes of text"
                ));
            }
            if self
                .nodes
                .len()
                .max(self.inputs.len())
                .max(self.outputs.len())
                .max(self.initializers)
                > MAX_COUNT
            {
                return Err(format!(
                    "it has more than {MAX_COUNT} nodes, tensors or ports"
                ));
            }
        }
        self.inputs.retain(|input| !constants.contains(&input.name));
        Ok(())
    }

    /// Counts a constant without touching its data; returns its name.
    fn initializer(
        &mut self,
        bytes: &[u8],
        files: &mut BTreeSet<String>,
    ) -> Result<Option<String>, String> {
        let tensor = initializer_head(bytes)?;
        self.initializers += 1;
        let elements = tensor
            .dims
            .iter()
            .try_fold(1u64, |n, &d| n.checked_mul(u64::try_from(d).ok()?));
        let bits = elements.and_then(|n| n.checked_mul(data_type_name(tensor.data_type).1));
        let bits = bits.ok_or_else(|| format!("the shape of tensor {} is absurd", tensor.name))?;
        self.initializer_bytes = self.initializer_bytes.saturating_add(bits.div_ceil(8));
        for entry in &tensor.external_data {
            if entry.key == "location" && files.len() < 1000 && files.insert(entry.value.clone()) {
                self.external_files.push(entry.value.clone());
            }
        }
        Ok((!tensor.name.is_empty()).then_some(tensor.name))
    }
}

/// A tensor without its data.
///
/// # Errors
/// What is wrong: bytes that are no tensor, or too many axes or locations.
pub fn initializer_head(bytes: &[u8]) -> Result<TensorProto, String> {
    let mut tensor = TensorProto::default();
    for field in Fields::new(bytes) {
        match field? {
            (1, Payload::Number(n)) => tensor.dims.push(n as i64),
            (1, Payload::Bytes(packed)) => {
                let mut packed = Fields::new(packed);
                while let (Some(n), true) = (packed.number(), tensor.dims.len() <= MAX_AXES) {
                    tensor.dims.push(n? as i64);
                }
            }
            (2, Payload::Number(n)) => tensor.data_type = n as i32,
            (8, Payload::Bytes(name)) => tensor.name = text(name)?,
            (13, Payload::Bytes(entry)) => {
                tensor
                    .external_data
                    .push(decode("an external location", entry, MAX_SMALL)?);
            }
            (14, Payload::Number(n)) => tensor.data_location = Some(n as i32),
            _ => {}
        }
        if tensor.dims.len() > MAX_AXES || tensor.external_data.len() > MAX_AXES {
            return Err(format!(
                "tensor {} has too many axes or locations",
                tensor.name
            ));
        }
    }
    Ok(tensor)
}

pub(super) fn decode<M: Message + Default>(
    what: &str,
    bytes: &[u8],
    limit: usize,
) -> Result<M, String> {
    if bytes.len() > limit {
        return Err(format!(
            "{what} is {} bytes long, the limit is {limit}",
            bytes.len()
        ));
    }
    M::decode(bytes).map_err(|error| format!("{what} is damaged: {error}"))
}

pub(super) fn text(bytes: &[u8]) -> Result<String, String> {
    let text = bytes.get(..bytes.len().min(MAX_SMALL)).unwrap_or_default();
    std::str::from_utf8(text)
        .map(str::to_owned)
        .map_err(|_| "a name is not UTF-8".to_owned())
}

/// A value on the boundary.
///
/// # Errors
/// What is wrong: bytes that are no value, or too many axes.
pub fn port(bytes: &[u8]) -> Result<OnnxPort, String> {
    let info: ValueInfoProto = decode("an input or output", bytes, MAX_SMALL)?;
    let Some(tensor) = info.r#type.and_then(|t| t.tensor_type) else {
        return Ok(OnnxPort {
            name: info.name,
            ty: "not a tensor".to_owned(),
        });
    };
    let dtype = data_type_name(tensor.elem_type).0;
    let Some(shape) = tensor.shape else {
        return Ok(OnnxPort {
            name: info.name,
            ty: dtype.to_owned(),
        });
    };
    if shape.dim.len() > MAX_AXES {
        return Err(format!("{} has more than {MAX_AXES} axes", info.name));
    }
    let dims = shape.dim.into_iter().map(|dim| match dim.value {
        Some(DimensionValue::Number(n)) => n.to_string(),
        Some(DimensionValue::Name(name)) => name,
        None => "?".to_owned(),
    });
    Ok(OnnxPort {
        name: info.name,
        ty: format!("{dtype}[{}]", dims.collect::<Vec<_>>().join(", ")),
    })
}

/// Refuses a node of many small parts, before they are made.
fn check_parts(node: &[u8]) -> Result<(), String> {
    let (mut attributes, mut entries) = (0, 0usize);
    for field in Fields::new(node) {
        let (tag, payload) = field?;
        entries += 1;
        let (5, Payload::Bytes(attribute)) = (tag, payload) else {
            continue;
        };
        attributes += 1;
        for field in Fields::new(attribute) {
            // Packed numbers are fields of one: a number takes a byte at least, a float four.
            entries += match field? {
                (7, Payload::Bytes(floats)) => floats.len() / 4,
                (8, Payload::Bytes(numbers)) => numbers.len(),
                _ => 1,
            };
        }
        if attributes > MAX_ATTRIBUTES || entries > MAX_ENTRIES {
            return Err(format!(
                "a node has more than {MAX_ATTRIBUTES} attributes, or more than {MAX_ENTRIES} names and numbers"
            ));
        }
    }
    if entries > MAX_ENTRIES {
        Err(format!("a node has more than {MAX_ENTRIES} names"))
    } else {
        Ok(())
    }
}

fn node(bytes: &[u8]) -> Result<OnnxNode, String> {
    if bytes.len() <= MAX_NODE {
        check_parts(bytes)?;
    }
    let node: NodeProto = decode("a node", bytes, MAX_NODE)?;
    let operator = match node.domain.as_str() {
        "" | "ai.onnx" => node.op_type.clone(),
        domain => format!("{domain}.{}", node.op_type),
    };
    let names = |names: &[String]| {
        let shown: Vec<&str> = names
            .iter()
            .map(|n| if n.is_empty() { "-" } else { n.as_str() })
            .collect();
        shown.join(", ")
    };
    let mut attributes: Vec<String> = node
        .attribute
        .iter()
        .map(|a| format!(" {}={}", a.name, attribute(a)))
        .collect();
    attributes.sort();
    let line = format!(
        "{} = {operator} {}{}",
        names(&node.output),
        names(&node.input),
        attributes.concat()
    );
    Ok(OnnxNode {
        name: node.name,
        operator,
        line: line.replace(['\n', '\r'], " "),
    })
}

/// What tells one graph in an attribute from another.
fn fingerprint(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
        .chars()
        .take(16)
        .collect()
}

fn attribute(attribute: &AttributeProto) -> String {
    match AttributeType::try_from(attribute.r#type) {
        Ok(AttributeType::Float) => format!("{:?}", attribute.f.unwrap_or_default()),
        Ok(AttributeType::Int) => attribute.i.unwrap_or_default().to_string(),
        Ok(AttributeType::String) => format!(
            "{:?}",
            String::from_utf8_lossy(attribute.s.as_deref().unwrap_or_default())
        ),
        Ok(AttributeType::Floats) => format!("{:?}", attribute.floats),
        Ok(AttributeType::Ints) => format!("{:?}", attribute.ints),
        Ok(AttributeType::Tensor) => "tensor".to_owned(),
        Ok(AttributeType::Strings) => {
            let strings: Vec<_> = attribute
                .strings
                .iter()
                .map(|text| String::from_utf8_lossy(text))
                .collect();
            format!("{strings:?}")
        }
        Ok(AttributeType::Graph) => format!(
            "graph {}",
            fingerprint(attribute.g.as_deref().unwrap_or_default())
        ),
        Ok(AttributeType::Undefined) | Err(_) => "?".to_owned(),
    }
}
