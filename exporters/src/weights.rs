//! The weight file: where each tensor lies, and how it gets there.
//!
//! Tensors that several graphs use stand there once. They are made tile by tile and go straight to
//! their place, so memory doesn't grow with the model; the bytes don't depend on the number of
//! threads.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use dlc_bundle::{FileRecord, WeightRecord};
use dlc_ir::{DType, IrError, Weight, WeightId, WeightTable};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::encode::encode;
use crate::error::ExportError;
use crate::progress::Progress;
use crate::stack::Stack;

/// Every tensor starts at a multiple of this.
const ALIGNMENT: u64 = 64;
/// Tensors of at least [`LARGE`] bytes start at a multiple of this, so that they can be mapped by
/// themselves.
const PAGE: u64 = 4096;
const LARGE: u64 = 64 << 10;
/// Bytes that are made and written at a time.
pub(crate) const TILE: usize = 1 << 20;

/// A tensor of the weight file.
#[derive(Debug, Clone)]
pub(crate) enum Stored {
    /// A weight of the module.
    Weight(WeightId),
    /// One of the module's matrices with rows and columns exchanged.
    Transposed(Arc<Weight>),
    /// Weights of the module as one tensor.
    Stack(Stack),
    /// A table that the lowering needs.
    Table(RopeTable),
}

/// Cosine or sine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wave {
    Cos,
    Sin,
}

impl Wave {
    pub fn name(self) -> &'static str {
        match self {
            Self::Cos => "cos",
            Self::Sin => "sin",
        }
    }
}

/// Cosines or sines of `position * frequency` times `factor`, `[positions, frequencies]`. Equal
/// names mean equal tables.
#[derive(Debug, Clone)]
pub(crate) struct RopeTable {
    pub name: String,
    pub dtype: DType,
    pub positions: usize,
    pub frequencies: Arc<[f32]>,
    pub factor: f32,
    pub wave: Wave,
}

impl RopeTable {
    pub fn shape(&self) -> [usize; 2] {
        [self.positions, self.frequencies.len()]
    }

    /// The angle is rounded to single precision as in transformers, its cosine only at the end.
    fn write_bytes(&self, from: usize, out: &mut [u8]) {
        let width = self.frequencies.len().max(1);
        for (i, bytes) in out.chunks_exact_mut(self.dtype.size()).enumerate() {
            let (position, column) = ((from + i) / width, (from + i) % width);
            let angle = f64::from(
                position as f32 * self.frequencies.get(column).copied().unwrap_or_default(),
            );
            let value = if self.wave == Wave::Cos {
                angle.cos()
            } else {
                angle.sin()
            };
            encode(self.dtype, value as f32 * self.factor, bytes);
        }
    }
}

/// Where every stored tensor lies.
#[derive(Debug)]
pub(crate) struct WeightPlan {
    entries: Vec<(Stored, WeightRecord)>,
    by_name: HashMap<String, usize>,
    total: u64,
}

impl WeightPlan {
    /// Lays out what the graphs use, in order of first use. `graphs` are names with what each
    /// stores.
    pub fn new(weights: &WeightTable, graphs: &[(&str, &[Stored])]) -> Result<Self, ExportError> {
        let mut plan = Self {
            entries: Vec::new(),
            by_name: HashMap::new(),
            total: 0,
        };
        for (graph, stored) in graphs {
            for tensor in *stored {
                plan.add(weights, graph, tensor)?;
            }
        }
        Ok(plan)
    }

    fn add(
        &mut self,
        weights: &WeightTable,
        graph: &str,
        tensor: &Stored,
    ) -> Result<(), ExportError> {
        let (name, dtype, shape) = match tensor {
            Stored::Weight(id) => (
                &weights[*id].name,
                weights[*id].dtype,
                weights[*id].shape.clone(),
            ),
            Stored::Transposed(matrix) => (&matrix.name, matrix.dtype, matrix.shape.clone()),
            Stored::Stack(stack) => (&stack.name, stack.dtype, stack.shape.clone()),
            Stored::Table(table) => (&table.name, table.dtype, table.shape().to_vec()),
        };
        if let Some(&index) = self.by_name.get(name) {
            let (known, record) = &mut self.entries[index];
            let same = match (&*known, tensor) {
                (Stored::Weight(a), Stored::Weight(b)) => a == b,
                (Stored::Transposed(a), Stored::Transposed(b)) => Arc::ptr_eq(a, b),
                (Stored::Stack(a), Stored::Stack(b)) => a == b,
                (Stored::Table(_), Stored::Table(_)) => true,
                _ => false,
            };
            if !same {
                return Err(ExportError::module(
                    name,
                    "is the name of two tensors of the weight file",
                ));
            }
            if record.graphs.last().is_none_or(|last| last != graph) {
                record.graphs.push((*graph).to_owned());
            }
            return Ok(());
        }
        let too_large = || ExportError::module(name, "is larger than any file");
        let bytes = shape
            .iter()
            .try_fold(dtype.size() as u64, |n, &d| n.checked_mul(d as u64))
            .ok_or_else(too_large)?;
        let offset =
            self.total
                .checked_next_multiple_of(if bytes >= LARGE { PAGE } else { ALIGNMENT });
        let offset = offset
            .filter(|o| {
                o.checked_add(bytes)
                    .is_some_and(|end| i64::try_from(end).is_ok())
            })
            .ok_or_else(too_large)?;
        self.total = offset + bytes;
        let record = WeightRecord {
            name: name.clone(),
            dtype,
            shape,
            offset,
            bytes,
            graphs: vec![graph.to_owned()],
            transposed: matches!(tensor, Stored::Transposed(_)),
            stack: match tensor {
                Stored::Stack(stack) => Some(stack.record(weights)),
                Stored::Weight(_) | Stored::Transposed(_) | Stored::Table(_) => None,
            },
        };
        self.by_name.insert(name.clone(), self.entries.len());
        self.entries.push((tensor.clone(), record));
        Ok(())
    }

