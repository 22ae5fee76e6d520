//! Matrices whose blocks are codes with one scale and a fixed zero point: what `quantized_linear` can
//! keep as it is.

use std::sync::Arc;

use dlc_ir::{Blob, Coded, Groups, Packing};

use crate::packing::{BLOCK, Q4_0, Q8_0, half};

const GROUPS: Groups = Groups::Runs(BLOCK);

/// A matrix in blocks of `Q4_0` or `Q8_0`.
#[derive(Debug)]
pub(crate) struct BlockMatrix {
    packing: &'static Packing,
    blob: Blob,
    shape: [usize; 2],
    /// Where its rows lie, if not one after the other.
    rows: Option<Arc<[u32]>>,
}

impl BlockMatrix {
    /// The matrix in `blob`, if its format is one of these.
    pub(crate) fn new(
        packing: &'static Packing,
        blob: Blob,
        shape: &[usize],
        rows: Option<Arc<[u32]>>,
    ) -> Option<Self> {
        let is_one = [Q4_0.name, Q8_0.name].contains(&packing.name);
        match *shape {
            [outputs, inputs] if is_one && inputs.is_multiple_of(BLOCK) => Some(Self {
                packing,
                blob,
                shape: [outputs, inputs],
                rows,
            }),
            _ => None,
        }
    }

    /// The bytes of a block of a row; none past the end.
    fn block(&self, row: usize, block: usize) -> Option<&[u8]> {
        let row = match &self.rows {
            Some(rows) => *rows.get(row)? as usize,
            None => row,
        };
        let at = row.checked_mul(self.shape[1] / BLOCK)?.checked_add(block)?;
        let start = at.checked_mul(self.packing.bytes)?;
        let end = start.checked_add(self.packing.bytes)?;
        self.blob.as_ref().get(start..end)
    }
}

impl Coded for BlockMatrix {
    fn name(&self) -> &'static str {
        self.packing.name
    }

    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn bits(&self) -> usize {
        if self.packing.name == Q4_0.name { 4 } else { 8 }
    }

    fn groups(&self) -> &Groups {
        &GROUPS
    }

    fn codes(&self, row: usize, column: usize, out: &mut [u8]) {
        let mut at = 0;
        while at < out.len() {
            let (block, first) = ((column + at) / BLOCK, (column + at) % BLOCK);
            let Some(codes) = self.block(row, block).map(|block| &block[2..]) else {
                return;
            };
            let end = out.len().min(at + BLOCK - first);
            for (place, code) in (first..).zip(&mut out[at..end]) {
                *code = if self.bits() == 8 {
                    // A signed byte less -128.
                    codes[place] ^ 0x80
                } else if place < BLOCK / 2 {
                    codes[place] & 0x0f
                } else {
                    codes[place - BLOCK / 2] >> 4
                };
            }
            at = end;
        }
    }

    fn zero_points(&self, _: usize, _: usize, out: &mut [u8]) {
        out.fill(if self.bits() == 8 { 128 } else { 8 });
    }

    fn scales(&self, row: usize, group: usize, out: &mut [f32]) {
        for (group, scale) in (group..).zip(out) {
            *scale = self.block(row, group).map_or(0.0, half);
        }
    }
}
