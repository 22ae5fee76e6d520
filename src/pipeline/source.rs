//! What a checkpoint is made of, for the manifest: files with size and hash.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use dlc_exporters::manifest::{FileRecord, Source};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::error::PipelineError;
use crate::checkpoint::Checkpoint;

/// Name and file hashes of a checkpoint. Reads every file once, in parallel on rayon's current pool.
pub fn source_record(checkpoint: &Checkpoint) -> Result<Source, PipelineError> {
    let hash = |path: &Path, size: u64| {
        let sha256 = sha256(path).map_err(|source| PipelineError::Read { path: path.to_owned(), source })?;
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        Ok((name, FileRecord { bytes: size, sha256 }))
    };
    let files = checkpoint.files().par_iter().map(|f| hash(&f.path, f.size)).collect::<Result<_, PipelineError>>()?;
    Ok(Source { name: checkpoint.name(), files })
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hasher.finalize().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}")));
        }
        hasher.update(&buffer[..n]);
    }
}
