//! ONNX files: their messages, and a reader for files of any origin.
//!
//! The reader takes every file for hostile. It never opens external data, but for
//! [`hash_constants`], and never builds a graph of the IR: dlc's own files hold theirs as text.

#![warn(missing_docs)]

mod constants;
mod error;
#[allow(missing_docs, reason = "the names are those of onnx.proto")]
pub mod proto;
mod reader;

pub use constants::{OnnxConstant, hash_constants};
pub use error::OnnxError;
pub use reader::{
    GRAPH_KEY, OnnxNode, OnnxPort, OnnxSummary, TRANSPOSED_KEY, initializer_head, port, read_bytes,
    read_onnx,
};