    /// Where the tensor with this name lies.
    pub fn record(&self, name: &str) -> Option<&WeightRecord> {
        self.by_name.get(name).map(|&index| &self.entries[index].1)
    }

    /// The size of the file.
    pub fn bytes(&self) -> u64 {
        self.total
    }

    /// Every tensor, by offset.
    pub fn into_records(self) -> Vec<WeightRecord> {
        self.entries.into_iter().map(|(_, record)| record).collect()
    }

    /// Writes the file, and returns its size and hash. Makes the next tiles while it hashes the
    /// last.
    pub fn write(
        &self,
        weights: &WeightTable,
        file: &File,
        path: &Path,
        progress: &dyn Progress,
    ) -> Result<FileRecord, ExportError> {
        let tiles = self.tiles();
        let batch = 4 * rayon::current_num_threads();
        let [mut made, mut hashed] = [(); 2].map(|()| vec![Vec::new(); batch.min(tiles.len())]);
        let mut hash = Sha256::new();
        let mut filled = 0;
        for tiles in tiles.chunks(batch.max(1)) {
            let make = || {
                let pairs = made.par_iter_mut().zip(tiles.par_iter());
                pairs.try_for_each(|(buffer, tile)| {
                    self.make(weights, tile, buffer)?;
                    write_all_at(file, buffer, tile.offset)
                        .map_err(ExportError::io("write", path))?;
                    progress.advance(buffer.len() as u64);
                    if progress.cancelled() {
                        Err(ExportError::Interrupted)
                    } else {
                        Ok(())
                    }
                })
            };
            let previous = &hashed[..filled];
            let (result, ()) = rayon::join(make, || {
                for buffer in previous {
                    hash.update(buffer);
                }
            });
            result?;
            std::mem::swap(&mut made, &mut hashed);
            filled = tiles.len();
        }
        hashed[..filled]
            .iter()
            .for_each(|buffer| hash.update(buffer));
        Ok(FileRecord {
            bytes: self.total,
            sha256: format!("{:x}", hash.finalize()),
        })
    }

    /// The file as consecutive tiles: each is the gap before it, then part of one tensor.
    fn tiles(&self) -> Vec<Tile> {
        let mut tiles = Vec::new();
        let mut end = 0;
        for (entry, (_, record)) in self.entries.iter().enumerate() {
            let size = record.dtype.size();
            for start in (0..record.bytes).step_by(TILE) {
                let bytes = (record.bytes - start).min(TILE as u64) as usize;
                let gap = (record.offset + start - end) as usize;
                tiles.push(Tile {
                    entry,
                    offset: end,
                    gap,
                    from: start as usize / size,
                    bytes,
                });
                end = record.offset + start + bytes as u64;
            }
        }
        tiles
    }

    fn make(
        &self,
        weights: &WeightTable,
        tile: &Tile,
        buffer: &mut Vec<u8>,
    ) -> Result<(), IrError> {
        // Zeroes the gap; what stood in the rest is overwritten.
        buffer.resize(tile.gap + tile.bytes, 0);
        buffer[..tile.gap].fill(0);
        let out = &mut buffer[tile.gap..];
        match &self.entries[tile.entry].0 {
            Stored::Weight(id) => weights[*id].write_bytes(tile.from, out),
            Stored::Transposed(matrix) => matrix.write_bytes(tile.from, out),
            Stored::Stack(stack) => stack.write_bytes(weights, tile.from, out),
            Stored::Table(table) => {
                table.write_bytes(tile.from, out);
                Ok(())
            }
        }
    }
}

#[derive(Debug)]
struct Tile {
    entry: usize,
    /// Where the gap starts in the file.
    offset: u64,
    gap: usize,
    /// First element of the tensor.
    from: usize,
    bytes: usize,
}

#[cfg(unix)]
pub(crate) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
pub(crate) fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let written = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[written..];
        offset += written as u64;
    }
    Ok(())
}
