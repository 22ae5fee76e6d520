//! Blocks of 32 elements with one scale, and for some one minimum.

use dlc_ir::Packing;

use super::{BLOCK as ELEMENTS, half};

/// Codes of 4 bits around 8: `(code - 8) d`.
pub(crate) static Q4_0: Packing = Packing {
    name: "Q4_0",
    elements: ELEMENTS,
    bytes: 2 + 16,
    unpack: |block, out| {
        let d = half(block);
        nibbles(&block[2..], out, |code, _| f32::from(code as i8 - 8) * d);
    },
};

/// Codes of 4 bits: `code d + m`.
pub(crate) static Q4_1: Packing = Packing {
    name: "Q4_1",
    elements: ELEMENTS,
    bytes: 4 + 16,
    unpack: |block, out| {
        let (d, m) = (half(block), half(&block[2..]));
        nibbles(&block[4..], out, |code, _| f32::from(code) * d + m);
    },
};

/// Codes of 5 bits around 16, their fifth bits apart.
pub(crate) static Q5_0: Packing = Packing {
    name: "Q5_0",
    elements: ELEMENTS,
    bytes: 2 + 4 + 16,
    unpack: |block, out| {
        let (d, high) = (half(block), fifth_bits(&block[2..]));
        nibbles(&block[6..], out, |code, i| {
            f32::from((code | high(i)) as i8 - 16) * d
        });
    },
};

/// Codes of 5 bits, their fifth bits apart: `code d + m`.
pub(crate) static Q5_1: Packing = Packing {
    name: "Q5_1",
    elements: ELEMENTS,
    bytes: 4 + 4 + 16,
    unpack: |block, out| {
        let (d, m, high) = (half(block), half(&block[2..]), fifth_bits(&block[4..]));
        nibbles(&block[8..], out, |code, i| {
            f32::from(code | high(i)) * d + m
        });
    },
};

/// Signed bytes: `code d`.
pub(crate) static Q8_0: Packing = Packing {
    name: "Q8_0",
    elements: ELEMENTS,
    bytes: 2 + 32,
    unpack: |block, out| {
        let d = half(block);
        for (x, code) in out.iter_mut().zip(&block[2..]) {
            *x = f32::from(*code as i8) * d;
        }
    },
};

/// Makes each element of its 4 bits and its number: the lower halves of 16 bytes come first, then
/// the upper ones.
fn nibbles(codes: &[u8], out: &mut [f32], element: impl Fn(u8, usize) -> f32) {
    let (first, second) = out.split_at_mut(ELEMENTS / 2);
    for (i, code) in codes.iter().enumerate().take(ELEMENTS / 2) {
        first[i] = element(code & 0x0f, i);
        second[i] = element(code >> 4, i + ELEMENTS / 2);
    }
}

/// The fifth bit of each element's code, where it stands in the code.
fn fifth_bits(bytes: &[u8]) -> impl Fn(usize) -> u8 {
    let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    move |i| ((bits >> i & 1) as u8) << 4
}
