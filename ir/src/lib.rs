//! The graph IR of dlc: typed SSA graphs over lazy weights, with a text form, a verifier and a
//! structural diff.
//!
//! Building ([`GraphBuilder`]) is the only way to make nodes; the checked edits of [`Graph`] are
//! the only way to change them. This crate never reads files, never prints, and knows neither ONNX
//! nor any way to run a graph.

#![warn(missing_docs)]

mod block;
mod builder;
mod codec;
pub mod cost;
pub mod diff;
mod dim;
mod edit;
mod error;
mod expr;
mod graph;
mod index;
mod infer;
mod module;
mod op;
mod parse;
mod prompts;
pub mod schedule;
mod sentence;
mod text;
mod types;
pub mod verify;
mod weight;

pub use block::{Block, BlockKind};
pub use builder::GraphBuilder;
pub use dim::{Dim, Factor, Rounding, sym};
pub use error::IrError;
pub use expr::{
    Blob, Coded, CodedPart, Expr, Groups, Packing, QuantizedPart, Quantizer, Refinement,
};
pub use graph::{CachePart, CacheRole, Def, Graph, Input, Node, Operand, Output, Value};
pub use index::{BlockId, EntityId, IndexVec, NodeId, ValueId, WeightId};
pub use module::{Classes, Diffusion, Drafting, ModelInfo, Module, Scores, SideFile, Task};
pub use op::{
    Attention, BucketedBias, DisentangledBias, Experts, GroupFormat, LengthRotation, Op, OpKind,
    Rope, RopeScaling, TimestepEmbedding,
};
pub use parse::{parse_graph, parse_graph_over, weight_names};
pub use prompts::{Prompts, TextEncoder};
pub use schedule::{Evaluation, Granularity, Reuse, Sampling, SkipSchedule, SolverStep};
pub use sentence::{Pooling, Sentence, Similarity};
pub use types::{DType, Shape, ValueType};
pub use weight::{Storage, Weight, WeightTable};
