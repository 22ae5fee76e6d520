//! What a checkpoint is made of, for the manifest: files with size and hash.

use dlc_bundle::{FileRecord, Source};
use rayon::prelude::*;

use super::error::PipelineError;
use crate::checkpoint::{Checkpoint, CheckpointFile};

/// Name and file hashes of a checkpoint; those of its parts have the names of their folders before
/// them. Reads every file once, in parallel on rayon's current
/// pool.
///
/// # Errors
/// [`PipelineError`] for a file that can't be read.
pub fn source_record(checkpoint: &Checkpoint) -> Result<Source, PipelineError> {
    let own = checkpoint.files().iter().map(|file| (String::new(), file));
    let parts = checkpoint.parts().iter().flat_map(|part| {
        let files = part.checkpoint.files().iter();
        files.map(|file| (format!("{}/", part.row.component), file))
    });
    let files: Vec<(String, &CheckpointFile)> = own.chain(parts).collect();
    let files = files
        .par_iter()
        .map(|(folder, file)| {
            let (name, found) = record(file)?;
            Ok((format!("{folder}{name}"), found))
        })
        .collect::<Result<_, PipelineError>>()?;
    Ok(Source {
        name: checkpoint.name(),
        files,
    })
}

/// A file's name, size and hash.
pub(super) fn record(file: &CheckpointFile) -> Result<(String, FileRecord), PipelineError> {
    let record = FileRecord::of_file(&file.path)?;
    let name = file
        .path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    Ok((name, record))
}
