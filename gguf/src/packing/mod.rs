//! The block formats of GGML, unpacked as its `dequantize_row_*` do: the same operations in single
//! precision, in the same order
//! (<https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>).

mod simple;
mod super_blocks;

use half::f16;

pub(crate) use simple::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
pub(crate) use super_blocks::{Q4_K, Q5_K, Q6_K};

/// Elements of the small blocks.
pub(crate) const BLOCK: usize = 32;

/// The half-precision number at the start of `bytes`.
pub(crate) fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}
