//! The manifest `dlc.yaml`: what a bundle holds, where it came from and how it was made.
//!
//! Written by the exporters, read by the runtime and by `dlc inspect`, `diff` and
//! `verify`. It names no path outside the bundle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, BufReader};
use std::path::Path;

use dlc_files::{InputError, open_regular};
use dlc_ir::{DType, LengthRotation, ModelInfo, Sampling};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The manifest's file name inside a bundle.
pub const MANIFEST_FILE: &str = "dlc.yaml";
/// The largest manifest that is read, in bytes: room for some 100 000 weights.
pub const MANIFEST_CAP: u64 = 64 << 20;
/// The one file that holds every weight of a bundle, unless its consumer wants another name.
pub const WEIGHTS_FILE: &str = "weights.bin";
/// Most names that [`Manifest::strays`] gives.
const MOST_STRAYS: usize = 1000;
/// The version of the manifest's layout; readers refuse another.
pub const FORMAT: u32 = 3;

/// Everything that `dlc.yaml` records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this layout: [`FORMAT`].
    pub format: u32,
    /// The version of dlc that wrote the bundle.
    pub dlc: String,
    /// The checkpoint that was compiled.
    pub source: Source,
    /// The operators that the graphs are restricted to.
    pub profile: Profile,
    /// How key/value caches pass from one run to the next.
    pub caches: CacheLayout,
    /// What a runtime must know about the model.
    pub model: ModelInfo,
    /// The passes that ran, in order.
    pub passes: Vec<PassRecord>,
    /// How the graphs `step.N` of a diffusion model make up a sampler, if it has some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
    /// How often the draft's guesses should be right, from 0 to 1, if a pass measured it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draft_acceptance: Option<f64>,
    /// The graphs; the target is first.
    pub graphs: Vec<GraphRecord>,
    /// The file that holds every weight: [`WEIGHTS_FILE`], or where the consumer looks for it. The
    /// ONNX files lie beside it. Graphs may have [one of their own](GraphRecord::weights_file).
    #[serde(
        default = "default_weights_file",
        skip_serializing_if = "is_default_weights_file"
    )]
    pub weights_file: String,
    /// Every weight, by its place: those of a file one after the other, by offset.
    pub weights: Vec<WeightRecord>,
    /// Hash and size of every other file of the bundle, by its name or its path in the folder.
    pub files: BTreeMap<String, FileRecord>,
}

impl Manifest {
    /// Whether graphs compute with quantised matrices.
    pub fn has_codes(&self) -> bool {
        self.weights.iter().any(WeightRecord::is_codes)
    }

    /// The file that holds the weights of a graph.
    pub fn weights_of<'m>(&'m self, graph: &'m GraphRecord) -> &'m str {
        graph.weights_file.as_deref().unwrap_or(&self.weights_file)
    }

    /// The file that holds a weight: that of the graphs which use it.
    pub fn file_of(&self, weight: &WeightRecord) -> &str {
        let uses = |graph: &&GraphRecord| weight.graphs.first() == Some(&graph.name);
        let graph = self.graphs.iter().find(uses);
        graph.map_or(&self.weights_file, |graph| self.weights_of(graph))
    }

    /// The files that hold weights.
    pub fn weights_files(&self) -> BTreeSet<&str> {
        let of_graphs = self.graphs.iter().map(|graph| self.weights_of(graph));
        of_graphs.chain([self.weights_file.as_str()]).collect()
    }

    /// What lies in the bundle's folder and isn't listed, sorted, the first thousand; folders of
    /// which nothing is listed end in a slash. dlc never reads it, others may.
    ///
    /// # Errors
    /// What the system says of a folder that can't be read.
    pub fn strays(&self, folder: &Path) -> io::Result<Vec<String>> {
        let mut strays = Vec::new();
        self.add_strays(folder, "", &mut strays)?;
        strays.sort();
        Ok(strays)
    }

    fn add_strays(&self, folder: &Path, inside: &str, strays: &mut Vec<String>) -> io::Result<()> {
        for entry in fs::read_dir(folder.join(inside))? {
            let entry = entry?;
            let name = format!("{inside}{}", entry.file_name().to_string_lossy());
            if self.files.contains_key(&name)
                || name == MANIFEST_FILE
                || strays.len() >= MOST_STRAYS
            {
                continue;
            }
            let below = format!("{name}/");
            if !entry.file_type()?.is_dir() {
                strays.push(name);
            } else if self.files.keys().any(|file| file.starts_with(&below)) {
                self.add_strays(folder, &below, strays)?;
            } else {
                strays.push(below);
            }
        }
        Ok(())
    }
}

fn default_weights_file() -> String {
    WEIGHTS_FILE.to_owned()
}

fn is_default_weights_file(name: &str) -> bool {
    name == WEIGHTS_FILE
}

/// Where a bundle came from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Last component of the checkpoint's path, or `ORG/NAME@REVISION` of a repository of the Hub.
    pub name: String,
    /// The files that were read, by name.
    pub files: BTreeMap<String, FileRecord>,
}

