//! Forward: one function per op, in primitive tensor operations, so that candle can differentiate
//! every one of them.

use candle_core::{D, Device, Tensor};
use dlc_ir::{Op, Rope};

use crate::attention::{
    attend_both_ways, attend_causally, attend_without_cache, bucketed_bias, disentangled_bias,
};
use crate::error::OpError;
use crate::experts;
use crate::image::{conv2d, cut_to, group_norm, timestep_embedding, upsample};
use crate::quantized::{gather_columns, quantized_gather, quantized_linear};
use crate::rows::{linear, normed, row_numbers};
use crate::symbols::Symbols;

/// The outputs of `op`. Operands have the types that the graph says; floats are `f32`.
pub(crate) fn apply(op: &Op, inputs: &[Tensor], symbols: &Symbols) -> Result<Vec<Tensor>, OpError> {
    let output = match op {
        Op::Gather => {
            let [table, ids] = operands(inputs)?;
            gather(table, ids)?
        }
        Op::Linear => {
            let ([x, weight], bias) = match inputs {
                [x, weight] => ([x, weight], None),
                [x, weight, bias] => ([x, weight], Some(bias)),
                _ => return Err(wrong_arity(inputs)),
            };
            linear(x, weight, bias)?
        }
        Op::QuantizedLinear(format) => quantized_linear(*format, inputs)?,
        Op::QuantizedGather(format) => quantized_gather(*format, inputs)?,
        Op::Experts(op) => experts::mixture(*op, inputs)?,
        Op::GatherColumns => gather_columns(operands(inputs)?)?,
        Op::RmsNorm { eps } => {
            let [x, scale] = operands(inputs)?;
            rms_norm(x, scale, f64::from(*eps))?
        }
        Op::Rope(rope) => {
            let [x, positions] = operands(inputs)?;
            rotate(x, positions, rope)?
        }
        Op::LayerNorm { eps } => match inputs {
            [x] => normed(x, f64::from(*eps))?,
            [x, scale] => normed(x, f64::from(*eps))?.broadcast_mul(scale)?,
            [x, scale, bias] => normed(x, f64::from(*eps))?
                .broadcast_mul(scale)?
                .broadcast_add(bias)?,
            _ => return Err(wrong_arity(inputs)),
        },
        Op::GroupNorm { groups, eps } => group_norm(operands(inputs)?, *groups, f64::from(*eps))?,
        Op::Conv2d { stride, padding } => match inputs {
            [x, weight] => conv2d(x, weight, None, *stride, *padding)?,
            [x, weight, bias] => conv2d(x, weight, Some(bias), *stride, *padding)?,
            _ => return Err(wrong_arity(inputs)),
        },
        Op::Upsample { factor } => match inputs {
            [x] => upsample(x, *factor)?,
            [x, like] => cut_to(&upsample(x, *factor)?, like)?,
            _ => return Err(wrong_arity(inputs)),
        },
        Op::TimestepEmbedding(embedding) => {
            unary(inputs, |timesteps| timestep_embedding(timesteps, embedding))?
        }
        Op::Modulate => {
            let [x, scale, shift] = operands(inputs)?;
            x.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(shift)?
        }
        Op::Positions { padding } => {
            let [ids] = operands(inputs)?;
            positions(ids, *padding)?
        }
        Op::LastToken { padding } => last_token(operands(inputs)?, *padding)?,
        Op::FirstToken { id } => first_token(operands(inputs)?, *id)?,
        Op::Attention(a) if a.causal && inputs.len() == 4 => {
            attend_without_cache(a, operands(inputs)?)?
        }
        Op::Attention(a) if a.causal => return attend_causally(a, operands(inputs)?),
        Op::Attention(a) => match inputs {
            [q, k, v, more @ ..] if more.len() <= 2 => {
                attend_both_ways(a, [q, k, v], more.first(), more.get(1))?
            }
            _ => return Err(wrong_arity(inputs)),
        },
        Op::DisentangledBias(bias) => disentangled_bias(bias, inputs)?,
        Op::BucketedBias(bias) => bucketed_bias(bias, operands(inputs)?)?,
        Op::Silu => unary(inputs, Tensor::silu)?,
        Op::Gelu { tanh: false } => unary(inputs, Tensor::gelu_erf)?,
        Op::Gelu { tanh: true } => unary(inputs, Tensor::gelu)?,
        Op::Tanh => unary(inputs, Tensor::tanh)?,
        Op::Relu => unary(inputs, Tensor::relu)?,
        Op::Scale { factor } => unary(inputs, |x| x * f64::from(*factor))?,
        Op::Clip { limit } => unary(inputs, |x| x.clamp(-limit, *limit))?,
        Op::Mul => {
            let [a, b] = operands(inputs)?;
            a.broadcast_mul(b)?
        }
        Op::Add => {
            let [a, b] = operands(inputs)?;
            a.broadcast_add(b)?
        }
        Op::Concat { axis } => Tensor::cat(inputs, *axis)?,
        Op::Transpose { axes } => unary(inputs, |x| x.permute(axes.as_slice())?.contiguous())?,
        Op::Slice { axis, start, len } => {
            unary(inputs, |x| x.narrow(*axis, *start, *len)?.contiguous())?
        }
        Op::Reshape { shape } => {
            let [x] = operands(inputs)?;
            x.reshape(symbols.shape(shape).map_err(OpError::Data)?)?
        }
        Op::Cast { .. } => unary(inputs, |x| Ok(x.clone()))?,
    };
    Ok(vec![output])
}

