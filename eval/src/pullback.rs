//! Backward: gradients through one node.
//!
//! candle differentiates each node by itself, from its inputs, so nothing but the values of a
//! segment is kept for the way back. Products with weights have closed forms here: candle always
//! computes both gradients of a product, and most often one isn't asked for.

use candle_core::{Device, Tensor, Var};
use dlc_ir::Op;

use crate::error::OpError;
use crate::experts;
use crate::image::seen;
use crate::ops::{apply, operands};
use crate::rows::{as_rows, row_numbers};
use crate::symbols::Symbols;

/// Gradients with respect to the inputs for which `needed` holds, from those with respect to the
/// outputs; an absent one is zero.
pub(crate) fn pullback(
    op: &Op,
    inputs: &[Tensor],
    upstream: &[Option<Tensor>],
    needed: &[bool],
    symbols: &Symbols,
) -> Result<Vec<Option<Tensor>>, OpError> {
    match (op, upstream) {
        (Op::Linear, [Some(gradient)]) => linear(inputs, gradient, needed),
        (Op::Conv2d { stride, padding }, [Some(gradient)]) => {
            conv2d(inputs, gradient, needed, *stride, *padding)
        }
        (Op::Gather, [Some(gradient)]) => {
            Ok(vec![Some(gather(operands(inputs)?, gradient)?), None])
        }
        (Op::Experts(mixture), [Some(gradient)]) if mixture.format.is_none() => {
            experts::pullback(*mixture, inputs, gradient, needed)
        }
        _ => by_candle(op, inputs, upstream, needed, symbols),
    }
}

fn linear(
    inputs: &[Tensor],
    gradient: &Tensor,
    needed: &[bool],
) -> Result<Vec<Option<Tensor>>, OpError> {
    let [x, weight, ..] = inputs else {
        return Err(OpError::Bug(format!("{} operands", inputs.len())));
    };
    let rows = as_rows(gradient)?.contiguous()?;
    let mut downstream = Vec::new();
    for at in 0..inputs.len() {
        downstream.push(match (needed.get(at), at) {
            (Some(true), 0) => Some(rows.matmul(weight)?.reshape(x.dims())?),
            (Some(true), 1) => Some(rows.t()?.matmul(&as_rows(x)?)?),
            (Some(true), _) => Some(rows.sum(0)?),
            _ => None,
        });
    }
    Ok(downstream)
}

fn conv2d(
    inputs: &[Tensor],
    gradient: &Tensor,
    needed: &[bool],
    stride: usize,
    padding: [usize; 2],
) -> Result<Vec<Option<Tensor>>, OpError> {
    let [x, weight, ..] = inputs else {
        return Err(OpError::Bug(format!("{} operands", inputs.len())));
    };
    let mut downstream = Vec::new();
    for at in 0..inputs.len() {
        downstream.push(match (needed.get(at), at) {
            (Some(true), 0) => Some(unpadded(
                &scattered(gradient, weight, stride)?,
                x,
                padding[0],
            )?),
            (Some(true), 1) => {
                let (seen, gradient) = (
                    seen(x, weight, stride, padding)?,
                    gradient.transpose(0, 1)?.contiguous()?,
                );
                Some(
                    seen.transpose(0, 1)?
                        .contiguous()?
                        .conv2d(&gradient, 0, 1, stride, 1)?
                        .transpose(0, 1)?
                        .contiguous()?,
                )
            }
            (Some(true), _) => Some(gradient.sum((0, 2, 3))?),
            _ => None,
        });
    }
    Ok(downstream)
}

/// The gradient of what a kernel saw: a convolution with the kernel turned around, of the gradient
/// with its entries set apart. (candle's own transposed convolution takes five times as long.)
fn scattered(gradient: &Tensor, weight: &Tensor, stride: usize) -> candle_core::Result<Tensor> {
    let (_, _, rows, columns) = weight.dims4()?;
    let (batch, channels, height, width) = gradient.dims4()?;
    let apart = gradient
        .reshape((batch, channels, height, 1, width, 1))?
        .pad_with_zeros(3, 0, stride - 1)?
        .pad_with_zeros(5, 0, stride - 1)?;
    let apart = apart.reshape((batch, channels, height * stride, width * stride))?;
    let apart =
        apart
            .narrow(2, 0, (height - 1) * stride + 1)?
            .narrow(3, 0, (width - 1) * stride + 1)?;
    let apart = apart
        .pad_with_zeros(2, rows - 1, rows - 1)?
        .pad_with_zeros(3, columns - 1, columns - 1)?
        .contiguous()?;
    let turned = weight.flip(&[2, 3])?.transpose(0, 1)?.contiguous()?;
    apart.conv2d(&turned, 0, 1, 1, 1)
}

/// The gradient of an image from that of the part of the padded image that a kernel saw; what it
/// didn't see has none.
fn unpadded(gradient: &Tensor, x: &Tensor, before: usize) -> candle_core::Result<Tensor> {
    let mut gradient = gradient.clone();
    for axis in [2, 3] {
        let length = x.dim(axis)?;
        let short = (before + length).saturating_sub(gradient.dim(axis)?);
        gradient = gradient
            .pad_with_zeros(axis, 0, short)?
            .narrow(axis, before, length)?;
    }
    gradient.contiguous()
}

/// Adds each row of the gradient to the row of the table that it came from.
fn gather([table, ids]: &[Tensor; 2], gradient: &Tensor) -> Result<Tensor, OpError> {
    let (n, width) = table.dims2()?;
    let mut sum = vec![0f32; n * width];
    let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
    if width > 0 {
        for (row, part) in row_numbers(ids, n)?
            .into_iter()
            .zip(gradient.chunks_exact(width))
        {
            sum[row * width..][..width]
                .iter_mut()
                .zip(part)
                .for_each(|(s, g)| *s += g);
        }
    }
    Ok(Tensor::from_vec(sum, (n, width), &Device::Cpu)?)
}

/// Runs the op again, recorded, and lets candle differentiate the sum of outputs times gradients.
fn by_candle(
    op: &Op,
    inputs: &[Tensor],
    upstream: &[Option<Tensor>],
    needed: &[bool],
    symbols: &Symbols,
) -> Result<Vec<Option<Tensor>>, OpError> {
    let mut vars = Vec::new();
    for (input, needed) in inputs.iter().zip(needed) {
        vars.push(if *needed {
            Some(Var::from_tensor(input)?)
        } else {
            None
        });
    }
    let recorded: Vec<Tensor> = inputs
        .iter()
        .zip(&vars)
        .map(|(input, var)| var.as_ref().map_or(input, Var::as_tensor).clone())
        .collect();
    let mut sum: Option<Tensor> = None;
    for (output, gradient) in apply(op, &recorded, symbols)?.iter().zip(upstream) {
        if let Some(gradient) = gradient {
            let part = (output * gradient)?.sum_all()?;
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
    }
    let Some(sum) = sum else {
        return Ok(vec![None; inputs.len()]);
    };
    let mut gradients = sum.backward()?;
    Ok(vars
        .iter()
        .map(|var| {
            var.as_ref()
                .and_then(|v| gradients.remove(v.as_tensor()))
                .map(|g| g.detach())
        })
        .collect())
}
