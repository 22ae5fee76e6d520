//! Types of what works on images, `[batch, channels, height, width]`, channels being a number.

use super::Check;
use crate::dim::{Dim, Rounding};
use crate::error::IrError;
use crate::op::TimestepEmbedding;
use crate::types::{DType, ValueType};

/// Channels, height and width of an image.
fn image<'x>(cx: &Check<'_>, x: &'x ValueType) -> Result<(usize, [&'x Dim; 2]), IrError> {
    match x.shape.0.as_slice() {
        [_, channels, height, width] if x.dtype.is_float() => match channels.known() {
            Some(channels) => Ok((channels, [height, width])),
            None => cx.fail(format!("the channels of {x} are no number")),
        },
        _ => cx.fail(format!(
            "{x} is not [batch, channels, height, width] of floats"
        )),
    }
}

/// How often a kernel finds a place along an axis; none if it never does, or there is no way to
/// write it.
fn places(length: &Dim, kernel: usize, stride: usize, padding: usize) -> Option<Dim> {
    if let Some(length) = length.known() {
        let steps = length.checked_add(padding)?.checked_sub(kernel)?;
        return Some(Dim::from(steps.checked_div(stride)?.saturating_add(1)));
    }
    // floor((length + added) / stride)
    let added = padding.checked_add(stride)?.checked_sub(kernel)?;
    if added == 0 {
        length.divided(stride, Rounding::Down)
    } else if added == stride.checked_sub(1)? {
        length.divided(stride, Rounding::Up)
    } else {
        None
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
    let (channels, [height, width]) = image(cx, x)?;
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
    let side = |length: &Dim, kernel: usize| {
        let padding = before.checked_add(after)?;
        places(length, kernel, stride, padding).filter(|_| kernel > 0)
    };
    match (side(height, rows), side(width, columns)) {
        (Some(height), Some(width)) => Ok(ValueType::new(x.dtype, [x.shape.0[0].clone(), out.into(), height, width])),
        _ => cx.fail(format!("a kernel {weight} at every {stride} of {x}, padded by {before} and {after}, has no place, or no number of places that can be written")),
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
    let (x, like) = match cx.inputs {
        [x] => (x, None),
        [x, like] => (x, Some(like)),
        other => return cx.fail(format!("takes 1 or 2 inputs, got {}", other.len())),
    };
    let (channels, sides) = image(cx, x)?;
    let sides = match like {
        None => sides.map(|side| side.times(&factor.into())),
        Some(like) => {
            let (_, wanted) = image(cx, like)?;
            let reaches = sides.iter().zip(wanted).all(|(a, b)| reaches(a, b, factor));
            cx.require(reaches, || {
                format!("{x}, {factor} times as large, doesn't end with {like}")
            })?;
            wanted.map(Dim::clone)
        }
    };
    let fits = |side: &Dim| side.known().is_none_or(|n| n.checked_mul(factor).is_some());
    cx.require(factor > 0 && x.shape.0[2..].iter().all(fits), || {
        format!("{x} can't be {factor} times as large")
    })?;
    let [height, width] = sides;
    let dims = [x.shape.0[0].clone(), channels.into(), height, width];
    Ok(ValueType::new(x.dtype, dims))
}

/// Whether `factor` times `side` reaches `wanted`, by less than `factor` entries too many. A
/// symbol's part that was rounded down does if the symbol stands for a multiple; else running the
/// graph fails.
fn reaches(side: &Dim, wanted: &Dim, factor: usize) -> bool {
    let part = |rounding| wanted.divided(factor, rounding).as_ref() == Some(side);
    part(Rounding::Up) || wanted.known().is_none() && part(Rounding::Down)
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
