//! Packed formats: numbers that lie in a file as blocks of codes with their scales.

use std::fmt;

/// A format of blocks of equally many elements and bytes. Two formats have two names.
pub struct Packing {
    /// What files and people call it.
    pub name: &'static str,
    /// Elements of a block; above 0.
    pub elements: usize,
    /// Bytes of a block; above 0.
    pub bytes: usize,
    /// The elements of a block, as many as there are, of its bytes.
    pub unpack: fn(&[u8], &mut [f32]),
}

impl fmt::Debug for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Packing {
    /// Elements of the whole blocks in so many bytes.
    pub fn elements_in(&self, bytes: usize) -> usize {
        bytes / self.bytes * self.elements
    }

    /// Elements `from .. from + out.len()` of `packed`; `out` stays as it is where the range passes
    /// the end.
    pub(super) fn read(&self, packed: &[u8], from: usize, out: &mut [f32]) {
        let mut partial = vec![0.0; self.elements];
        let mut at = 0;
        while at < out.len() {
            let (block, skipped) = ((from + at) / self.elements, (from + at) % self.elements);
            let start = block.saturating_mul(self.bytes);
            let Some(block) = packed.get(start..start.saturating_add(self.bytes)) else {
                return;
            };
            let taken = (self.elements - skipped).min(out.len() - at);
            let part = &mut out[at..at + taken];
            if taken == self.elements {
                (self.unpack)(block, part);
            } else {
                (self.unpack)(block, &mut partial);
                part.copy_from_slice(&partial[skipped..skipped + taken]);
            }
            at += taken;
        }
    }
}
