//! Types of what works on images, `[batch, channels, height, width]`, height and width being
//! numbers.

use super::Check;
use crate::error::IrError;
use crate::op::TimestepEmbedding;
use crate::types::{DType, Dim, ValueType};

/// Channels, height and width of an image.
fn image(cx: &Check<'_>, x: &ValueType) -> Result<[usize; 3], IrError> {
    let sides: Vec<usize> = x.shape.0.iter().skip(1).filter_map(Dim::known).collect();
    match sides[..] {
        [channels, height, width] if x.shape.rank() == 4 && x.dtype.is_float() => Ok([channels, height, width]),
        _ => cx.fail(format!("{x} is not [batch, channels, height, width] of floats, with numbers for all but the first")),
    }
}

pub(super) fn conv2d(
    cx: &Check<'_>,
    stride: usize,
    [before, after]: [usize; 2],
) -> Result<ValueType, IrError> {
    let (x, weight, bias) = match cx.inputs {
        [x, weight] => (x, weight, None),
        [x, weight, bias] => (x, weight, Some(bias)),
        other => return cx.fail(format!("takes 2 or 3 inputs, got {}", other.len())),
    };
    let [channels, height, width] = image(cx, x)?;
    cx.same_dtype(x, weight)?;
    let kernel: Vec<usize> = weight.shape.0.iter().filter_map(Dim::known).collect();
    let [out, inner, rows, columns] = kernel[..] else {
        return cx.fail(format!("weight {weight} is not [out, in, height, width]"));
    };
    cx.require(weight.shape.rank() == 4 && inner == channels, || {
        format!("weight {weight} doesn't fit input {x}")
    })?;
    let wanted = ValueType::new(x.dtype, [Dim::from(out)]);
    cx.require(bias.is_none_or(|bias| *bias == wanted), || {
        format!("the bias is not {wanted}")
    })?;
    let side = |length: usize, kernel: usize| {
        let padded = length.checked_add(before)?.checked_add(after)?;
        Some(
            padded
                .checked_sub(kernel)?
                .checked_div(stride)?
                .saturating_add(1),
        )
        .filter(|_| kernel > 0)
    };
    match (side(height, rows), side(width, columns)) {
        (Some(height), Some(width)) => Ok(ValueType::new(x.dtype, [x.shape.0[0].clone(), out.into(), height.into(), width.into()])),
        _ => cx.fail(format!("a kernel {weight} at every {stride} of {x}, padded by {before} and {after}, has no place")),
    }
}

pub(super) fn group_norm(cx: &Check<'_>, groups: usize) -> Result<ValueType, IrError> {
    let [x, scale, bias] = cx.arity()?;
    let channels = x
        .shape
        .0
        .get(1)
        .and_then(Dim::known)
        .filter(|_| x.shape.rank() >= 3 && x.dtype.is_float());
    let Some(channels) = channels else {
        return cx.fail(format!("{x} is not [batch, channels, ...] of floats"));
    };
    cx.require(groups > 0 && channels.is_multiple_of(groups), || {
        format!("{groups} groups don't divide the channels of {x}")
    })?;
    let wanted = ValueType::new(x.dtype, [Dim::from(channels)]);
    cx.require(*scale == wanted && *bias == wanted, || {
        format!("scale {scale} and bias {bias} are not {wanted}")
    })?;
    Ok(x.clone())
}

pub(super) fn upsample(cx: &Check<'_>, factor: usize) -> Result<ValueType, IrError> {
    let [x] = cx.arity()?;
    let [channels, height, width] = image(cx, x)?;
    match (height.checked_mul(factor), width.checked_mul(factor)) {
        (Some(height), Some(width)) if factor > 0 => Ok(ValueType::new(
            x.dtype,
            [
                x.shape.0[0].clone(),
                channels.into(),
                height.into(),
                width.into(),
            ],
        )),
        _ => cx.fail(format!("{x} can't be {factor} times as large")),
    }
}

pub(super) fn timestep_embedding(
    cx: &Check<'_>,
    embedding: &TimestepEmbedding,
) -> Result<ValueType, IrError> {
    let [timesteps] = cx.arity()?;
    cx.require(timesteps.dtype == DType::F32, || {
        format!("timesteps {timesteps} are not f32")
    })?;
    let TimestepEmbedding { dim, shift, .. } = *embedding;
    let fits = (2..=1 << 24).contains(&dim)
        && dim.is_multiple_of(2)
        && shift.is_finite()
        && shift < dim as f32 / 2.0;
    cx.require(fits, || {
        format!("there is no embedding {dim} wide with a shift of {shift}")
    })?;
    Ok(ValueType::new(
        DType::F32,
        timesteps.shape.0.iter().cloned().chain([dim.into()]),
    ))
}
