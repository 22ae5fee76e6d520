//! Products with quantised matrices, and columns of logits. Codes come as numbers from 0 to 255, a
//! byte each.

use candle_core::{D, Device, Tensor};
use dlc_ir::GroupFormat;

use crate::error::OpError;
use crate::rows::{linear, row_numbers};

/// Dequantises in single precision and multiplies: what the graph means, activations unrounded.
pub(crate) fn quantized_linear(format: GroupFormat, inputs: &[Tensor]) -> Result<Tensor, OpError> {
    let [x, codes, scales, more @ ..] = inputs else {
        return Err(OpError::Bug(format!("{} operands", inputs.len())));
    };
    let inner = x.dim(D::Minus1)?;
    // A bias has one axis, zero points have two.
    let zero_points = more.first().filter(|t| t.rank() == 2);
    let bias = more.get(usize::from(zero_points.is_some()));
    linear(
        x,
        &dequantized(format, inner, [codes, scales], zero_points)?,
        bias,
    )
}

/// The rows that ids name, in single precision.
pub(crate) fn quantized_gather(format: GroupFormat, inputs: &[Tensor]) -> Result<Tensor, OpError> {
    let [codes, scales, more @ .., ids] = inputs else {
        return Err(OpError::Bug(format!("{} operands", inputs.len())));
    };
    let (rows, groups) = scales.dims2()?;
    row_numbers(ids, rows)?;
    let wanted = ids.flatten_all()?;
    let part = |table: &Tensor| table.index_select(&wanted, 0);
    let zero_points = more.first().map(part).transpose()?;
    let width = groups * format.group_size;
    let parts = [&part(codes)?, &part(scales)?];
    let entries = dequantized(format, width, parts, zero_points.as_ref())?;
    Ok(entries.reshape([ids.dims(), &[width]].concat())?)
}

/// The matrix, in single precision.
pub(crate) fn dequantized(
    format: GroupFormat,
    inner: usize,
    [codes, scales]: [&Tensor; 2],
    zero_points: Option<&Tensor>,
) -> Result<Tensor, OpError> {
    let out = codes.dim(0)?;
    let (groups, row_bytes, zero_bytes) = (
        format.groups(inner),
        format.groups(inner) * format.code_bytes(),
        format.zero_point_bytes(inner),
    );
    let (codes, scales) = (bytes(codes)?, scales.flatten_all()?.to_vec1::<f32>()?);
    let zero_points = zero_points.map(bytes).transpose()?;
    let mut weight = Vec::with_capacity(out * inner);
    let (mut row_codes, mut zeros) = (
        vec![0; groups * format.group_size],
        vec![format.default_zero_point(); groups],
    );
    for row in 0..out {
        format.unpack(&codes[row * row_bytes..][..row_bytes], &mut row_codes);
        if let Some(packed) = &zero_points {
            format.unpack(&packed[row * zero_bytes..][..zero_bytes], &mut zeros);
        }
        let scales = &scales[row * groups..][..groups];
        let entry = |(i, code): (usize, &u8)| {
            (f32::from(*code) - f32::from(zeros[i / format.group_size]))
                * scales[i / format.group_size]
        };
        weight.extend(row_codes.iter().enumerate().take(inner).map(entry));
    }
    Ok(Tensor::from_vec(weight, (out, inner), &Device::Cpu)?)
}

fn bytes(tensor: &Tensor) -> Result<Vec<u8>, OpError> {
    Ok(tensor
        .flatten_all()?
        .to_vec1::<f32>()?
        .into_iter()
        .map(|x| x as u8)
        .collect())
}

pub(crate) fn gather_columns([x, columns]: &[Tensor; 2]) -> Result<Tensor, OpError> {
    let width = x.dim(D::Minus1)?;
    row_numbers(columns, width + 1)?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = 1;
    }
    let none = Tensor::full(f32::NEG_INFINITY, shape, &Device::Cpu)?;
    Ok(Tensor::cat(&[x, &none], x.rank() - 1)?
        .contiguous()?
        .index_select(columns, x.rank() - 1)?)
}
