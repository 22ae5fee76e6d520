//! Mixtures of experts as [`dlc_ir::Experts`] states them.

use candle_core::{D, Device, Tensor};
use dlc_ir::Experts;

use crate::error::OpError;
use crate::quantized::dequantized;
use crate::rows::{as_rows, linear, softmax};

/// The sum of what each token's experts make, of which each computes its tokens alone.
pub(crate) fn mixture(op: Experts, inputs: &[Tensor]) -> Result<Tensor, OpError> {
    let (x, logits, matrices) = operands(inputs)?;
    let rows = as_rows(x)?;
    let (shares, tokens) = shares(op, &as_rows(logits)?)?;
    let mut sum = rows.zeros_like()?;
    for (e, tokens) in tokens.into_iter().enumerate() {
        if tokens.is_empty() {
            continue;
        }
        let [gate, up, down] = expert(op, matrices, e, rows.dim(1)?)?;
        let count = tokens.len();
        let tokens = Tensor::from_vec(tokens, count, &Device::Cpu)?;
        let seen = rows.index_select(&tokens, 0)?;
        let gated = (linear(&seen, &gate, None)?.silu()? * linear(&seen, &up, None)?)?;
        let share = shares.narrow(1, e, 1)?.contiguous()?;
        let share = share.index_select(&tokens, 0)?;
        let made = linear(&gated, &down, None)?.broadcast_mul(&share)?;
        sum = sum.index_add(&tokens, &made, 0)?;
    }
    Ok(sum.reshape(x.dims())?)
}

/// What every expert makes of every token before its last matrix: gates, the other factor, and
/// their product.
pub(crate) fn inside(op: Experts, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let (x, logits, matrices) = operands(inputs)?;
    let rows = as_rows(x)?;
    let mut values = Vec::new();
    for e in 0..logits.dim(D::Minus1)? {
        let [gate, up, _] = expert(op, matrices, e, rows.dim(1)?)?;
        let (gate, up) = (linear(&rows, &gate, None)?, linear(&rows, &up, None)?);
        let gated = (gate.silu()? * &up)?;
        values.extend([gate, up, gated]);
    }
    Ok(values)
}

fn operands(inputs: &[Tensor]) -> Result<(&Tensor, &Tensor, &[Tensor]), OpError> {
    match inputs {
        [x, logits, matrices @ ..] => Ok((x, logits, matrices)),
        _ => Err(OpError::Bug(format!("{} operands", inputs.len()))),
    }
}

/// Gate, up and down of expert `e`, which takes rows `width` wide.
fn expert(
    op: Experts,
    matrices: &[Tensor],
    e: usize,
    width: usize,
) -> Result<[Tensor; Experts::MATRICES], OpError> {
    let parts = op.parts(matrices.get(2).map_or(0, Tensor::rank));
    let matrix = |at: usize| {
        let first = (e * Experts::MATRICES + at) * parts;
        let given = matrices.get(first..first + parts);
        given.ok_or_else(|| OpError::Bug(format!("{} operands of experts", matrices.len())))
    };
    let matrices = [matrix(0)?, matrix(1)?, matrix(2)?];
    let Some(format) = op.format else {
        return Ok(matrices.map(|parts| parts[0].clone()));
    };
    let inner = matrices[0][0].dim(0)?;
    let whole = |at: usize, columns: usize| {
        let parts = matrices[at];
        dequantized(format, columns, [&parts[0], &parts[1]], parts.get(2))
    };
    Ok([whole(0, width)?, whole(1, width)?, whole(2, inner)?])
}

/// Each expert's share of each token, `[tokens, experts]`, and the tokens that go through each
/// expert.
fn shares(op: Experts, logits: &Tensor) -> Result<(Tensor, Vec<Vec<u32>>), OpError> {
    let (count, experts) = logits.dims2()?;
    let shares = softmax(logits)?;
    let mut tokens = vec![Vec::new(); experts];
    let mut kept = vec![0f32; count * experts];
    for (token, row) in shares.to_vec2::<f32>()?.iter().enumerate() {
        let mut order: Vec<usize> = (0..experts).collect();
        // Stable: of equal shares the first expert's is taken.
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        for &e in order.iter().take(op.top) {
            tokens[e].push(token as u32);
            kept[token * experts + e] = 1.0;
        }
    }
    if !op.normalized {
        return Ok((shares, tokens));
    }
    let kept = (Tensor::from_vec(kept, (count, experts), &Device::Cpu)? * shares)?;
    let shares = kept.broadcast_div(&kept.sum_keepdim(D::Minus1)?)?;
    Ok((shares, tokens))
}
