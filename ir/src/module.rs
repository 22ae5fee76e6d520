//! A module: named graphs over one weight table, and what consumers must know about the model.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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

/// What a model is for, under the names of Hugging Face's pipelines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Continues a text, a token at a time: a decoder.
    TextGeneration,
    /// Says which token is masked, at every position.
    FillMask,
    /// One class for a text.
    TextClassification,
    /// One class for each token.
    TokenClassification,
    /// A vector for each token: an encoder without a head.
    FeatureExtraction,
}

impl Task {
    /// Every task.
    pub const ALL: [Self; 5] = [Self::TextGeneration, Self::FillMask, Self::TextClassification, Self::TokenClassification, Self::FeatureExtraction];

    /// The name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::TextGeneration => "text-generation",
            Self::FillMask => "fill-mask",
            Self::TextClassification => "text-classification",
            Self::TokenClassification => "token-classification",
            Self::FeatureExtraction => "feature-extraction",
        }
    }

    /// The output that answers.
    pub fn output(self) -> &'static str {
        if self == Self::FeatureExtraction { "last_hidden_state" } else { "logits" }
    }
}

/// Facts about a model that consumers of its graphs ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// `model_type` of the configuration: `llama`, `bert` ...
    pub family: String,
    /// What it is for.
    pub task: Task,
    /// Names of the classes, for tasks that classify.
    pub labels: Vec<String>,
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
