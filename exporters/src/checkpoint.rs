//! Writes a checkpoint like another one, with other values in some of its tensors.
//!
//! Copied files keep their names, headers and sizes, so that every tensor lies where it lay. Atomic
//! and deterministic, like a bundle.

use std::io;
use std::path::{Path, PathBuf};

use dlc_files::{FileStamp, open_regular};
use dlc_ir::{WeightId, WeightTable};
use rayon::prelude::*;

use crate::error::ExportError;
use crate::progress::Progress;
use crate::staging::Staging;
use crate::weights::{TILE, write_all_at};

/// A file of the new checkpoint.
#[derive(Debug, Clone)]
pub struct CopiedFile {
    /// Its name, with a slash for a file in a folder.
    pub name: String,
    /// What it is before its patches.
    pub from: Origin,
    /// What differs in it.
    pub patches: Vec<Patch>,
}

/// What a file is made of.
#[derive(Debug, Clone)]
pub enum Origin {
    /// A copy of this file.
    File(PathBuf),
    /// New, of so many bytes, some of them these; the patches fill the rest.
    Assembled {
        /// Its size.
        size: u64,
        /// Where bytes stand, and which.
        pieces: Vec<(u64, Vec<u8>)>,
    },
}

/// Bytes that are written over a file.
#[derive(Debug, Clone, Copy)]
pub struct Patch {
    /// The first byte.
    pub offset: u64,
    /// What is written there: all elements of this weight, in its type.
    pub weight: WeightId,
}

/// Writes the folder `out`, which must not exist or be empty. Patches are made tile by tile on
/// rayon's current pool; `inputs` must still be what they were when all is written.
///
/// # Errors
/// Any error leaves `out` as it was and nothing beside it: an output that exists, a file that can't
/// be read or written, a weight without data, an input that changed, or
/// [`ExportError::Interrupted`].
pub fn write_checkpoint(
    files: &[CopiedFile],
    weights: &WeightTable,
    inputs: &[FileStamp],
    out: &Path,
    progress: &dyn Progress,
) -> Result<(), ExportError> {
    let staging = Staging::new(out, false)?;
    progress.total(
        files
            .iter()
            .flat_map(|f| &f.patches)
            .map(|p| weights[p.weight].bytes() as u64)
            .sum(),
    );
    for file in files {
        let path = staging.path(&file.name);
        let mut copy = staging.create(&file.name)?;
        match &file.from {
            Origin::File(from) => {
                let (mut source, _) = open_regular(from)?;
                io::copy(&mut source, &mut copy).map_err(ExportError::io("write", &path))?;
            }
            Origin::Assembled { size, pieces } => {
                copy.set_len(*size)
                    .map_err(ExportError::io("write", &path))?;
                for (offset, bytes) in pieces {
                    write_all_at(&copy, bytes, *offset).map_err(ExportError::io("write", &path))?;
                }
            }
        }
        let tiles: Vec<(Patch, usize, usize)> = file
            .patches
            .iter()
            .flat_map(|patch| tiles(*patch, weights))
            .collect();
        tiles
            .par_iter()
            .try_for_each_init(Vec::new, |buffer, &(patch, from, elements)| {
                let weight = &weights[patch.weight];
                let size = weight.dtype.size();
                buffer.resize(elements * size, 0);
                weight.write_bytes(from, buffer)?;
                write_all_at(&copy, buffer, patch.offset + (from * size) as u64)
                    .map_err(ExportError::io("write", &path))?;
                progress.advance(buffer.len() as u64);
                if progress.cancelled() {
                    Err(ExportError::Interrupted)
                } else {
                    Ok(())
                }
            })?;
    }
    inputs.iter().try_for_each(FileStamp::check)?;
    staging.commit()
}

/// The patch in tiles: first element, and how many.
fn tiles(patch: Patch, weights: &WeightTable) -> impl Iterator<Item = (Patch, usize, usize)> {
    let weight = &weights[patch.weight];
    let (elements, step) = (weight.elements(), TILE / weight.dtype.size());
    (0..elements)
        .step_by(step)
        .map(move |from| (patch, from, step.min(elements - from)))
}
