//! Expressions: how a weight's elements come about, evaluated a range at a time.
//!
//! Leaves are byte ranges of mapped files. Arithmetic is in single precision whatever the storage
//! types; a `Cast` at the root rounds once. Memory never grows with the weight: products,
//! transposes and row norms read the few rows or columns that they need.

mod coded;
mod key;
mod packed;
mod quantize;
mod read;
mod transpose;

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::codec::{decode, encode, round};
use crate::types::DType;
use read::{
    ROWS_TILE, apply, combine, join, multiply, normalize_rows, repeat, replace_rows, scale_columns,
    scale_rows, select_rows, transpose,
};

pub use coded::{Coded, CodedPart, Groups};
pub(crate) use key::ExprKey;
pub use packed::Packing;
pub use quantize::{QuantizedPart, Quantizer, Refinement};

/// A byte range of a shared buffer, usually a mapped file.
#[derive(Clone)]
pub struct Blob {
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Blob {
    /// The bytes at `range` of `bytes`, if the buffer has them.
    pub fn new(bytes: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Option<Self> {
        (*bytes).as_ref().get(range.clone())?;
        Some(Self { bytes, range })
    }

    /// The first byte's place in the buffer.
    pub fn offset(&self) -> usize {
        self.range.start
    }

    fn key(&self) -> (usize, usize, usize) {
        (
            Arc::as_ptr(&self.bytes).cast::<u8>() as usize,
            self.range.start,
            self.range.end,
        )
    }
}

impl AsRef<[u8]> for Blob {
    fn as_ref(&self) -> &[u8] {
        (*self.bytes)
            .as_ref()
            .get(self.range.clone())
            .unwrap_or_default()
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Blob({} bytes at {})",
            self.range.len(),
            self.range.start
        )
    }
}

/// How a weight's elements come about. Matrices are row-major; the operands of entry-by-entry
/// operations have equally many elements.
#[derive(Debug, Clone)]
pub enum Expr {
    /// Little-endian elements of type `dtype`, as they lie in a file.
    Mapped {
        /// Where they lie.
        blob: Blob,
        /// Their type.
        dtype: DType,
    },
    /// Numbers in blocks of a packed format, as they lie in a file.
    Packed {
        /// Where the blocks lie.
        blob: Blob,
        /// Their format.
        packing: &'static Packing,
    },
    /// A matrix that is quantised in the file it comes from.
    Coded {
        /// The matrix.
        matrix: Arc<dyn Coded>,
        /// What is read of it.
        part: CodedPart,
    },
    /// Every element some times in a row, and all of that some times over: a vector stretched to
    /// the rows or columns of a matrix.
    Repeat {
        /// The elements.
        input: Arc<Expr>,
        /// How often each stands in a row; above 0.
        each: usize,
        /// How often all of them stand after each other.
        times: usize,
    },
    /// Expressions after each other, in single precision.
    Join(Vec<Arc<Expr>>),
    /// The same numbers in another float type, rounded to nearest even.
    Cast {
        /// The numbers.
        input: Arc<Expr>,
        /// The type to round to.
        dtype: DType,
    },
    /// Sum, entry by entry.
    Add(Arc<Expr>, Arc<Expr>),
    /// Product, entry by entry.
    Mul(Arc<Expr>, Arc<Expr>),
    /// Every entry times a number.
    Scale(Arc<Expr>, f32),
    /// Every entry plus a number.
    Offset(Arc<Expr>, f32),
    /// Consecutive elements.
    Slice {
        /// What they are taken from.
        input: Arc<Expr>,
        /// The first one.
        from: usize,
        /// How many.
        len: usize,
    },
    /// A matrix with rows and columns exchanged.
    Transpose {
        /// The matrix.
        input: Arc<Expr>,
        /// Its columns, which become rows; above 0.
        columns: usize,
    },
    /// Negative entries become 0.
    Relu(Arc<Expr>),
    /// +1 for entries above 0, else -1: of 0 too, as Dual LoRA (arXiv 2512.03402) has it.
    Sign(Arc<Expr>),
    /// Matrix product `left [rows, inner] x right [inner, columns]`.
    MatMul {
        /// The left factor.
        left: Arc<Expr>,
        /// The right factor.
        right: Arc<Expr>,
        /// Columns of the left factor, rows of the right one; above 0.
        inner: usize,
        /// Columns of the product; above 0.
        columns: usize,
    },
    /// Every row of a matrix divided by its Euclidean norm and multiplied by its entry of
    /// `magnitude [rows]` (DoRA, arXiv 2402.09353).
    ScaleRows {
        /// The matrix.
        input: Arc<Expr>,
        /// The new norm of each row.
        magnitude: Arc<Expr>,
        /// Columns of the matrix; above 0.
        columns: usize,
    },
    /// Every row of a matrix less its mean, divided by the root of its variance plus `eps` (Ba et
    /// al., 2016).
    NormalizeRows {
        /// The matrix.
        input: Arc<Expr>,
        /// Columns of the matrix; above 0.
        columns: usize,
        /// Added to the variance.
        eps: f32,
    },
    /// Every column of a matrix divided by its Euclidean norm and multiplied by its entry of
    /// `magnitude [columns]`: a transposed `ScaleRows`.
    ScaleColumns {
        /// The matrix.
        input: Arc<Expr>,
        /// The new norm of each column.
        magnitude: Arc<Expr>,
        /// Columns of the matrix; above 0.
        columns: usize,
        /// The factor of each column, computed when it is first needed: every range needs all of
        /// them.
        factors: Arc<OnceLock<Vec<f32>>>,
    },
    /// Some rows of a matrix, in this order.
    Rows {
        /// The matrix.
        input: Arc<Expr>,
        /// Columns of the matrix; above 0.
        columns: usize,
        /// Numbers of the rows.
        rows: Arc<[u32]>,
    },
    /// A matrix, some of whose rows are others.
    ReplaceRows {
        /// The matrix.
        input: Arc<Expr>,
        /// Columns of the matrix; above 0.
        columns: usize,
        /// Numbers of the rows that are others, increasing.
        rows: Arc<[u32]>,
        /// What stands there instead, a row for each number.
        values: Arc<Expr>,
    },
    /// One part of a matrix quantised in blocks along its rows. Scales have the matrix's type.
    Quantize {
        /// The matrix.
        input: Arc<Expr>,
        /// Columns of the matrix; above 0.
        columns: usize,
        /// How it is quantised.
        quantizer: Quantizer,
        /// Which part.
        part: QuantizedPart,
    },
}

/// Elements that are read at a time; small enough for the first-level cache.
const TILE: usize = 2048;

impl Expr {
    /// These little-endian elements.
    pub fn constant(bytes: Vec<u8>, dtype: DType) -> Self {
        let range = 0..bytes.len();
        Self::Mapped {
            blob: Blob {
                bytes: Arc::new(bytes),
                range,
            },
            dtype,
        }
    }

