//! Blocks of 256 elements in parts of 32 or 16, whose scales are codes themselves (`k-quants`).

use dlc_ir::Packing;

use super::half;

const ELEMENTS: usize = 256;

/// Codes of 4 bits: `code (d scale) - dmin minimum`.
pub(crate) static Q4_K: Packing = Packing {
    name: "Q4_K",
    elements: ELEMENTS,
    bytes: 2 + 2 + 12 + 128,
    unpack: |block, out| {
        parts(block, &block[16..], out, |code, _, _| code);
    },
};

/// As `Q4_K` with codes of 5 bits, their fifth bits apart.
pub(crate) static Q5_K: Packing = Packing {
    name: "Q5_K",
    elements: ELEMENTS,
    bytes: 2 + 2 + 12 + 32 + 128,
    unpack: |block, out| {
        let high = &block[16..48];
        parts(block, &block[48..], out, |code, part, i| {
            code | (high[i] >> part & 1) << 4
        });
    },
};

/// Codes of 6 bits around 32, their upper bits apart: `(code - 32) (d scale)`.
pub(crate) static Q6_K: Packing = Packing {
    name: "Q6_K",
    elements: ELEMENTS,
    bytes: 128 + 64 + 16 + 2,
    unpack: |block, out| {
        let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
        let d = half(&block[208..]);
        for (i, x) in out.iter_mut().enumerate() {
            let (half_block, part, at) = (i / 128, i % 128 / 32, i % 32);
            let low = low[64 * half_block + 32 * (part % 2) + at] >> (4 * (part / 2)) & 0x0f;
            let high = high[32 * half_block + at] >> (2 * part) & 3;
            let code = (low | high << 4) as i8 - 32;
            *x = d * f32::from(scales[i / 16] as i8) * f32::from(code);
        }
    },
};

/// Makes 8 parts of 32 elements. Two parts share 32 bytes of `codes`, the lower halves being the
/// first part's; `widen` gets a code, its part and its number there.
fn parts(block: &[u8], codes: &[u8], out: &mut [f32], widen: impl Fn(u8, usize, usize) -> u8) {
    let (d, dmin, packed) = (half(block), half(&block[2..]), &block[4..16]);
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(packed, part);
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        for (i, x) in out.iter_mut().enumerate() {
            let code = codes[32 * (part / 2) + i] >> (4 * (part % 2)) & 0x0f;
            *x = scale * f32::from(widen(code, part, i)) - minimum;
        }
    }
}

/// The codes of 6 bits of a part's scale and minimum (`get_scale_min_k4`).
fn scale_and_minimum(packed: &[u8], part: usize) -> (u8, u8) {
    if part < 4 {
        (packed[part] & 63, packed[part + 4] & 63)
    } else {
        (
            packed[part + 4] & 0x0f | packed[part - 4] >> 6 << 4,
            packed[part + 4] >> 4 | packed[part] >> 6 << 4,
        )
    }
}
