//! The files that users name: the one opener and the one writer.

mod output;

pub(crate) use dlc_exporters::FileStamp;
pub(crate) use dlc_exporters::input::{
    InputError, InputProblem, open_input, open_regular, read_document, read_input, read_text,
    without_mark,
};
pub(crate) use output::{StagedFile, check_output};
