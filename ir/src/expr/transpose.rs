//! Transposing: rows and columns are exchanged at the leaves, so that what is computed is still
//! read row by row.

use std::sync::{Arc, OnceLock};

use super::Expr;

impl Expr {
    /// `self`, a matrix of `columns` columns, with rows and columns exchanged: the same numbers to
    /// the bit, at about the same cost.
    #[must_use]
    pub fn transposed(self, columns: usize) -> Self {
        let flip = |matrix: Arc<Self>| Arc::new(Arc::unwrap_or_clone(matrix).transposed(columns));
        let rows = self.elements() / columns.max(1);
        match self {
            Self::Transpose { input, .. } => Arc::unwrap_or_clone(input),
            Self::Cast { input, dtype } => Self::Cast {
                input: flip(input),
                dtype,
            },
            Self::Add(a, b) => Self::Add(flip(a), flip(b)),
            Self::Mul(a, b) => Self::Mul(flip(a), flip(b)),
            Self::Scale(input, factor) => Self::Scale(flip(input), factor),
            Self::Offset(input, addend) => Self::Offset(flip(input), addend),
            Self::Relu(input) => Self::Relu(flip(input)),
            Self::Sign(input) => Self::Sign(flip(input)),
            // (B A)^T = A^T B^T.
            Self::MatMul {
                left, right, inner, ..
            } if rows > 0 => {
                let left = Arc::new(Arc::unwrap_or_clone(left).transposed(inner));
                Self::MatMul {
                    left: flip(right),
                    right: left,
                    inner,
                    columns: rows,
                }
            }
            Self::ScaleRows {
                input, magnitude, ..
            } if rows > 0 => Self::ScaleColumns {
                input: flip(input),
                magnitude,
                columns: rows,
                factors: Arc::new(OnceLock::new()),
            },
            Self::ScaleColumns {
                input, magnitude, ..
            } if rows > 0 => Self::ScaleRows {
                input: flip(input),
                magnitude,
                columns: rows,
            },
            other => Self::Transpose {
                input: Arc::new(other),
                columns,
            },
        }
    }
}
