//! Element types as bytes: little-endian, rounded to nearest even.

use half::{bf16, f16};

use crate::types::DType;

pub(crate) fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    let n2 = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    match dtype {
        DType::F32 => out
            .iter_mut()
            .zip(bytes.chunks_exact(4))
            .for_each(|(o, b)| *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        DType::F16 => out
            .iter_mut()
            .zip(bytes.chunks_exact(2))
            .for_each(|(o, b)| *o = f16_to_f32(n2(b))),
        DType::Bf16 => out
            .iter_mut()
            .zip(bytes.chunks_exact(2))
            .for_each(|(o, b)| *o = bf16::from_bits(n2(b)).to_f32()),
        DType::I64 => out
            .iter_mut()
            .zip(bytes.chunks_exact(8))
            .for_each(|(o, b)| {
                *o = i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32;
            }),
        DType::U8 => out
            .iter_mut()
            .zip(bytes)
            .for_each(|(o, b)| *o = f32::from(*b)),
    }
}

/// Exact, and without branches that would keep the compiler from vectorising the loop around it.
fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // 2^112 moves the exponent from half's bias to single's; it also turns half's subnormals into
    // normal numbers.
    let finite = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000);
    let special = u32::from(bits & 0x7c00 == 0x7c00) * 0x7f80_0000;
    f32::from_bits(finite.to_bits() | special | u32::from(bits & 0x8000) << 16)
}

pub(crate) fn encode(dtype: DType, numbers: &[f32], out: &mut [u8]) {
    match dtype {
        DType::F32 => out
            .chunks_exact_mut(4)
            .zip(numbers)
            .for_each(|(o, x)| o.copy_from_slice(&x.to_le_bytes())),
        DType::F16 => out
            .chunks_exact_mut(2)
            .zip(numbers)
            .for_each(|(o, x)| o.copy_from_slice(&f16::from_f32(*x).to_le_bytes())),
        DType::Bf16 => out
            .chunks_exact_mut(2)
            .zip(numbers)
            .for_each(|(o, x)| o.copy_from_slice(&bf16::from_f32(*x).to_le_bytes())),
        DType::I64 => out
            .chunks_exact_mut(8)
            .zip(numbers)
            .for_each(|(o, x)| o.copy_from_slice(&(*x as i64).to_le_bytes())),
        DType::U8 => out.iter_mut().zip(numbers).for_each(|(o, x)| *o = *x as u8),
    }
}

impl DType {
    /// The nearest number that an element of the type holds, of two the even one; of types that
    /// aren't floats, and of single precision, the number itself.
    pub fn rounded(self, number: f32) -> f32 {
        let mut rounded = [number];
        round(self, &mut rounded);
        rounded[0]
    }
}

pub(crate) fn round(dtype: DType, numbers: &mut [f32]) {
    match dtype {
        DType::F16 => numbers
            .iter_mut()
            .for_each(|x| *x = f16::from_f32(*x).to_f32()),
        DType::Bf16 => numbers
            .iter_mut()
            .for_each(|x| *x = bf16::from_f32(*x).to_f32()),
        DType::F32 | DType::I64 | DType::U8 => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_decodes_exactly_for_every_bit_pattern() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), f16::from_bits(bits).to_f32());
            assert!(
                ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()),
                "{bits:#x}: {ours} is not {theirs}"
            );
        }
    }

    #[test]
    fn numbers_overflow_from_where_the_type_says() {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let limit = dtype.overflow();
            let mut numbers = [limit, -limit, f32::from_bits(limit.to_bits() - 1)];
            round(dtype, &mut numbers);
            assert_eq!(
                numbers.map(f32::is_infinite),
                [true, true, false],
                "{dtype}"
            );
        }
    }
}
