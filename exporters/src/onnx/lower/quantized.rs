//! Products with quantised matrices, rows of quantised tables, and columns of logits.
//!
//! Profile `ort` has `MatMulNBits`, which rounds activations to 8 bits inside (`accuracy_level` 4;
//! level 0 takes two to three times as long for several tokens, and on AVX2 4 times for one of 4
//! bits, 30 times for one of 8). Profile `onnx` multiplies [in blocks](super::blocks). Profile
//! `portable` unpacks codes by arithmetic on floats that every runtime does exactly, tract and
//! TensorRT among them: no `DequantizeLinear`, which tract doesn't run in blocks, and which ONNX
//! Runtime runs with rounded activations. The file stays small; a runtime that folds constants holds
//! the matrix in single precision. Rows of tables are unpacked so in `onnx` too: they are few, and
//! no operator of ai.onnx takes rows of codes of 4 bits.

use dlc_ir::{DType, GroupFormat, Node};
use dlc_onnx::proto::data_type;

use super::super::builder::Name;
use super::context::Context;
use super::forms::Form;
use super::shared::{Product, common_form, define_full, define_like, finish_call, input_in};
use crate::error::ExportError;

/// A quantised matrix by the names of its parts.
pub(super) struct Matrix {
    pub codes: Name,
    pub scales: Name,
    pub zero_points: Option<Name>,
    /// Its rows.
    pub out: usize,
    /// Its columns.
    pub inner: usize,
}

/// What a quantised product reads besides `x`.
struct Operands {
    matrix: Matrix,
    bias: Option<Name>,
}

impl Operands {
    fn of(cx: &mut Context<'_>, node: &Node) -> Result<Self, ExportError> {
        let bias_at = cx.graph.bias_at(node, cx.target.weights);
        let [out, inner] = [
            cx.width(Context::output_at(node, 0)?)?,
            cx.width(cx.value_at(node, 0)?)?,
        ];
        Ok(Self {
            matrix: Matrix {
                codes: cx.operand(node, 1)?,
                scales: cx.operand(node, 2)?,
                zero_points: if bias_at == 4 {
                    Some(cx.operand(node, 3)?)
                } else {
                    None
                },
                out,
                inner,
            },
            bias: if node.inputs.len() > bias_at {
                Some(cx.operand(node, bias_at)?)
            } else {
                None
            },
        })
    }
}

/// `MatMulNBits` of ONNX Runtime's own domain, which takes inputs of any rank.
pub(super) fn by_matmul_nbits(
    cx: &mut Context<'_>,
    node: &Node,
    format: GroupFormat,
) -> Result<(), ExportError> {
    let (x, Operands { matrix, bias }) = (cx.operand(node, 0)?, Operands::of(cx, node)?);
    let mut inputs = vec![x, matrix.codes, matrix.scales];
    let none = Name::from("");
    if matrix.zero_points.is_some() || bias.is_some() {
        inputs.push(matrix.zero_points.unwrap_or_else(|| none.clone()));
    }
    if let Some(bias) = bias {
        inputs.extend([none, bias]);
    }
    define_full(cx, node, |cx, out| {
        let call =
            cx.b.microsoft("MatMulNBits", &inputs.iter().collect::<Vec<_>>());
        let call = call
            .int("K", matrix.inner as i64)
            .int("N", matrix.out as i64);
        call.int("bits", format.bits as i64)
            .int("block_size", format.group_size as i64)
            .int("accuracy_level", 4)
            .into(&[out]);
    })
}

/// The matrix by `Cast`, sums and products, and a `Gemm` on rows.
pub(super) fn by_primitives(
    cx: &mut Context<'_>,
    node: &Node,
    format: GroupFormat,
) -> Result<(), ExportError> {
    let x = cx.value_at(node, 0)?;
    let dtype = cx.ty(x).dtype;
    let (x, Operands { matrix, bias }) = (cx.flat(x)?, Operands::of(cx, node)?);
    let weight = dequantized(cx, &matrix, format, dtype)?;
    let product = Product {
        rows: x,
        matrix: weight,
        is_transposed: false,
        bias,
    };
    define_like(cx, node, Form::Flat, |cx, out| product.finish(cx, out))
}

