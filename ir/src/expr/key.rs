//! What tells expressions apart: their operations, parameters and operands, never their data.

use std::sync::Arc;

use super::{CodedPart, Expr, QuantizedPart, Quantizer};
use crate::types::DType;

/// Equal keys mean equal expressions, and so equal data.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum ExprKey {
    Mapped((usize, usize, usize), DType),
    Packed((usize, usize, usize), &'static str),
    /// A matrix by its place in memory, where it stays for as long as an expression has it.
    Coded(usize, CodedPart),
    /// An operation by number, its parameters, and its operands.
    Computed(u8, [u64; 2], Vec<ExprKey>),
    Rows(Arc<[u32]>, usize, Box<ExprKey>),
    ReplaceRows(Arc<[u32]>, usize, Box<[ExprKey; 2]>),
    Quantize(Quantizer, QuantizedPart, usize, Box<ExprKey>),
}

impl Expr {
    pub(crate) fn key(&self) -> ExprKey {
        let computed = |op: u8, parameters: [u64; 2], operands: &[&Arc<Self>]| {
            ExprKey::Computed(op, parameters, operands.iter().map(|e| e.key()).collect())
        };
        match self {
            Self::Mapped { blob, dtype } => ExprKey::Mapped(blob.key(), *dtype),
            Self::Packed { blob, packing } => ExprKey::Packed(blob.key(), packing.name),
            Self::Coded { matrix, part } => {
                ExprKey::Coded(Arc::as_ptr(matrix).cast::<u8>() as usize, *part)
            }
            Self::Cast { input, dtype } => computed(0, [*dtype as u64, 0], &[input]),
            Self::Add(a, b) => computed(1, [0; 2], &[a, b]),
            Self::Mul(a, b) => computed(2, [0; 2], &[a, b]),
            Self::Scale(input, factor) => computed(3, [u64::from(factor.to_bits()), 0], &[input]),
            Self::Relu(input) => computed(4, [0; 2], &[input]),
            Self::Sign(input) => computed(5, [0; 2], &[input]),
            Self::MatMul {
                left,
                right,
                inner,
                columns,
            } => computed(6, [*inner as u64, *columns as u64], &[left, right]),
            Self::ScaleRows {
                input,
                magnitude,
                columns,
            } => computed(7, [*columns as u64, 0], &[input, magnitude]),
            Self::Offset(input, addend) => computed(8, [u64::from(addend.to_bits()), 0], &[input]),
            Self::Slice { input, from, len } => computed(9, [*from as u64, *len as u64], &[input]),
            Self::Transpose { input, columns } => computed(10, [*columns as u64, 0], &[input]),
            Self::ScaleColumns {
                input,
                magnitude,
                columns,
                ..
            } => computed(11, [*columns as u64, 0], &[input, magnitude]),
            Self::Join(parts) => computed(13, [0; 2], &parts.iter().collect::<Vec<_>>()),
            Self::Repeat { input, each, times } => {
                computed(12, [*each as u64, *times as u64], &[input])
            }
            Self::NormalizeRows {
                input,
                columns,
                eps,
            } => computed(14, [*columns as u64, u64::from(eps.to_bits())], &[input]),
            Self::Rows {
                input,
                columns,
                rows,
            } => ExprKey::Rows(Arc::clone(rows), *columns, Box::new(input.key())),
            Self::ReplaceRows {
                input,
                columns,
                rows,
                values,
            } => ExprKey::ReplaceRows(
                Arc::clone(rows),
                *columns,
                Box::new([input.key(), values.key()]),
            ),
            Self::Quantize {
                input,
                columns,
                quantizer,
                part,
            } => ExprKey::Quantize(*quantizer, *part, *columns, Box::new(input.key())),
        }
    }
}
