//! Mixtures of experts as [`dlc_ir::Experts`] states them.

use candle_core::{D, DType, Device, Tensor};
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

/// Gradients with respect to the inputs for which `needed` holds, from that with respect to the
/// output. No matrix is copied, as candle would copy all.
pub(crate) fn pullback(
    op: Experts,
    inputs: &[Tensor],
    gradient: &Tensor,
    needed: &[bool],
) -> Result<Vec<Option<Tensor>>, OpError> {
    let (x, logits, matrices) = operands(inputs)?;
    let (rows, gradient) = (as_rows(x)?, as_rows(gradient)?.contiguous()?);
    let (shares, tokens) = shares(op, &as_rows(logits)?)?;
    let none = Tensor::zeros((rows.dim(0)?, 1), DType::F32, &Device::Cpu)?;
    let (mut of_x, mut of_shares) = (rows.zeros_like()?, Vec::new());
    let mut of_matrices = Vec::new();
    for (e, tokens) in tokens.into_iter().enumerate() {
        let count = tokens.len();
        if count == 0 {
            of_shares.push(none.clone());
            of_matrices.extend([None, None, None]);
            continue;
        }
        let tokens = Tensor::from_vec(tokens, count, &Device::Cpu)?;
        let share = shares.narrow(1, e, 1)?.contiguous()?;
        let first = Experts::LEADING + e * Experts::MATRICES;
        let back = through_expert(
            &expert(op, matrices, e, rows.dim(1)?)?,
            &rows.index_select(&tokens, 0)?,
            &share.index_select(&tokens, 0)?,
            &gradient.index_select(&tokens, 0)?,
            needed.get(first..).unwrap_or_default(),
        )?;
        of_x = of_x.index_add(&tokens, &back.seen, 0)?;
        of_shares.push(none.index_add(&tokens, &back.share, 0)?);
        of_matrices.extend(back.matrices);
    }
    // Shares are a softmax, over all experts or over those of the token.
    let of_shares = Tensor::cat(&of_shares, 1)?;
    let mean = (&shares * &of_shares)?.sum_keepdim(D::Minus1)?;
    let of_logits = (shares * of_shares.broadcast_sub(&mean)?)?;
    let of_values = [of_x.reshape(x.dims())?, of_logits.reshape(logits.dims())?];
    let of_values = of_values.map(Some).into_iter();
    let downstream = of_values.chain(of_matrices).zip(needed);
    Ok(downstream
        .map(|(gradient, needed)| gradient.filter(|_| *needed))
        .collect())
}

/// What passes back through an expert.
struct Back {
    /// To the rows that it saw.
    seen: Tensor,
    /// To its share of each.
    share: Tensor,
    /// To those of its matrices for which this is needed.
    matrices: [Option<Tensor>; Experts::MATRICES],
}

fn through_expert(
    [gate, up, down]: &[Tensor; Experts::MATRICES],
    seen: &Tensor,
    share: &Tensor,
    gradient: &Tensor,
    needed: &[bool],
) -> Result<Back, OpError> {
    let (a, b) = (linear(seen, gate, None)?, linear(seen, up, None)?);
    let open = (a.neg()?.exp()? + 1.0)?.recip()?;
    let silu = (&a * &open)?;
    let gated = (&silu * &b)?;
    let of_share = (gradient * linear(&gated, down, None)?)?.sum_keepdim(D::Minus1)?;
    let of_made = gradient.broadcast_mul(share)?;
    let of_gated = of_made.matmul(down)?;
    let slope = (&open * ((a * (1.0 - &open)?)? + 1.0)?)?;
    let (of_a, of_b) = (((&of_gated * b)? * slope)?, (of_gated * silu)?);
    let product = |at: usize, left: &Tensor, right: &Tensor| match needed.get(at) {
        Some(true) => left.t()?.matmul(right).map(Some),
        _ => Ok(None),
    };
    Ok(Back {
        matrices: [
            product(0, &of_a, seen)?,
            product(1, &of_b, seen)?,
            product(2, &of_made, &gated)?,
        ],
        seen: (of_a.matmul(gate)? + of_b.matmul(up)?)?,
        share: of_share,
    })
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
