//! Types of quantised products and of what takes columns of logits.

use super::Check;
use crate::dim::Dim;
use crate::error::IrError;
use crate::op::GroupFormat;
use crate::types::{DType, ValueType};

pub(super) fn linear(cx: &Check<'_>, format: GroupFormat) -> Result<ValueType, IrError> {
    cx.require(format.is_known(), || {
        format!("codes of {} bits in blocks of {} are unknown: bits are 4 or 8, blocks a power of 2 from 16 to 256", format.bits, format.group_size)
    })?;
    let [x, codes, scales, more @ ..] = cx.inputs else {
        return cx.fail(format!("takes 3 to 5 inputs, got {}", cx.inputs.len()));
    };
    let (Some(inner), Some(out)) = (
        x.shape.last().and_then(Dim::known),
        codes.shape.0.first().and_then(Dim::known),
    ) else {
        return cx.fail(format!(
            "the width of {x} and the rows of {codes} must be numbers"
        ));
    };
    let matrix =
        |dtype: DType, dims: &[usize]| ValueType::new(dtype, dims.iter().map(|&n| Dim::from(n)));
    let expect = |given: &ValueType, what: &str, wanted: &ValueType| {
        cx.require(given == wanted, || {
            format!("{what} {given} are not {wanted}")
        })
    };
    cx.require(x.dtype.is_float(), || format!("{x} is not a float tensor"))?;
    expect(
        codes,
        "codes",
        &matrix(DType::U8, &[out, format.groups(inner), format.code_bytes()]),
    )?;
    expect(
        scales,
        "scales",
        &matrix(x.dtype, &[out, format.groups(inner)]),
    )?;
    let zero_points = more.first().filter(|ty| ty.dtype == DType::U8);
    if let Some(zero_points) = zero_points {
        expect(
            zero_points,
            "zero points",
            &matrix(DType::U8, &[out, format.zero_point_bytes(inner)]),
        )?;
    }
    match &more[usize::from(zero_points.is_some())..] {
        [] => {}
        [bias] => expect(bias, "biases", &matrix(x.dtype, &[out]))?,
        _ => return cx.fail(format!("takes 3 to 5 inputs, got {}", cx.inputs.len())),
    }
    Ok(ValueType {
        dtype: x.dtype,
        shape: x.shape.with_last(out.into()),
    })
}

pub(super) fn gather_columns(cx: &Check<'_>) -> Result<ValueType, IrError> {
    let [x, columns] = cx.arity()?;
    cx.require(
        x.dtype.is_float() && x.shape.last().is_some_and(|d| d.known().is_some()),
        || format!("{x} is no float tensor of known width"),
    )?;
    match columns.shape.0.as_slice() {
        [m] if columns.dtype == DType::I64 => Ok(ValueType {
            dtype: x.dtype,
            shape: x.shape.with_last(m.clone()),
        }),
        _ => cx.fail(format!("columns {columns} are not i64[m]")),
    }
}
