//! A module: named graphs over one weight table, and what consumers must know about the model.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::graph::Graph;
use crate::index::WeightId;
use crate::types::DType;
use crate::weight::WeightTable;

/// What passes work on.
#[derive(Debug, Clone)]
pub struct Module {
    /// The graphs; the target is first.
    pub graphs: Vec<Graph>,
    /// The weights of every graph.
    pub weights: WeightTable,
    /// Facts about the model that no graph states.
    pub model: ModelInfo,
    /// Files of the checkpoint that a bundle takes over unchanged.
    pub side_files: Vec<SideFile>,
}

/// Facts about a decoder that consumers of its graphs ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// `model_type` of the configuration: `llama`, `qwen2` ...
    pub family: String,
    /// Element type of weights and activations.
    pub dtype: DType,
    /// Number of entries of the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Longest sequence, in tokens.
    pub context_length: usize,
    /// Token put before a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Token for padding.
    pub pad_token_id: Option<u32>,
}

/// A file that a bundle takes over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SideFile {
    /// Its name in the bundle.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

impl Module {
    /// The graph with this name.
    pub fn graph(&self, name: &str) -> Option<&Graph> {
        self.graphs.iter().find(|g| g.name == name)
    }

    /// The weights that some graph uses.
    pub fn used_weights(&self) -> BTreeSet<WeightId> {
        self.graphs.iter().flat_map(Graph::weights).collect()
    }

    /// Drops the weights that no graph uses; returns how many these were.
    pub fn remove_unused_weights(&mut self) -> usize {
        let used = self.used_weights();
        let before = self.weights.len();
        let moved = self.weights.retain(|id| used.contains(&id));
        for graph in &mut self.graphs {
            graph.move_weights(&moved);
        }
        before - self.weights.len()
    }
}