pub(crate) fn operands<const N: usize>(inputs: &[Tensor]) -> Result<&[Tensor; N], OpError> {
    inputs.try_into().map_err(|_| wrong_arity(inputs))
}

fn wrong_arity(inputs: &[Tensor]) -> OpError {
    OpError::Bug(format!("{} operands", inputs.len()))
}

fn unary(
    inputs: &[Tensor],
    f: impl FnOnce(&Tensor) -> candle_core::Result<Tensor>,
) -> Result<Tensor, OpError> {
    let [x] = operands(inputs)?;
    Ok(f(x)?)
}

fn gather(table: &Tensor, ids: &Tensor) -> Result<Tensor, OpError> {
    let (rows, width) = table.dims2()?;
    row_numbers(ids, rows)?;
    let shape = [ids.dims(), &[width]].concat();
    Ok(table.index_select(&ids.flatten_all()?, 0)?.reshape(shape)?)
}

fn rms_norm(x: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor, OpError> {
    let root = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    Ok(x.broadcast_div(&root)?.broadcast_mul(scale)?)
}

fn positions(ids: &Tensor, padding: Option<u32>) -> Result<Tensor, OpError> {
    let mut rows = ids.to_vec2::<i64>()?;
    for row in &mut rows {
        let mut next = padding.map_or(0, i64::from);
        for id in row {
            *id = match padding.map(i64::from) {
                Some(padding) if *id == padding => padding,
                Some(_) => {
                    next += 1;
                    next
                }
                None => {
                    next += 1;
                    next - 1
                }
            };
        }
    }
    Ok(Tensor::from_vec(rows.concat(), ids.shape(), &Device::Cpu)?)
}

/// The row of each text's last token that isn't padding.
fn last_token([x, ids]: &[Tensor; 2], padding: u32) -> Result<Tensor, OpError> {
    let padding = i64::from(padding);
    one_token(x, ids, |row| row.iter().rposition(|id| *id != padding))
}

/// The row of each text's first token with an id, or with the largest that the text has.
fn first_token([x, ids]: &[Tensor; 2], id: Option<u32>) -> Result<Tensor, OpError> {
    one_token(x, ids, |row| {
        let wanted = id.map(i64::from).or(row.iter().copied().max());
        row.iter().position(|id| Some(*id) == wanted)
    })
}

/// The row of `x` at the place that `find` has for each text's ids, the first one where it has none.
fn one_token(
    x: &Tensor,
    ids: &Tensor,
    find: impl Fn(&[i64]) -> Option<usize>,
) -> Result<Tensor, OpError> {
    let ids = ids.to_vec2::<i64>()?;
    let rows = ids.iter().enumerate().map(|(text, row)| {
        let at = find(row).unwrap_or(0);
        x.narrow(0, text, 1)?.narrow(1, at, 1)?.squeeze(1)
    });
    let rows = rows.collect::<candle_core::Result<Vec<Tensor>>>()?;
    Ok(Tensor::cat(&rows, 0)?)
}

/// Rotates the pair `(i, i + half)` of each head by `position * frequency[i]`, the angle computed
/// in single precision; entries from `2 half` on stay as they are.
fn rotate(x: &Tensor, positions: &Tensor, rope: &Rope) -> Result<Tensor, OpError> {
    let (batch, seq, width) = x.dims3()?;
    let head_dim = width / rope.heads;
    let rotated = rope.rotated(head_dim);
    let half = rotated / 2;
    let positions = positions.flatten_all()?.to_vec1::<i64>()?;
    if let Some(negative) = positions.iter().find(|p| **p < 0) {
        return Err(OpError::Data(format!("position {negative} is negative")));
    }
    let last = positions
        .iter()
        .max()
        .and_then(|p| usize::try_from(*p).ok())
        .unwrap_or(0);
    let frequencies = rope.frequencies_at(head_dim, last.saturating_add(1));
    let angles: Vec<f32> = positions
        .iter()
        .flat_map(|p| frequencies.iter().map(move |f| *p as f32 * f))
        .collect();
    let factor = rope.attention_factor();
    let table = |f: fn(f32) -> f32| {
        Tensor::from_iter(angles.iter().map(|a| f(*a) * factor), &Device::Cpu)?
            .reshape((batch, seq, 1, half))
    };
    let (cos, sin) = (table(f32::cos)?, table(f32::sin)?);
    let x = x.reshape((batch, seq, rope.heads, head_dim))?;
    let (a, b) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
    let rotated_a = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let rotated_b = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    let mut parts = vec![rotated_a, rotated_b];
    if rotated < head_dim {
        parts.push(x.narrow(3, rotated, head_dim - rotated)?);
    }
    Ok(Tensor::cat(&parts, 3)?.reshape((batch, seq, width))?)
}
