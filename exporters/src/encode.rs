//! Numbers as bytes of an element type.

use dlc_ir::DType;
use half::{bf16, f16};

/// Writes one number, little-endian; `out` is as long as an element.
pub(crate) fn encode(dtype: DType, value: f32, out: &mut [u8]) {
    match dtype {
        DType::F32 => out.copy_from_slice(&value.to_le_bytes()),
        DType::F16 => out.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
        DType::Bf16 => out.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
        DType::I64 => out.copy_from_slice(&(value as i64).to_le_bytes()),
        DType::U8 => out.copy_from_slice(&[value as u8]),
    }
}
