//! How a tensor's elements are stored: the types of GGML, by their numbers.

use std::fmt;

use dlc_ir::{Blob, DType, Expr, Packing};

use crate::packing;

/// The type of a tensor.
#[derive(Debug, Clone, Copy)]
pub enum TensorKind {
    /// Floats as the IR has them.
    Float(DType),
    /// Blocks of codes and scales.
    Packed(&'static Packing),
    /// What dlc doesn't read, by its number.
    Other(u32),
}

/// The names of the types that dlc doesn't read
/// (<https://github.com/ggml-org/ggml/blob/master/include/ggml.h>, `enum ggml_type`).
const OTHERS: [(u32, &str); 28] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

impl TensorKind {
    pub(crate) fn of(number: u32) -> Self {
        match number {
            0 => Self::Float(DType::F32),
            1 => Self::Float(DType::F16),
            30 => Self::Float(DType::Bf16),
            2 => Self::Packed(&packing::Q4_0),
            3 => Self::Packed(&packing::Q4_1),
            6 => Self::Packed(&packing::Q5_0),
            7 => Self::Packed(&packing::Q5_1),
            8 => Self::Packed(&packing::Q8_0),
            12 => Self::Packed(&packing::Q4_K),
            13 => Self::Packed(&packing::Q5_K),
            14 => Self::Packed(&packing::Q6_K),
            other => Self::Other(other),
        }
    }

    /// Elements that are stored together, and their bytes; nothing for a type that dlc doesn't
    /// read.
    pub(crate) fn block(self) -> Option<(usize, usize)> {
        match self {
            Self::Float(dtype) => Some((1, dtype.size())),
            Self::Packed(packing) => Some((packing.elements, packing.bytes)),
            Self::Other(_) => None,
        }
    }

    /// The elements in these bytes.
    pub(crate) fn expr(self, blob: Blob) -> Option<Expr> {
        match self {
            Self::Float(dtype) => Some(Expr::Mapped { blob, dtype }),
            Self::Packed(packing) => Some(Expr::Packed { blob, packing }),
            Self::Other(_) => None,
        }
    }
}

impl fmt::Display for TensorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(dtype) => f.write_str(&dtype.name().to_ascii_uppercase()),
            Self::Packed(packing) => f.write_str(packing.name),
            Self::Other(number) => match OTHERS.iter().find(|(n, _)| n == number) {
                Some((_, name)) => f.write_str(name),
                None => write!(f, "type {number}"),
            },
        }
    }
}