    /// `self` as `dtype`; nothing is added if it has that type.
    #[must_use]
    pub fn cast(self, dtype: DType) -> Self {
        if self.dtype() == dtype {
            self
        } else {
            Self::Cast {
                input: Arc::new(self),
                dtype,
            }
        }
    }

    /// Every entry plus `addend`; two opposite addends leave what was there before both.
    #[must_use]
    pub fn offset(self, addend: f32) -> Self {
        match self {
            Self::Offset(input, before) if before.to_bits() == (-addend).to_bits() => {
                Arc::unwrap_or_clone(input)
            }
            other => Self::Offset(Arc::new(other), addend),
        }
    }

    /// Elements `from .. from + len` of `self`.
    #[must_use]
    pub fn slice(self, from: usize, len: usize) -> Self {
        Self::Slice {
            input: Arc::new(self),
            from,
            len,
        }
    }

    /// Type of the elements. What is computed is single precision, but for scales, which have the
    /// type of what is quantised; packed codes are bytes.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Mapped { dtype, .. } | Self::Cast { dtype, .. } => *dtype,
            Self::Slice { input, .. }
            | Self::Transpose { input, .. }
            | Self::Repeat { input, .. }
            | Self::Rows { input, .. }
            | Self::Quantize {
                input,
                part: QuantizedPart::Scales,
                ..
            } => input.dtype(),
            Self::Quantize { .. }
            | Self::Coded {
                part: CodedPart::Part(_, QuantizedPart::Codes | QuantizedPart::ZeroPoints),
                ..
            } => DType::U8,
            Self::Packed { .. }
            | Self::Coded { .. }
            | Self::Join(_)
            | Self::Add(..)
            | Self::Mul(..)
            | Self::Scale(..)
            | Self::Offset(..)
            | Self::Relu(_)
            | Self::Sign(_)
            | Self::MatMul { .. }
            | Self::ScaleRows { .. }
            | Self::NormalizeRows { .. }
            | Self::ScaleColumns { .. }
            | Self::ReplaceRows { .. } => DType::F32,
        }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        match self {
            Self::Mapped { blob, dtype } => blob.as_ref().len() / dtype.size(),
            Self::Packed { blob, packing } => packing.elements_in(blob.as_ref().len()),
            Self::Coded { matrix, part } => matrix.shape()[0] * matrix.row_elements(*part),
            Self::Repeat { input, each, times } => input.elements() * each * times,
            Self::Join(parts) => parts.iter().map(|part| part.elements()).sum(),
            Self::Cast { input, .. }
            | Self::Scale(input, _)
            | Self::Offset(input, _)
            | Self::Transpose { input, .. }
            | Self::Relu(input)
            | Self::Sign(input)
            | Self::ScaleRows { input, .. }
            | Self::NormalizeRows { input, .. }
            | Self::ScaleColumns { input, .. }
            | Self::ReplaceRows { input, .. } => input.elements(),
            Self::Slice { input, from, len } => input.elements().saturating_sub(*from).min(*len),
            Self::Add(a, b) | Self::Mul(a, b) => a.elements().min(b.elements()),
            Self::MatMul {
                left,
                inner,
                columns,
                ..
            } => left.elements() / inner * columns,
            Self::Rows { columns, rows, .. } => rows.len() * columns,
            Self::Quantize {
                input,
                columns,
                quantizer,
                part,
            } => quantizer.elements(*part, input.elements(), *columns),
        }
    }

    /// Elements `from .. from + out.len()` as single-precision numbers; `out` stays as it is where
    /// the range passes the end.
    pub fn read_f32(&self, from: usize, out: &mut [f32]) {
        match self {
            Self::Mapped { blob, dtype } => decode(
                *dtype,
                blob.as_ref().get(from * dtype.size()..).unwrap_or_default(),
                out,
            ),
            Self::Packed { blob, packing } => packing.read(blob.as_ref(), from, out),
            Self::Coded { matrix, part } => matrix.read(*part, from, out),
            Self::Repeat { input, each, .. } => repeat(input, *each, from, out),
            Self::Join(parts) => join(parts, from, out),
            Self::Cast { input, dtype } => {
                input.read_f32(from, out);
                round(*dtype, out);
            }
            Self::Add(a, b) => combine(a, b, from, out, |x, y| x + y),
            Self::Mul(a, b) => combine(a, b, from, out, |x, y| x * y),
            Self::Scale(input, factor) => apply(input, from, out, |x| x * factor),
            Self::Offset(input, addend) => apply(input, from, out, |x| x + addend),
            Self::Slice {
                input, from: first, ..
            } => input.read_f32(first + from, out),
            Self::Transpose { input, columns } => transpose(input, *columns, from, out),
            Self::Relu(input) => apply(input, from, out, |x| if x < 0.0 { 0.0 } else { x }),
            Self::Sign(input) => apply(input, from, out, |x| if x > 0.0 { 1.0 } else { -1.0 }),
            Self::MatMul {
                left,
                right,
                inner,
                columns,
            } => multiply(left, right, (*inner, *columns), from, out),
            Self::ScaleRows {
                input,
                magnitude,
                columns,
            } => scale_rows(input, magnitude, *columns, from, out),
            Self::NormalizeRows {
                input,
                columns,
                eps,
            } => normalize_rows(input, *columns, *eps, from, out),
            Self::ScaleColumns {
                input,
                magnitude,
                columns,
                factors,
            } => scale_columns(input, magnitude, (*columns, factors), from, out),
            Self::Rows {
                input,
                columns,
                rows,
            } => select_rows(input, *columns, rows, from, out),
            Self::ReplaceRows {
                input,
                columns,
                rows,
                values,
            } => replace_rows(input, (rows, values), *columns, from, out),
            Self::Quantize {
                input,
                columns,
                quantizer,
                part,
            } => quantize::quantized(input, *columns, (quantizer, *part), from, out),
        }
    }

    /// Little-endian bytes of the elements from `from` on, as many as `out` holds.
    pub(crate) fn write_bytes(&self, from: usize, out: &mut [u8]) {
        if let Self::Mapped { blob, dtype } = self {
            let bytes = blob.as_ref().get(from * dtype.size()..).unwrap_or_default();
            let n = bytes.len().min(out.len());
            out[..n].copy_from_slice(&bytes[..n]);
            return;
        }
        let dtype = self.dtype();
        // The root's own rounding is the encoding.
        let unrounded = self.unrounded();
        let tile = unrounded.tile();
        let mut numbers = vec![0f32; tile.min(out.len() / dtype.size())];
        for (i, bytes) in out.chunks_mut(tile * dtype.size()).enumerate() {
            let numbers = &mut numbers[..bytes.len() / dtype.size()];
            unrounded.read_f32(from + i * tile, numbers);
            encode(dtype, numbers, bytes);
        }
    }

    /// What the root's cast rounds; the expression itself if its root is no cast.
    pub fn unrounded(&self) -> &Self {
        if let Self::Cast { input, .. } = self {
            input
        } else {
            self
        }
    }

    /// Index of the first element that is NaN or infinite.
    pub fn first_non_finite(&self) -> Option<usize> {
        let size = self.tile();
        let mut numbers = vec![0f32; size.min(self.elements())];
        for from in (0..self.elements()).step_by(size) {
            let tile = &mut numbers[..size.min(self.elements() - from)];
            self.read_f32(from, tile);
            // A sum of products with 0 is NaN as soon as one number is not finite, and vectorises.
            if tile.iter().map(|x| x * 0.0).sum::<f32>() != 0.0 {
                return tile.iter().position(|x| !x.is_finite()).map(|i| from + i);
            }
        }
        None
    }

    /// How many elements are best read at a time.
    fn tile(&self) -> usize {
        if self.reads_rows() { ROWS_TILE } else { TILE }
    }

    /// Whether reading a range reads whole rows of something, so that long ranges cost less than
    /// many short ones.
    fn reads_rows(&self) -> bool {
        match self {
            Self::Mapped { .. } | Self::Packed { .. } | Self::Coded { .. } => false,
            Self::MatMul { .. }
            | Self::ScaleRows { .. }
            | Self::NormalizeRows { .. }
            | Self::ScaleColumns { .. }
            | Self::Transpose { .. } => true,
            Self::Cast { input, .. }
            | Self::Scale(input, _)
            | Self::Offset(input, _)
            | Self::Slice { input, .. }
            | Self::Repeat { input, .. }
            | Self::Rows { input, .. }
            | Self::Quantize { input, .. }
            | Self::Relu(input)
            | Self::Sign(input) => input.reads_rows(),
            Self::Join(parts) => parts.iter().any(|part| part.reads_rows()),
            Self::Add(a, b)
            | Self::Mul(a, b)
            | Self::ReplaceRows {
                input: a,
                values: b,
                ..
            } => a.reads_rows() || b.reads_rows(),
        }
    }
}

#[cfg(test)]
mod tests;
