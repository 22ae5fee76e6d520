//! Prefixes of texts in a file: what a server holds when it stops, and takes over when it starts.
//!
//! Safetensors: for prefix `i` its tokens, `i/tokens` (U32), and the keys and values of each cache
//! of the model, `i/cache/0` and so on (U8, the bytes as they are held). A hash tells the bundle
//! that they are of, another one that the file is whole.

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::path::{Path, PathBuf};

use dlc_bundle::{FileRecord, MANIFEST_FILE};
use dlc_files::mapped::map;
use dlc_files::open_regular;
use dlc_files::temporary::Temporary;
use dlc_methods::speculation::Prefix;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize_to_file};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Bundle, Result, RuntimeError};

/// The key of the description in the file's metadata.
const KEY: &str = "dlc.prefixes";
/// The version of the format.
const FORMAT: u32 = 1;

/// What the file says of itself.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Description {
    format: u32,
    /// SHA-256 of the bundle's manifest, which has the hashes of all its files.
    bundle_sha256: String,
    /// SHA-256 of all tokens, keys and values.
    prefixes_sha256: String,
}

/// Where the prefixes of one bundle's model are kept.
#[derive(Debug, Clone)]
pub struct PrefixFile {
    path: PathBuf,
    bundle_sha256: String,
}