/// The matrix in floats, made once. `dtype` is the element type of what it is multiplied with.
pub(super) fn dequantized(
    cx: &mut Context<'_>,
    matrix: &Matrix,
    format: GroupFormat,
    dtype: DType,
) -> Result<Name, ExportError> {
    only_in_f32(dtype)?;
    cx.once(&format!("{}/dequantized", matrix.codes), |cx| {
        Ok(entries(cx, matrix, format))
    })
}

/// # Errors
/// [`ExportError::Module`] for another type.
pub(super) fn only_in_f32(dtype: DType) -> Result<(), ExportError> {
    if dtype == DType::F32 {
        return Ok(());
    }
    let problem = format!(
        "quantised matrices are multiplied in f32 here, not in {dtype}: outside of profile ort, and of experts whose rows aren't whole groups; compile with --dtype f32"
    );
    Err(ExportError::module("", problem))
}

/// `(code - zero_point) * scale`, `[out, in]`, exactly as the evaluator computes it.
fn entries(cx: &mut Context<'_>, matrix: &Matrix, format: GroupFormat) -> Name {
    let filled_up = filled_up(cx, matrix, format, &[matrix.out as i64]);
    let columns = format.groups(matrix.inner) * format.group_size;
    if columns == matrix.inner {
        filled_up
    } else {
        first_columns(cx, &filled_up, matrix.inner as i64)
    }
}

/// The same with whole groups, `[leading.., columns]`; 0 stands for an axis that stays as it is.
fn filled_up(cx: &mut Context<'_>, matrix: &Matrix, format: GroupFormat, leading: &[i64]) -> Name {
    let [groups, group] = [format.groups(matrix.inner), format.group_size].map(|n| n as i64);
    let codes = unpacked(
        cx,
        &matrix.codes,
        format,
        &[leading, &[groups, group]].concat(),
    );
    let one_each = [leading, &[groups, 1]].concat();
    let zero = match &matrix.zero_points {
        None => {
            cx.b.float(DType::F32, f32::from(format.default_zero_point()))
        }
        Some(packed) => {
            let row = (format.zero_point_bytes(matrix.inner) * format.codes_in_byte()) as i64;
            let zeros = unpacked(cx, packed, format, &[leading, &[row]].concat());
            let zeros = if row == groups {
                zeros
            } else {
                first_columns(cx, &zeros, groups)
            };
            let shape = cx.b.ints(&one_each);
            cx.b.op("Reshape", &[&zeros, &shape]).out()
        }
    };
    let shape = cx.b.ints(&one_each);
    let scales = cx.b.op("Reshape", &[&matrix.scales, &shape]).out();
    let steps = cx.b.op("Sub", &[&codes, &zero]).out();
    let entries = cx.b.op("Mul", &[&steps, &scales]).out();
    let shape = cx.b.ints(&[leading, &[groups * group]].concat());
    cx.b.op("Reshape", &[&entries, &shape]).out()
}

pub(super) fn first_columns(cx: &mut Context<'_>, matrix: &Name, columns: i64) -> Name {
    let [start, end, axis] = [0, columns, -1].map(|n| cx.b.ints(&[n]));
    cx.b.op("Slice", &[matrix, &start, &end, &axis]).out()
}

/// The parts of a table, and the ids that choose rows of it.
fn lookup(cx: &mut Context<'_>, node: &Node) -> Result<(Matrix, Name), ExportError> {
    let width = cx.width(Context::output_at(node, 0)?)?;
    let last = node.inputs.len().saturating_sub(1);
    let matrix = Matrix {
        codes: cx.operand(node, 0)?,
        scales: cx.operand(node, 1)?,
        zero_points: (last == 3).then(|| cx.operand(node, 2)).transpose()?,
        out: 0,
        inner: width,
    };
    Ok((matrix, cx.operand(node, last)?))
}

