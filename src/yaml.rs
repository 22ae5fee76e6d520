//! Reads YAML that anyone may have written: bounded by [`dlc_exporters::yaml`], and with the
//! parser's panics as errors.

use dlc_exporters::yaml;
use serde::de::DeserializeOwned;

use crate::guard::contain_panics;

/// Reads a document; the error says what is wrong with it.
pub(crate) fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    contain_panics("the YAML parser", || yaml::read(text))
        .and_then(|read| read.map_err(|error| error.to_string()))
}