/// A file's identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256, lower-case hexadecimal.
    pub sha256: String,
}

impl FileRecord {
    /// Size and hash of a file, read piece by piece.
    ///
    /// # Errors
    /// [`InputError`] for a file that can't be read or is no regular one.
    pub fn of_file(path: &Path) -> Result<Self, InputError> {
        let mut hasher = Sha256::new();
        let (file, _) = open_regular(path)?;
        let bytes = io::copy(&mut BufReader::with_capacity(1 << 20, file), &mut hasher)
            .map_err(|error| InputError::system(path, error))?;
        Ok(Self {
            bytes,
            sha256: format!("{:x}", hasher.finalize()),
        })
    }
}

/// The set of ONNX operators that a consumer accepts (DESIGN.md, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// ai.onnx primitives, opset 17; 22 for convolutions in bf16.
    Portable,
    /// ai.onnx up to opset 23: `Attention`, `RMSNormalization`, `RotaryEmbedding`,
    /// `DequantizeLinear` in blocks.
    Onnx,
    /// `com.microsoft` operators: `GroupQueryAttention`, `SkipSimplifiedLayerNormalization`.
    Ort,
}

impl Profile {
    /// Every profile, narrowest operator set first.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Onnx, Self::Ort];

    /// The name used in commands and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Onnx => "onnx",
            Self::Ort => "ort",
        }
    }
}

/// How key/value caches pass from one run to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheLayout {
    /// `present` is `past` with the new entries appended. The mask may hide any entry.
    Appended,
    /// `past` and `present` may be one buffer, longer than what it holds (`GroupQueryAttention`).
    /// The mask only says how many entries it holds, so there is no padding on the left, and
    /// several tokens after a past are for one sequence only.
    InPlace,
}

/// One pass that ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassRecord {
    /// The pass's name.
    pub name: String,
    /// Its options, defaults filled in.
    pub options: serde_yaml::Value,
    /// Its report, as data.
    pub report: serde_yaml::Value,
}

/// The optional input of decoders that says how many of the last tokens get logits, as transformers
/// has it; 0 for all. A prompt needs those of one token, a check of guessed tokens those of a few.
pub const LOGITS_TO_KEEP: &str = "logits_to_keep";
/// The optional input that says how long the prompt is that a run's tokens are a piece of, where
/// rotations depend on it: every piece is then rotated as the whole is.
pub const PROMPT_LENGTH: &str = "prompt_length";

/// One graph of the bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphRecord {
    /// `target`, `draft` ...
    pub name: String,
    /// The ONNX file that holds it, beside the weight file.
    pub file: String,
    /// The file that holds its weights, where that isn't [`Manifest::weights_file`]. Graphs that
    /// share a weight share the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_file: Option<String>,
    /// What a sampler's latents are divided by before this graph takes them, if it doesn't do that
    /// itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latents_divisor: Option<f32>,
    /// Number of weight elements that the graph uses.
    pub parameters: u64,
    /// Boundary inputs, in the file's order.
    pub inputs: Vec<PortRecord>,
    /// Boundary inputs with a default, which callers may leave out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub optional_inputs: Vec<PortRecord>,
    /// Boundary outputs, in the file's order.
    pub outputs: Vec<PortRecord>,
    /// The key/value caches, by slot.
    pub caches: Vec<CacheRecord>,
    /// How tokens are rotated otherwise in a call that reaches further, so that pieces of a text
    /// aren't what the whole is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotates_by_length: Option<LengthRotation>,
}

/// A named value on a graph's boundary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRecord {
    /// Name of the value in the ONNX file.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Numbers or symbols: `[batch, '3', past, '64']`.
    pub shape: Vec<String>,
}

/// One key/value cache: `past_key_values.{slot}.key|value` -> `present.{slot}.key|value`, each
/// `[batch, heads, length, head_dim]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheRecord {
    /// Number in the boundary names of this graph, from 0.
    pub slot: u32,
    /// The layer of the checkpoint that this cache belongs to.
    pub layer: u32,
    /// Number of key/value heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// A tensor inside the weight file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightRecord {
    /// Name of the initializer, the same in every graph that uses it.
    pub name: String,
    /// Element type as stored.
    pub dtype: DType,
    /// Shape as stored.
    pub shape: Vec<usize>,
    /// First byte in the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Names of the graphs that use it.
    pub graphs: Vec<String>,
    /// Whether it is a matrix that the module has with rows and columns exchanged.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub transposed: bool,
    /// What it is made of, if it is several weights of the module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<StackRecord>,
}

impl WeightRecord {
    /// Whether it holds the codes of a quantised matrix: nothing else is bytes.
    pub fn is_codes(&self) -> bool {
        self.dtype == DType::U8
    }
}

/// Weights of one shape that stand as one tensor: runs of weights one after the other, in each of
/// which the rows of its weights take turns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StackRecord {
    /// Their names, in the order of the runs.
    pub weights: Vec<String>,
    /// The shape of each; rows are along the first axis.
    pub shape: Vec<usize>,
    /// How many weights a run has.
    pub turns: usize,
}
