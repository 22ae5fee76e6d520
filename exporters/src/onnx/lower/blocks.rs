//! Products with quantised matrices by `DequantizeLinear` in blocks, the form of profile `onnx`.
//!
//! ONNX Runtime makes a `MatMulNBits` of `DequantizeLinear` before `MatMul` or `Gemm` where the codes
//! are a constant, blocks go along axis 0, and nothing else reads the numbers; axis 1 before `transB`
//! it leaves as it is (measured with 1.25, 1.26 and 1.31; 1.24 does it for 4 bits without a bias
//! alone, and unpacks other matrices in every run). Then the matrix stays in codes, and activations
//! are rounded to 8 bits as in profile `ort`: `session.qdq_matmulnbits_accuracy_level` is 4 unless
//! somebody sets it. OpenVINO 2026.4 and onnxruntime-web 1.30 round none.
//!
//! Codes have the bytes of `MatMulNBits`, which looked-up tables share: a `Transpose` of the constant
//! turns them, which ONNX Runtime does once, when it loads the file. That takes longer than to load
//! codes that are stored so, not to run them (`scripts/bench_quantized.py`). The last group of a row
//! is filled up, and so rows of activations are, with zeros: OpenVINO takes whole blocks only.
//! Matrices that a graph multiplies by several times (unrolled samplers) stay `DequantizeLinear`.

use dlc_ir::{DType, GroupFormat, Node};
use dlc_onnx::proto::{UINT4, data_type};

use super::super::builder::Name;
use super::context::Context;
use super::forms::Form;
use super::parts::Part;
use super::quantized::{first_columns, only_in_f32, unpacked};
use super::shared::{Product, define_like};
use crate::error::ExportError;

/// A quantised matrix in the weight file.
pub(super) struct Matrix {
    pub codes: Part,
    pub scales: Part,
    pub zero_points: Option<Part>,
    /// Its rows.
    pub out: usize,
    /// The columns of a piece of a row; each piece is filled up to whole groups.
    pub inner: usize,
    /// Pieces of a row, which are matrices beside each other.
    pub pieces: usize,
}

impl Matrix {
    /// Groups of a row.
    fn groups(&self, format: GroupFormat) -> usize {
        self.pieces * format.groups(self.inner)
    }
}

/// The product of a node's rows with the matrix that it names.
pub(super) fn quantized_linear(
    cx: &mut Context<'_>,
    node: &Node,
    format: GroupFormat,
) -> Result<(), ExportError> {
    let (x, bias_at) = (
        cx.value_at(node, 0)?,
        cx.graph.bias_at(node, cx.target.weights),
    );
    let matrix = Matrix {
        codes: cx.part_at(node, 1)?,
        scales: cx.part_at(node, 2)?,
        zero_points: (bias_at == 4).then(|| cx.part_at(node, 3)).transpose()?,
        out: cx.width(Context::output_at(node, 0)?)?,
        inner: cx.width(x)?,
        pieces: 1,
    };
    let (dtype, x) = (cx.ty(x).dtype, cx.flat(x)?);
    let mut product = product(cx, &x, &matrix, format, dtype)?;
    if node.inputs.len() > bias_at {
        product.bias = Some(cx.operand(node, bias_at)?);
    }
    define_like(cx, node, Form::Flat, |cx, out| product.finish(cx, out))
}

/// Rows `x [rows, pieces * inner]`, of element type `dtype`, times a matrix.
///
/// # Errors
/// [`ExportError::Module`] for another type than f32.
pub(super) fn product(
    cx: &mut Context<'_>,
    x: &Name,
    matrix: &Matrix,
    format: GroupFormat,
    dtype: DType,
) -> Result<Product, ExportError> {
    only_in_f32(dtype)?;
    let rows = filled_up(cx, x, matrix, format)?;
    let numbers = cx.once(&format!("{}/numbers", matrix.codes.name), |cx| {
        numbers(cx, matrix, format)
    })?;
    Ok(Product {
        rows,
        matrix: numbers,
        is_transposed: true,
        bias: None,
    })
}