impl PrefixFile {
    /// Of `bundle`, at `path`.
    ///
    /// # Errors
    /// [`RuntimeError::File`] for a manifest that can't be read.
    pub fn new(path: PathBuf, bundle: &Bundle) -> Result<Self> {
        let manifest = FileRecord::of_file(&bundle.folder().join(MANIFEST_FILE))?;
        Ok(Self {
            path,
            bundle_sha256: manifest.sha256,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The prefixes in it, in the order that they were written; none where there is no file.
    ///
    /// # Errors
    /// [`RuntimeError::File`] for a file that can't be read, is damaged, or is of another bundle.
    pub fn read(&self) -> Result<Vec<Prefix>> {
        if !self.path.exists() {
            return Ok(Vec::new());
        }
        let (file, _) = open_regular(&self.path)?;
        let fail = |problem: String| RuntimeError::file(&self.path, problem);
        let mapped = map(&file, &self.path).map_err(|error| fail(error.to_string()))?;
        self.decode(&mapped).map_err(fail)
    }

    fn decode(&self, bytes: &[u8]) -> Result<Vec<Prefix>, String> {
        let damaged = |problem: String| format!("is damaged ({problem})");
        let whole = |error: safetensors::SafeTensorError| damaged(error.to_string());
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(whole)?;
        let file = SafeTensors::deserialize(bytes).map_err(whole)?;
        let text = header.metadata().as_ref().and_then(|all| all.get(KEY));
        let text = text.ok_or("holds no prefixes of texts")?;
        let description: Description =
            serde_json::from_str(text).map_err(|error| damaged(error.to_string()))?;
        if (description.format, &description.bundle_sha256) != (FORMAT, &self.bundle_sha256) {
            return Err("is of another bundle or another dlc".to_owned());
        }
        let tensor = |name: String| file.tensor(&name).ok();
        let prefix = |i: usize| {
            let (words, _) = tensor(format!("{i}/tokens"))?.data().as_chunks::<4>();
            let cache =
                (0..).map_while(|k| Some(tensor(format!("{i}/cache/{k}"))?.data().to_vec()));
            Some(Prefix {
                tokens: words.iter().map(|word| u32::from_le_bytes(*word)).collect(),
                cache: cache.collect(),
            })
        };
        let prefixes: Vec<Prefix> = (0..).map_while(prefix).collect();
        if hash(&prefixes) != description.prefixes_sha256 {
            return Err(damaged("the hash isn't that of its contents".to_owned()));
        }
        Ok(prefixes)
    }

    /// Makes the folder of such files where it isn't there, for its owner alone: what is saved tells
    /// what was asked.
    ///
    /// # Errors
    /// [`RuntimeError::File`] for what the system says.
    pub fn make_folder(folder: &Path) -> Result<()> {
        let mut builder = DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder
            .recursive(true)
            .create(folder)
            .map_err(|error| RuntimeError::file(folder, format!("can't be made: {error}")))
    }

    /// Writes prefixes in place of what the file held; its folder is made where it isn't there.
    ///
    /// # Errors
    /// [`RuntimeError::File`] for what the system says; the file is then as it was.
    pub fn write(&self, prefixes: &[Prefix]) -> Result<()> {
        let fail = |problem: String| RuntimeError::file(&self.path, problem);
        let folder = self.path.parent().unwrap_or(Path::new("."));
        Self::make_folder(folder)?;
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let place = Temporary::place(folder, &name).map_err(|error| fail(error.to_string()))?;
        self.encode(prefixes, place.path()).map_err(fail)?;
        place
            .rename(&self.path, self.path.exists())
            .map_err(|error| fail(error.to_string()))
    }

    fn encode(&self, prefixes: &[Prefix], to: &Path) -> Result<(), String> {
        let description = Description {
            format: FORMAT,
            bundle_sha256: self.bundle_sha256.clone(),
            prefixes_sha256: hash(prefixes),
        };
        let description = serde_json::to_string(&description).map_err(|error| error.to_string())?;
        let metadata = HashMap::from([(KEY.to_owned(), description)]);
        let tokens: Vec<Vec<u8>> = prefixes.iter().map(token_bytes).collect();
        let mut views = Vec::new();
        for (i, (prefix, tokens)) in prefixes.iter().zip(&tokens).enumerate() {
            let shape = vec![prefix.tokens.len()];
            views.push((
                format!("{i}/tokens"),
                TensorView::new(Dtype::U32, shape, tokens),
            ));
            for (k, bytes) in prefix.cache.iter().enumerate() {
                let view = TensorView::new(Dtype::U8, vec![bytes.len()], bytes);
                views.push((format!("{i}/cache/{k}"), view));
            }
        }
        let views = views.into_iter().map(|(name, view)| Ok((name, view?)));
        let views: Result<Vec<_>, safetensors::SafeTensorError> = views.collect();
        views
            .and_then(|views| serialize_to_file(views, Some(metadata), to))
            .map_err(|error| error.to_string())
    }
}

fn token_bytes(prefix: &Prefix) -> Vec<u8> {
    let tokens = prefix.tokens.iter();
    tokens.flat_map(|token| token.to_le_bytes()).collect()
}

/// Of all tokens, keys and values, with their lengths.
fn hash(prefixes: &[Prefix]) -> String {
    let mut hasher = Sha256::new();
    for prefix in prefixes {
        let tokens = token_bytes(prefix);
        for part in std::iter::once(&tokens).chain(&prefix.cache) {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    format!("{:x}", hasher.finalize())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn file(folder: &Path, bundle: &str) -> PrefixFile {
        PrefixFile {
            path: folder.join("kept/model.safetensors"),
            bundle_sha256: bundle.to_owned(),
        }
    }

    #[test]
    fn what_is_written_is_read_by_the_same_bundle_alone() {
        let folder = tempfile::tempdir().unwrap();
        let kept = file(folder.path(), "one");
        assert_eq!(kept.read().unwrap(), []);
        let prefix = |tokens: &[u32]| Prefix {
            tokens: tokens.to_vec(),
            cache: vec![vec![1, 2], vec![tokens.len() as u8; 12]],
        };
        let prefixes: Vec<Prefix> = (1..13).map(|i| prefix(&vec![7; i])).collect();
        for prefixes in [&prefixes[..], &prefixes[..2]] {
            kept.write(prefixes).unwrap();
            assert_eq!(kept.read().unwrap(), prefixes);
        }
        let error = file(folder.path(), "two").read().unwrap_err().to_string();
        assert!(error.contains("another bundle"), "{error}");
        assert_eq!(fs::read_dir(folder.path().join("kept")).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_refused_wherever_it_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let kept = file(folder.path(), "one");
        let prefix = Prefix {
            tokens: vec![1, 2, 3],
            cache: vec![vec![5; 9]],
        };
        kept.write(&[prefix]).unwrap();
        let bytes = fs::read(kept.path()).unwrap();
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1;
            fs::write(kept.path(), &other).unwrap();
            assert!(kept.read().is_err(), "byte {at}");
            fs::write(kept.path(), &bytes[..at]).unwrap();
            assert!(kept.read().is_err(), "cut to {at} bytes");
        }
    }
}
