//! Types of values: an element type, and a shape.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::dim::Dim;

/// Element type of a value or weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an `F32`.
    Bf16,
    /// Signed 64-bit integer: ids, masks and positions.
    I64,
    /// Unsigned byte: packed codes of quantised weights.
    U8,
}

impl DType {
    /// Every element type.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::I64, Self::U8];

    /// The name in the text form, in commands and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I64 => "i64",
            Self::U8 => "u8",
        }
    }

    /// The type with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.name() == name)
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::I64 => 8,
            Self::U8 => 1,
        }
    }

    /// The smallest single-precision number that rounding to the type makes infinite.
    pub fn overflow(self) -> f32 {
        match self {
            Self::F32 | Self::I64 | Self::U8 => f32::INFINITY,
            Self::F16 => 65520.0,
            Self::Bf16 => f32::from_bits(0x7f7f_8000),
        }
    }

    /// Whether elements are floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The axes of a value, outermost first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shape(pub Vec<Dim>);

impl Shape {
    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// The innermost axis.
    pub fn last(&self) -> Option<&Dim> {
        self.0.last()
    }

    /// The same shape with another innermost axis.
    #[must_use]
    pub fn with_last(&self, last: Dim) -> Self {
        let mut dims = self.0.clone();
        if let Some(d) = dims.last_mut() {
            *d = last;
        }
        Self(dims)
    }

    /// `dim` in the place of every `symbol`.
    #[must_use]
    pub fn substitute(&self, symbol: &str, dim: &Dim) -> Self {
        Self(self.0.iter().map(|d| d.substitute(symbol, dim)).collect())
    }

    /// Whether both shapes hold the same number of elements whatever the symbols stand for.
    pub fn same_elements(&self, other: &Self) -> bool {
        let factors = |shape: &Self| {
            let (parts, numbers): (Vec<Vec<Dim>>, Vec<usize>) =
                shape.0.iter().map(Dim::factors).unzip();
            let mut parts = parts.concat();
            parts.sort();
            let known = numbers.into_iter().try_fold(1usize, usize::checked_mul);
            (parts, known)
        };
        let (a, b) = (factors(self), factors(other));
        a.1.is_some() && a == b
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, dim) in self.0.iter().enumerate() {
            write!(f, "{}{dim}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("]")
    }
}

/// The type of a value: `f32[batch, seq, 576]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ValueType {
    /// Element type.
    pub dtype: DType,
    /// Axes.
    pub shape: Shape,
}

impl ValueType {
    /// A type from its parts.
    pub fn new(dtype: DType, dims: impl IntoIterator<Item = Dim>) -> Self {
        Self {
            dtype,
            shape: Shape(dims.into_iter().collect()),
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}
