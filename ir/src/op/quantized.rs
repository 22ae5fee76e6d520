//! How quantised matrices are packed: the layout of ONNX Runtime's contrib operator `MatMulNBits`.

/// A matrix `[out, in]` quantised in groups along `in`; an entry is `(code - zero_point) * scale`
/// of its group.
///
/// `codes u8[out, groups(in), code_bytes()]`: of 4-bit codes the first of each pair is in the lower
/// half of its byte. The last group of a row is filled up with codes that stand for 0.
/// `scales [out, groups(in)]`. `zero_points u8[out, zero_point_bytes(in)]` packed like codes;
/// without them every zero point is [`default_zero_point`](Self::default_zero_point).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupFormat {
    /// Bits of a code: 4 or 8.
    pub bits: usize,
    /// Entries of a group: a power of 2 from 16 on.
    pub group_size: usize,
}

impl GroupFormat {
    /// Whether the format is one that there is.
    pub fn is_known(self) -> bool {
        matches!(self.bits, 4 | 8)
            && (16..=256).contains(&self.group_size)
            && self.group_size.is_power_of_two()
    }

    /// Codes in a byte.
    pub fn codes_in_byte(self) -> usize {
        8 / self.bits.clamp(1, 8)
    }

    /// Largest code.
    pub fn largest_code(self) -> u8 {
        if self.bits == 4 { 15 } else { 255 }
    }

    /// The zero point of matrices that have none of their own: 8 of 4 bits, 128 of 8.
    pub fn default_zero_point(self) -> u8 {
        if self.bits == 4 { 8 } else { 128 }
    }

    /// Groups of a row of `inner` entries.
    pub fn groups(self, inner: usize) -> usize {
        inner.div_ceil(self.group_size)
    }

    /// Bytes of a group's codes.
    pub fn code_bytes(self) -> usize {
        self.group_size / self.codes_in_byte()
    }

    /// Bytes of the zero points of a row of `inner` entries.
    pub fn zero_point_bytes(self, inner: usize) -> usize {
        self.groups(inner).div_ceil(self.codes_in_byte())
    }

    /// Packs codes into bytes, as many as fit; codes that are missing at the end are 0.
    pub fn pack(self, codes: &[u8], bytes: &mut [u8]) {
        match self.bits {
            4 => {
                for (byte, pair) in bytes.iter_mut().zip(codes.chunks(2)) {
                    *byte = pair[0] & 15 | pair.get(1).map_or(0, |second| second << 4);
                }
            }
            _ => bytes
                .iter_mut()
                .zip(codes)
                .for_each(|(byte, code)| *byte = *code),
        }
    }

    /// The codes in packed bytes, as many as `codes` holds.
    pub fn unpack(self, bytes: &[u8], codes: &mut [u8]) {
        match self.bits {
            4 => {
                for (i, code) in codes.iter_mut().enumerate() {
                    let byte = bytes.get(i / 2).copied().unwrap_or_default();
                    *code = if i % 2 == 0 { byte & 15 } else { byte >> 4 };
                }
            }
            _ => codes
                .iter_mut()
                .zip(bytes)
                .for_each(|(code, byte)| *code = *byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::GroupFormat;

    proptest! {
        #[test]
        fn packed_codes_are_unpacked_again(bits in prop_oneof![Just(4usize), Just(8)], codes in prop::collection::vec(any::<u8>(), 0..70)) {
            let format = GroupFormat { bits, group_size: 32 };
            let codes: Vec<u8> = codes.into_iter().map(|c| c & format.largest_code()).collect();
            let mut bytes = vec![0xff; codes.len().div_ceil(format.codes_in_byte())];
            format.pack(&codes, &mut bytes);
            let mut again = vec![0; codes.len()];
            format.unpack(&bytes, &mut again);
            prop_assert_eq!(again, codes);
        }
    }

    #[test]
    fn the_first_of_two_codes_is_in_the_lower_half() {
        let mut bytes = [0; 2];
        GroupFormat {
            bits: 4,
            group_size: 32,
        }
        .pack(&[1, 2, 3], &mut bytes);
        assert_eq!(bytes, [0x21, 0x03]);
    }
}