/// The rows with zeros where codes are filled up, once for all that multiply them.
fn filled_up(
    cx: &mut Context<'_>,
    x: &Name,
    matrix: &Matrix,
    format: GroupFormat,
) -> Result<Name, ExportError> {
    let whole = format.groups(matrix.inner) * format.group_size;
    if whole == matrix.inner {
        return Ok(x.clone());
    }
    let [pieces, inner, whole] = [matrix.pieces, matrix.inner, whole].map(|n| n as i64);
    cx.once(&format!("{x}/filled_up/{whole}"), |cx| {
        let mut rows = x.clone();
        if pieces > 1 {
            let apart = cx.b.ints(&[-1, pieces, inner]);
            rows = cx.b.op("Reshape", &[&rows, &apart]).out();
        }
        let before = if pieces > 1 { 5 } else { 3 };
        let pads = [vec![0; before], vec![whole - inner]].concat();
        let (pads, zero) = (cx.b.ints(&pads), cx.b.float(DType::F32, 0.0));
        rows = cx.b.op("Pad", &[&rows, &pads, &zero]).out();
        if pieces > 1 {
            let together = cx.b.ints(&[-1, pieces * whole]);
            rows = cx.b.op("Reshape", &[&rows, &together]).out();
        }
        Ok(rows)
    })
}

/// `(code - zero_point) * scale`, `[columns, out]`, filled-up columns included.
fn numbers(
    cx: &mut Context<'_>,
    matrix: &Matrix,
    format: GroupFormat,
) -> Result<Name, ExportError> {
    let shape = [matrix.out, matrix.groups(format) * format.group_size];
    let codes = if format.bits == 4 {
        matrix.codes.codes(&mut cx.b, shape)?
    } else {
        let (bytes, shape) = (
            matrix.codes.whole(&mut cx.b),
            cx.b.ints(&shape.map(|n| n as i64)),
        );
        cx.b.op("Reshape", &[&bytes, &shape]).out()
    };
    let scales = matrix.scales.whole(&mut cx.b);
    let zeros = zero_points(cx, matrix, format)?;
    let [codes, scales] = [codes, scales].map(|part| turned(cx, &part));
    let call = cx.b.op("DequantizeLinear", &[&codes, &scales, &zeros]);
    Ok(call
        .int("axis", 0)
        .int("block_size", format.group_size as i64)
        .out())
}

fn turned(cx: &mut Context<'_>, matrix: &Name) -> Name {
    cx.b.op("Transpose", &[matrix]).ints("perm", &[1, 0]).out()
}

/// `[groups, out]`, in the element type of the codes.
fn zero_points(
    cx: &mut Context<'_>,
    matrix: &Matrix,
    format: GroupFormat,
) -> Result<Name, ExportError> {
    let [groups, out] = [matrix.groups(format), matrix.out].map(|n| n as i64);
    let Some(packed) = &matrix.zero_points else {
        return cx.once(&format!("zeros/{}/{groups}x{out}", format.bits), |cx| {
            let zero =
                cx.b.float(DType::F32, f32::from(format.default_zero_point()));
            let shape = cx.b.ints(&[groups, out]);
            let zeros = cx.b.op("Expand", &[&zero, &shape]).out();
            Ok(as_codes(cx, &zeros, format))
        });
    };
    let of_piece = format.groups(matrix.inner);
    if format.bits != 4 {
        let zeros = packed.whole(&mut cx.b);
        return Ok(turned(cx, &zeros));
    }
    if of_piece.is_multiple_of(format.codes_in_byte()) {
        let zeros = packed.codes(&mut cx.b, [matrix.out, matrix.groups(format)])?;
        return Ok(turned(cx, &zeros));
    }
    // The last byte of a piece holds one code only, and no operator takes a part of such a tensor.
    let pieces = out * matrix.pieces as i64;
    let in_bytes = (format.zero_point_bytes(matrix.inner) * format.codes_in_byte()) as i64;
    let bytes = packed.whole(&mut cx.b);
    let zeros = unpacked(cx, &bytes, format, &[pieces, in_bytes]);
    let zeros = first_columns(cx, &zeros, of_piece as i64);
    let shape = cx.b.ints(&[out, groups]);
    let zeros = cx.b.op("Reshape", &[&zeros, &shape]).out();
    let zeros = turned(cx, &zeros);
    Ok(as_codes(cx, &zeros, format))
}

/// Whole numbers in single precision in the element type of codes.
fn as_codes(cx: &mut Context<'_>, numbers: &Name, format: GroupFormat) -> Name {
    let ty = if format.bits == 4 {
        UINT4
    } else {
        data_type(DType::U8)
    };
    cx.b.op("Cast", &[numbers]).int("to", i64::from(ty)).out()
}
