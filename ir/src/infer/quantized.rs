//! Types of quantised products and of what takes columns of logits.

use super::Check;
use crate::dim::Dim;
use crate::error::IrError;
use crate::op::GroupFormat;
use crate::types::{DType, ValueType};

pub(super) fn linear(cx: &Check<'_>, format: GroupFormat) -> Result<ValueType, IrError> {
    let [x, codes, parts @ ..] = cx.inputs else {
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
    cx.require(x.dtype.is_float(), || format!("{x} is not a float tensor"))?;
    let has_zero_points = parts.get(1).is_some_and(|ty| ty.dtype == DType::U8);
    let taken = (2 + usize::from(has_zero_points)).min(cx.inputs.len() - 1);
    let (given, more) = cx.inputs[1..].split_at(taken);
    matrix(cx, format, given, x.dtype, [out, inner])?;
    match more {
        [] => {}
        [bias] => {
            let wanted = ValueType::new(x.dtype, [Dim::from(out)]);
            cx.require(*bias == wanted, || {
                format!("biases {bias} are not {wanted}")
            })?;
        }
        _ => return cx.fail(format!("takes 3 to 5 inputs, got {}", cx.inputs.len())),
    }
    Ok(ValueType {
        dtype: x.dtype,
        shape: x.shape.with_last(out.into()),
    })
}

pub(super) fn gather(cx: &Check<'_>, format: GroupFormat) -> Result<ValueType, IrError> {
    let Some(([codes, scales, zero_points @ ..], ids)) =
        cx.inputs.split_last().map(|(ids, parts)| (parts, ids))
    else {
        return cx.fail(format!("takes 3 or 4 inputs, got {}", cx.inputs.len()));
    };
    let (Some(rows), Some(groups)) = (
        codes.shape.0.first().and_then(Dim::known),
        codes.shape.0.get(1).and_then(Dim::known),
    ) else {
        return cx.fail(format!("the rows and blocks of {codes} must be numbers"));
    };
    let Some(width) = groups.checked_mul(format.group_size) else {
        return cx.fail(format!("{codes} has too many blocks"));
    };
    let given = [&[codes.clone(), scales.clone()], zero_points].concat();
    matrix(cx, format, &given, scales.dtype, [rows, width])?;
    cx.require(scales.dtype.is_float(), || {
        format!("scales {scales} are no floats")
    })?;
    cx.require(ids.dtype == DType::I64, || format!("ids {ids} are not i64"))?;
    let dims = ids.shape.0.iter().cloned().chain([Dim::from(width)]);
    Ok(ValueType::new(scales.dtype, dims))
}

/// Fails unless `parts` are codes, scales of type `dtype` and optionally zero points of a matrix of
/// these rows and columns.
pub(super) fn matrix(
    cx: &Check<'_>,
    format: GroupFormat,
    parts: &[ValueType],
    dtype: DType,
    [out, inner]: [usize; 2],
) -> Result<(), IrError> {
    cx.require(format.is_known(), || {
        format!("codes of {} bits in blocks of {} are unknown: bits are 4 or 8, blocks a power of 2 from 16 to 256", format.bits, format.group_size)
    })?;
    let groups = format.groups(inner);
    let wanted = [
        ("codes", DType::U8, vec![out, groups, format.code_bytes()]),
        ("scales", dtype, vec![out, groups]),
        (
            "zero points",
            DType::U8,
            vec![out, format.zero_point_bytes(inner)],
        ),
    ];
    cx.require((2..=3).contains(&parts.len()), || {
        format!(
            "takes codes, scales and zero points of a matrix, got {} inputs",
            parts.len()
        )
    })?;
    for (given, (what, dtype, dims)) in parts.iter().zip(wanted) {
        let wanted = ValueType::new(dtype, dims.into_iter().map(Dim::from));
        cx.require(*given == wanted, || {
            format!("{what} {given} are not {wanted}")
        })?;
    }
    Ok(())
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
