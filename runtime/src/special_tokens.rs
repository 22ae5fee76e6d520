//! Reads the files that name a tokenizer's special tokens.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dlc_files::read_input;
use dlc_tokenizer::TokenizerFiles;
use serde_json::{Map, Value};

use super::{Result, RuntimeError};

/// The file with a tokenizer's settings.
pub(super) const CONFIG_FILE: &str = "tokenizer_config.json";
/// The largest configuration that is read: those with many added tokens have a few hundred KB.
const FILE_CAP: u64 = 32 << 20;
const TOKENIZER_CAP: u64 = 128 << 20;

/// The files that are there, of which `find` gives the paths.
pub(super) fn read_files(find: &impl Fn(&str) -> Option<PathBuf>) -> Result<TokenizerFiles> {
    let object = |name: &str| find(name).map_or_else(|| Ok(Map::new()), |path| read_object(&path));
    Ok(TokenizerFiles {
        model: object("config.json")?,
        config: object(CONFIG_FILE)?,
        map: object("special_tokens_map.json")?,
    })
}

/// Names and texts of the special tokens.
pub(super) fn named(
    files: &TokenizerFiles,
    find: &impl Fn(&str) -> Option<PathBuf>,
) -> BTreeMap<String, String> {
    files.named(|| {
        find("tokenizer.json").is_some_and(|path| {
            read_input(&path, TOKENIZER_CAP).is_ok_and(|bytes| has_byte_level(&bytes))
        })
    })
}

/// The JSON object in a file.
pub(super) fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let value = serde_json::from_slice(&read_input(path, FILE_CAP)?)
        .map_err(|error| RuntimeError::file(path, format!("isn't JSON: {error}")))?;
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(RuntimeError::file(
            path,
            "holds JSON, but not an object `{...}`",
        )),
    }
}

/// Whether transformers takes a tokenizer for one that works on bytes: by this word anywhere in its
/// file.
fn has_byte_level(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| text.contains("\"ByteLevel\""))
}
