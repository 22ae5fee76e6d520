//! Files that users and strangers name: one opener, one writer, and the boundaries around what
//! other people's parsers make of them.
//!
//! - [`input`] opens regular files of at most a given size; [`yaml`] reads documents within limits,
//!   and [`wire`] protobuf messages; [`guard`] turns panics of parsers into errors; [`mapped`] maps large files.
//! - [`output`] writes files that appear whole or not at all; [`temporary`] keeps what isn't
//!   finished out of sight and removes what dead runs left; [`FileStamp`] tells whether an input
//!   changed.
//!
//! Knows nothing of models.

#![warn(missing_docs)]

mod error;
pub mod guard;
pub mod input;
pub mod mapped;
pub mod output;
mod stamp;
pub mod temporary;
pub mod wire;
pub mod yaml;

pub use error::IoError;
pub use input::{
    InputError, InputProblem, open_input, open_regular, read_document, read_input, read_text,
    without_mark,
};
pub use output::{OutputError, StagedFile, check_output};
pub use stamp::{ChangedError, FileStamp};
