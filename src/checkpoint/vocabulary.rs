//! A `tokenizer.json` for a folder that has none, made of the vocabulary that it has instead.

use std::fs;
use std::path::{Path, PathBuf};

use dlc_files::temporary::Temporary;
use dlc_files::{IoError, read_input};
use dlc_tokenizer::{ConvertError, Converted, Sources, TokenizerFiles, VOCABULARIES, convert};
use serde_json::{Map, Value};

use super::files::{is_there, read_object};
use super::pipeline::TokenizerPlace;
use super::tokenizer_keys::{ADDED, CONFIG as SETTINGS, MAP, TOKENIZER};
use super::{CONFIG, Checkpoint, CheckpointError};

/// Largest vocabulary: that of 260 000 pieces has some 4 MB, and texts of tokens up to 10.
const VOCABULARY_CAP: u64 = 32 << 20;
/// Largest of the files that say how it is read.
const SETTINGS_CAP: u64 = 32 << 20;

/// A tokenizer that was made.
#[derive(Debug)]
pub(super) struct MadeTokenizer {
    /// What it was made of, and what was left out.
    pub notes: Vec<String>,
    place: Temporary,
}

impl MadeTokenizer {
    /// Makes a tokenizer in a temporary folder in `parent`, with the files that are read together
    /// with it; nothing where there is one at `place`, or no vocabulary.
    pub fn of(place: &TokenizerPlace, parent: &Path) -> Result<Option<Self>, MakeError> {
        let made = converted(place)?;
        let written = made.map(|(made, files)| Self::write(made, &files, parent));
        Ok(written.transpose()?)
    }

    fn write(made: Converted, files: &TokenizerFiles, parent: &Path) -> Result<Self, IoError> {
        let place = Temporary::scratch(parent, "tokenizer")?;
        let put = |name: &str, bytes: Vec<u8>| {
            let path = place.path().join(name);
            fs::write(&path, bytes).map_err(IoError::of("write", &path))
        };
        put(
            TOKENIZER,
            serde_json::to_vec(&made.tokenizer).unwrap_or_default(),
        )?;
        for (name, object) in [
            (CONFIG, &files.model),
            (SETTINGS.0, &files.config),
            (MAP.0, &files.map),
        ] {
            put(name, serde_json::to_vec(object).unwrap_or_default())?;
        }
        Ok(Self {
            notes: made.notes,
            place,
        })
    }

    /// The path of `tokenizer.json`.
    pub fn path(&self) -> PathBuf {
        self.place.path().join(TOKENIZER)
    }
}

impl Checkpoint {
    /// The folders in a bundle of the tokenizers that [`write_derived`](Self::write_derived) has
    /// yet to make; empty for the bundle itself.
    pub fn tokenizers_to_make(&self) -> Vec<String> {
        let mut places = self.tokenizer_places();
        places.retain(|place| {
            self.tokenizer_at(place).is_none() && matches!(converted(place), Ok(Some(_)))
        });
        let folder = |place: TokenizerPlace| place.bundled("").trim_end_matches('/').to_owned();
        places.into_iter().map(folder).collect()
    }
}

/// What the vocabulary at `place` becomes, and the files that are read together with it; nothing
/// where there is a tokenizer, or no vocabulary.
fn converted(place: &TokenizerPlace) -> Result<Option<(Converted, TokenizerFiles)>, MakeError> {
    let folder = &place.folder;
    let has = |name: &&str| is_there(&folder.join(name));
    if has(&TOKENIZER) || !VOCABULARIES.iter().any(has) {
        return Ok(None);
    }
    let object = |name: &str| -> Result<Map<String, Value>, CheckpointError> {
        let path = folder.join(name);
        if is_there(&path) {
            Ok(read_object(&path, SETTINGS_CAP)?.0)
        } else {
            Ok(Map::new())
        }
    };
    let mut sources = Sources {
        files: TokenizerFiles {
            model: place.model.clone(),
            config: object(SETTINGS.0)?,
            map: object(MAP.0)?,
        },
        added: object(ADDED)?,
        ..Sources::default()
    };
    for name in VOCABULARIES.into_iter().filter(has) {
        let bytes =
            read_input(&folder.join(name), VOCABULARY_CAP).map_err(CheckpointError::from)?;
        sources.vocabulary.insert(name.to_owned(), bytes);
    }
    let made = convert(&sources)?;
    Ok(Some((made, sources.files)))
}

/// Why no tokenizer was made.
#[derive(Debug, thiserror::Error)]
pub(super) enum MakeError {
    /// The files can't be read or followed.
    #[error("{0}")]
    Files(String),
    /// The tokenizer can't be written.
    #[error(transparent)]
    Write(#[from] IoError),
}

impl From<CheckpointError> for MakeError {
    fn from(error: CheckpointError) -> Self {
        Self::Files(error.to_string())
    }
}

impl From<ConvertError> for MakeError {
    fn from(error: ConvertError) -> Self {
        Self::Files(error.to_string())
    }
}
