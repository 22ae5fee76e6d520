//! `tokenizer.json`, of the vocabularies that checkpoints have instead of it: `vocab.txt`,
//! `vocab.json` with `merges.txt`, and the models of `SentencePiece`.
//!
//! [`convert()`] follows `convert_slow_tokenizer.py` of transformers 4.57. [`parts`] are the pieces
//! of `tokenizer.json` that tokenizers of several origins share, [`TokenizerFiles`] says which
//! special tokens a tokenizer has. Reads no file: callers hand over what the files hold, which is
//! taken for hostile.

#![warn(missing_docs)]

mod added;
mod base64;
mod convert;
mod error;
pub mod parts;
pub mod pieces;
mod proto;
mod special;

pub use convert::{Converted, Sources, VOCABULARIES, convert};
pub use error::ConvertError;
pub use special::TokenizerFiles;
