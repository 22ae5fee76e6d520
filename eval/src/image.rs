//! What works on images `[batch, channels, height, width]`, and the embedding of noise levels.

use candle_core::{D, Device, Tensor};
use dlc_ir::TimestepEmbedding;

use crate::error::OpError;
use crate::rows::normed;

/// See [`dlc_ir::Op::GroupNorm`].
pub(crate) fn group_norm(
    [x, scale, bias]: &[Tensor; 3],
    groups: usize,
    eps: f64,
) -> Result<Tensor, OpError> {
    let (batch, channels) = (x.dim(0)?, x.dim(1)?);
    let inside = x.elem_count() / (batch * groups).max(1);
    let normed = normed(&x.reshape((batch, groups, inside))?, eps)?.reshape(x.dims())?;
    let mut column = vec![1; x.rank() - 1];
    column[0] = channels;
    Ok(normed
        .broadcast_mul(&scale.reshape(column.as_slice())?)?
        .broadcast_add(&bias.reshape(column.as_slice())?)?)
}

/// The part of the padded image that the kernel sees: where it doesn't fit in once more, the last
/// rows and columns are left out.
pub(crate) fn seen(
    x: &Tensor,
    weight: &Tensor,
    stride: usize,
    [before, after]: [usize; 2],
) -> candle_core::Result<Tensor> {
    let mut seen = x.clone();
    for axis in [2, 3] {
        let (length, kernel) = (x.dim(axis)? + before + after, weight.dim(axis)?);
        seen = seen.pad_with_zeros(axis, before, after)?.narrow(
            axis,
            0,
            length - (length - kernel) % stride,
        )?;
    }
    seen.contiguous()
}

/// See [`dlc_ir::Op::Conv2d`].
pub(crate) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: [usize; 2],
) -> Result<Tensor, OpError> {
    let y = seen(x, weight, stride, padding)?.conv2d(weight, 0, stride, 1, 1)?;
    Ok(match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((bias.elem_count(), 1, 1))?)?,
        None => y,
    })
}

/// Every entry repeated along height and width.
pub(crate) fn upsample(x: &Tensor, factor: usize) -> candle_core::Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let x = x
        .reshape((batch, channels, height, 1, width, 1))?
        .broadcast_as((batch, channels, height, factor, width, factor))?;
    x.contiguous()?
        .reshape((batch, channels, height * factor, width * factor))
}

/// The first rows and columns of `x`, as many as `like` has.
pub(crate) fn cut_to(x: &Tensor, like: &Tensor) -> Result<Tensor, OpError> {
    let ((_, _, rows, columns), (_, _, height, width)) = (x.dims4()?, like.dims4()?);
    if rows < height || columns < width {
        return Err(OpError::Data(format!(
            "an image of {height} by {width} was halved to one that gives {rows} by {columns}: its sides aren't the multiples that the model wants"
        )));
    }
    Ok(x.narrow(2, 0, height)?.narrow(3, 0, width)?.contiguous()?)
}

/// See [`TimestepEmbedding`].
pub(crate) fn timestep_embedding(
    timesteps: &Tensor,
    embedding: &TimestepEmbedding,
) -> candle_core::Result<Tensor> {
    let frequencies = Tensor::from_vec(embedding.frequencies(), embedding.dim / 2, &Device::Cpu)?;
    let angles = timesteps
        .unsqueeze(D::Minus1)?
        .broadcast_mul(&frequencies)?;
    let waves = if embedding.flip_sin_to_cos {
        [angles.cos()?, angles.sin()?]
    } else {
        [angles.sin()?, angles.cos()?]
    };
    Tensor::cat(&waves, D::Minus1)
}
