//! GGUF files, the format of llama.cpp: a bounded reader, the block formats of its tensors, and the
//! Hugging Face checkpoint that such a file stands for.
//!
//! The reader takes every file for hostile: counts and lengths are held against the file's size
//! before anything is allocated, and every offset is checked. Tensors stay in the mapped file as
//! lazy expressions. Nothing here writes a file or builds a graph.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

#![warn(missing_docs)]

mod coded;
mod error;
mod file;
mod keys;
mod kind;
mod metadata;
mod model;
mod packing;
mod scan;
mod tokenizer;

pub use error::GgufError;
pub use file::{Gguf, GgufTensor, is_gguf};
pub use kind::TensorKind;
pub use metadata::{Array, Metadata, Value};
pub use model::{Model, ModelTensor};
pub use tokenizer::TokenizerFiles;
