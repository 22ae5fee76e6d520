//! Attention as [`dlc_ir::Attention`] states it, causal over cached and new keys or in both
//! directions, and what relative positions add to the scores.

use candle_core::{Device, Tensor};
use dlc_ir::{Attention, BucketedBias, DisentangledBias};

use crate::error::OpError;
use crate::rows::softmax;

/// The score of a key that a query doesn't see. Finite, so that a query that sees nothing (padding)
/// gives the mean of all values, not NaN; everywhere else its exponential is 0 exactly. It takes
/// the place of the dot product, so that no gradient flows into that.
const UNSEEN: f32 = -1e9;

/// The attended values, and the keys and values for the next run.
pub(crate) fn attend_causally(
    op: &Attention,
    inputs: &[Tensor; 6],
) -> Result<Vec<Tensor>, OpError> {
    let [q, k, v, mask, past_key, past_value] = inputs;
    let present = |past: &Tensor, new: &Tensor| {
        Tensor::cat(&[past, &split(new, op.kv_heads)?], 2)?.contiguous()
    };
    let (key, value) = (present(past_key, k)?, present(past_value, v)?);
    let output = attend_back(op, q, [&key, &value], mask)?;
    Ok(vec![output, key, value])
}

/// The attended values, of keys and values of this run alone.
pub(crate) fn attend_without_cache(
    op: &Attention,
    [q, k, v, mask]: &[Tensor; 4],
) -> Result<Tensor, OpError> {
    let (key, value) = (split(k, op.kv_heads)?, split(v, op.kv_heads)?);
    attend_back(op, q, [&key, &value], mask)
}

/// The attended values, where later tokens are hidden.
fn attend_back(
    op: &Attention,
    q: &Tensor,
    [key, value]: [&Tensor; 2],
    mask: &Tensor,
) -> Result<Tensor, OpError> {
    let (batch, seq, _) = q.dims3()?;
    let seen = Tensor::from_vec(
        seen(mask, seq, op.window)?,
        (batch, 1, seq, key.dim(2)?),
        &Device::Cpu,
    )?;
    attend(op, q, [key, value], Some(&seen), None)
}

/// The attended values.
pub(crate) fn attend_both_ways(
    op: &Attention,
    [q, k, v]: [&Tensor; 3],
    mask: Option<&Tensor>,
    bias: Option<&Tensor>,
) -> Result<Tensor, OpError> {
    let seen = seen_both_ways(op, [q, k], mask)?;
    attend(
        op,
        q,
        [&split(k, op.kv_heads)?, &split(v, op.kv_heads)?],
        seen.as_ref(),
        bias,
    )
}

/// 1 where a query sees a key by `mask` and window, else 0, as [`attend`] takes it; nothing without
/// both.
fn seen_both_ways(
    op: &Attention,
    [q, k]: [&Tensor; 2],
    mask: Option<&Tensor>,
) -> Result<Option<Tensor>, OpError> {
    let (batch, keys, _) = k.dims3()?;
    let rows = mask
        .map(Tensor::to_vec2::<i64>)
        .transpose()?
        .unwrap_or_else(|| vec![vec![1; keys]; batch]);
    for row in &rows {
        running_count(row)?;
    }
    let queries = match op.window {
        Some(_) => q.dim(1)?,
        None if mask.is_some() => 1,
        None => return Ok(None),
    };
    let near = |i: usize, j: usize| op.window.is_none_or(|window| i.abs_diff(j) < window);
    let mut seen = Vec::with_capacity(batch * queries * keys);
    for row in &rows {
        for i in 0..queries {
            seen.extend((0..keys).map(|j| u8::from(row[j] == 1 && near(i, j))));
        }
    }
    let shape = (batch, 1, queries, keys);
    Ok(Some(Tensor::from_vec(seen, shape, &Device::Cpu)?))
}

/// `[batch, seq, heads * head_dim]` as `[batch, heads, seq, head_dim]`.
fn split(x: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let (batch, seq, width) = x.dims3()?;
    x.reshape((batch, seq, heads, width / heads))?
        .transpose(1, 2)?
        .contiguous()
}

