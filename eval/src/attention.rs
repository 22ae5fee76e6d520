//! Causal attention over cached and new keys, as [`dlc_ir::Attention`] states it.

use candle_core::{D, Device, Tensor};
use dlc_ir::Attention;

use crate::error::OpError;

/// The score of a key that a query doesn't see. Finite, so that a query that sees nothing (padding) gives the mean of all values, not NaN;
/// everywhere else its exponential is 0 exactly. It takes the place of the dot product, so that no gradient flows into that.
const UNSEEN: f32 = -1e9;

/// The attended values, and the keys and values for the next run.
pub(crate) fn attention(op: &Attention, inputs: &[Tensor; 6]) -> Result<Vec<Tensor>, OpError> {
    let [q, k, v, mask, past_key, past_value] = inputs;
    let (batch, seq, width) = q.dims3()?;
    let (head_dim, group) = (width / op.heads, op.heads / op.kv_heads);
    let split = |x: &Tensor, heads: usize| x.reshape((batch, seq, heads, head_dim))?.transpose(1, 2)?.contiguous();
    let present = |past: &Tensor, new: &Tensor| Tensor::cat(&[past, &split(new, op.kv_heads)?], 2)?.contiguous();
    let (key, value) = (present(past_key, k)?, present(past_value, v)?);
    let total = key.dim(2)?;

    // The query heads that share a key head stand below each other, so that no key or value is repeated.
    let q = split(q, op.heads)?.reshape((batch, op.kv_heads, group * seq, head_dim))?;
    let scores = (q.matmul(&key.t()?)? * f64::from(op.scale))?.reshape((batch, op.heads, seq, total))?;
    let seen = Tensor::from_vec(seen(mask, seq, op.window)?, (batch, 1, seq, total), &Device::Cpu)?;
    let unseen = Tensor::full(UNSEEN, scores.shape(), &Device::Cpu)?;
    let scores = seen.broadcast_as(scores.shape())?.where_cond(&scores, &unseen)?;
    let shares = softmax(&scores)?.reshape((batch, op.kv_heads, group * seq, total))?;
    let output = shares.matmul(&value)?.reshape((batch, op.heads, seq, head_dim))?;
    Ok(vec![output.transpose(1, 2)?.reshape((batch, seq, width))?, key, value])
}

/// Softmax over the last axis.
fn softmax(x: &Tensor) -> candle_core::Result<Tensor> {
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

/// `[batch, seq, past+seq]`: 1 where query `i` sees key `j`, else 0.
fn seen(mask: &Tensor, seq: usize, window: Option<usize>) -> Result<Vec<u8>, OpError> {
    let (_, total) = mask.dims2()?;
    let past = total.checked_sub(seq).ok_or_else(|| OpError::Bug("the mask is shorter than the queries".into()))?;
    let mut seen = Vec::with_capacity(mask.dim(0)? * seq * total);
    for row in mask.to_vec2::<i64>()? {
        let counts = running_count(&row)?;
        for last in past..total {
            let near = |j: usize| window.is_none_or(|window| counts[last].saturating_sub(counts[j]) < window);
            seen.extend((0..total).map(|j| u8::from(row[j] == 1 && j <= last && near(j))));
        }
    }
    Ok(seen)
}

/// For each position, how many tokens stand up to and including it.
fn running_count(mask: &[i64]) -> Result<Vec<usize>, OpError> {
    let mut count = 0;
    let step = |&m: &i64| match m {
        0 | 1 => {
            count += m as usize;
            Ok(count)
        }
        other => Err(OpError::Data(format!("mask holds {other}, not 0 or 1"))),
    };
    mask.iter().map(step).collect()
}