/// `GatherBlockQuantized` of ONNX Runtime's own domain.
pub(super) fn by_gather_block_quantized(
    cx: &mut Context<'_>,
    node: &Node,
    format: GroupFormat,
) -> Result<(), ExportError> {
    let (matrix, ids) = lookup(cx, node)?;
    // It takes codes as a matrix; products take the same bytes block by block.
    let codes = cx.once(&format!("{}/rows", matrix.codes), |cx| {
        let shape = cx.b.ints(&[0, -1]);
        Ok(cx.b.op("Reshape", &[&matrix.codes, &shape]).out())
    })?;
    let mut inputs = vec![codes, ids, matrix.scales];
    inputs.extend(matrix.zero_points);
    define_full(cx, node, |cx, out| {
        cx.b.microsoft("GatherBlockQuantized", &inputs.iter().collect::<Vec<_>>())
            .int("gather_axis", 0)
            .int("quantize_axis", 1)
            .int("bits", format.bits as i64)
            .int("block_size", format.group_size as i64)
            .into(&[out]);
    })
}

/// Rows of the parts by `Gather`, and the entries of those rows by arithmetic.
pub(super) fn gather_by_primitives(
    cx: &mut Context<'_>,
    node: &Node,
    format: GroupFormat,
) -> Result<(), ExportError> {
    let made = Context::output_at(node, 0)?;
    only_in_f32(cx.ty(made).dtype)?;
    let leading = vec![0; cx.ty(made).shape.rank().saturating_sub(1)];
    let (table, ids) = lookup(cx, node)?;
    let mut rows = |part: &Name| cx.b.op("Gather", &[part, &ids]).int("axis", 0).out();
    let rows = Matrix {
        codes: rows(&table.codes),
        scales: rows(&table.scales),
        zero_points: table.zero_points.as_ref().map(rows),
        ..table
    };
    let entries = filled_up(cx, &rows, format, &leading);
    define_full(cx, node, |cx, out| {
        cx.b.op("Identity", &[&entries]).into(&[out]);
    })
}

/// Packed bytes as codes in single precision, in this shape. A byte is `16 high + low`, all small
/// whole numbers.
pub(super) fn unpacked(
    cx: &mut Context<'_>,
    packed: &Name,
    format: GroupFormat,
    shape: &[i64],
) -> Name {
    let bytes =
        cx.b.op("Cast", &[packed])
            .int("to", i64::from(data_type(DType::F32)))
            .out();
    if format.codes_in_byte() == 1 {
        let shape = cx.b.ints(shape);
        return cx.b.op("Reshape", &[&bytes, &shape]).out();
    }
    let (sixteenth, sixteen) = (
        cx.b.float(DType::F32, 1.0 / 16.0),
        cx.b.float(DType::F32, 16.0),
    );
    let high = cx.b.op("Mul", &[&bytes, &sixteenth]).out();
    let high = cx.b.op("Floor", &[&high]).out();
    let upper = cx.b.op("Mul", &[&high, &sixteen]).out();
    let low = cx.b.op("Sub", &[&bytes, &upper]).out();
    let (axis, shape) = (cx.b.ints(&[-1]), cx.b.ints(shape));
    let pair = [low, high].map(|half| cx.b.op("Unsqueeze", &[&half, &axis]).out());
    let pairs =
        cx.b.op("Concat", &[&pair[0], &pair[1]])
            .int("axis", -1)
            .out();
    cx.b.op("Reshape", &[&pairs, &shape]).out()
}

/// One more column of minus infinity, and a `Gather` of columns.
pub(super) fn gather_columns(cx: &mut Context<'_>, node: &Node) -> Result<(), ExportError> {
    let form = common_form(cx, node)?;
    let (x, columns) = (input_in(cx, node, 0, form)?, cx.operand(node, 1)?);
    let value = cx.value_at(node, 0)?;
    let rank = if form == Form::Flat {
        2
    } else {
        cx.ty(value).shape.rank()
    };
    let mut pads = vec![0; 2 * rank];
    pads[2 * rank - 1] = 1;
    let (pads, none) = (
        cx.b.ints(&pads),
        cx.b.float(cx.ty(value).dtype, f32::NEG_INFINITY),
    );
    let padded =
        cx.b.op("Pad", &[&x, &pads, &none])
            .text("mode", "constant")
            .out();
    define_like(cx, node, form, |cx, out| {
        finish_call(
            cx.b.op("Gather", &[&padded, &columns])
                .int("axis", rank as i64 - 1),
            out,
        )
    })
}