/// `q [batch, seq, heads * head_dim]` over keys and values `[batch, kv_heads, total, head_dim]`, of
/// which each query sees those where `seen`, which broadcasts to `[batch, heads, seq, total]`, is
/// 1; all without it.
fn attend(
    op: &Attention,
    q: &Tensor,
    [key, value]: [&Tensor; 2],
    seen: Option<&Tensor>,
    bias: Option<&Tensor>,
) -> Result<Tensor, OpError> {
    let (batch, seq, width) = q.dims3()?;
    let (head_dim, group, total) = (width / op.heads, op.heads / op.kv_heads, key.dim(2)?);
    // The query heads that share a key head stand below each other, so that no key or value is
    // repeated.
    let q = split(q, op.heads)?.reshape((batch, op.kv_heads, group * seq, head_dim))?;
    let mut scores =
        (q.matmul(&key.t()?)? * f64::from(op.scale))?.reshape((batch, op.heads, seq, total))?;
    if let Some(cap) = op.softcap.map(f64::from) {
        scores = ((scores / cap)?.tanh()? * cap)?;
    }
    if let Some(bias) = bias {
        scores = scores.broadcast_add(bias)?;
    }
    if let Some(seen) = seen {
        let unseen = Tensor::full(UNSEEN, scores.shape(), &Device::Cpu)?;
        scores = seen
            .broadcast_as(scores.shape())?
            .where_cond(&scores, &unseen)?;
    }
    let shares = softmax(&scores)?.reshape((batch, op.kv_heads, group * seq, total))?;
    let output = shares
        .matmul(value)?
        .reshape((batch, op.heads, seq, head_dim))?;
    Ok(output.transpose(1, 2)?.reshape((batch, seq, width))?)
}

/// The dot products of every query with every key, not scaled, seen or not.
pub(crate) fn products(
    op: &Attention,
    inputs: &[Tensor],
    outputs: &[Tensor],
) -> Result<Tensor, OpError> {
    let [q, k, ..] = inputs else {
        return Err(OpError::Bug(format!("{} operands", inputs.len())));
    };
    let keys = match outputs {
        [_, present, _] => present.clone(),
        _ => split(k, op.kv_heads)?,
    };
    let (batch, seq, width) = q.dims3()?;
    let q = split(q, op.heads)?.reshape((
        batch,
        op.kv_heads,
        op.heads / op.kv_heads * seq,
        width / op.heads,
    ))?;
    Ok(q.matmul(&keys.t()?)?)
}

/// See [`DisentangledBias`].
pub(crate) fn disentangled_bias(
    op: &DisentangledBias,
    inputs: &[Tensor],
) -> Result<Tensor, OpError> {
    let [q, k, tables @ ..] = inputs else {
        return Err(OpError::Bug(format!("{} operands", inputs.len())));
    };
    let mut tables = tables.iter();
    let (batch, seq, _) = q.dims3()?;
    let rows = (0..seq)
        .flat_map(|i| (0..seq).map(move |j| op.row(i as i64 - j as i64) as u32))
        .collect::<Vec<_>>();
    let rows = Tensor::from_vec(rows, (1, 1, seq, seq), &Device::Cpu)?
        .broadcast_as((batch, op.heads, seq, seq))?
        .contiguous()?;
    let mut look =
        |content: &Tensor, wanted: bool, rows: &Tensor| -> Result<Option<Tensor>, OpError> {
            let Some(table) = wanted.then(|| tables.next()).flatten() else {
                return Ok(None);
            };
            let content = split(content, op.heads)?;
            let table = split(&table.unsqueeze(0)?, op.heads)?.broadcast_as((
                batch,
                op.heads,
                table.dim(0)?,
                content.dim(3)?,
            ))?;
            let scores = content.matmul(&table.t()?.contiguous()?)?;
            Ok(Some(scores.gather(rows, 3)?))
        };
    let c2p = look(q, op.c2p, &rows)?;
    // Row j of keys, column i of queries: the distance is still i - j.
    let p2c = look(k, op.p2c, &rows.t()?.contiguous()?)?
        .map(|x| x.t()?.contiguous())
        .transpose()?;
    let sum = match (c2p, p2c) {
        (Some(a), Some(b)) => (a + b)?,
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => return Err(OpError::Bug("neither content nor positions look".into())),
    };
    Ok((sum * f64::from(op.scale))?)
}

/// See [`BucketedBias`].
pub(crate) fn bucketed_bias(
    op: &BucketedBias,
    [x, table]: &[Tensor; 2],
) -> Result<Tensor, OpError> {
    let (seq, heads) = (x.dim(1)?, table.dim(1)?);
    let rows = (0..seq as i64)
        .flat_map(|i| (0..seq as i64).map(move |j| op.bucket(i - j) as u32))
        .collect::<Vec<_>>();
    let rows = Tensor::from_vec(rows, seq * seq, &Device::Cpu)?;
    let numbers = table.index_select(&rows, 0)?;
    Ok(numbers.t()?.reshape((1, heads, seq, seq))?)
}

/// `[batch, seq, past+seq]`: 1 where query `i` sees key `j`, else 0.
fn seen(mask: &Tensor, seq: usize, window: Option<usize>) -> Result<Vec<u8>, OpError> {
    let (_, total) = mask.dims2()?;
    let past = total
        .checked_sub(seq)
        .ok_or_else(|| OpError::Bug("the mask is shorter than the queries".into()))?;
    let mut seen = Vec::with_capacity(mask.dim(0)? * seq * total);
    for row in mask.to_vec2::<i64>()? {
        let counts = running_count(&row)?;
        for last in past..total {
            let near = |j: usize| {
                window.is_none_or(|window| counts[last].saturating_sub(counts[j]) < window)
            };
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
