//! Forward: one function per op, in primitive tensor operations, so that candle can differentiate every one of them.

use candle_core::{D, Device, Tensor};
use dlc_ir::{Op, Rope};

use crate::attention::attention;
use crate::error::OpError;
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
        Op::RmsNorm { eps } => {
            let [x, scale] = operands(inputs)?;
            rms_norm(x, scale, f64::from(*eps))?
        }
        Op::Rope(rope) => {
            let [x, positions] = operands(inputs)?;
            rotate(x, positions, rope)?
        }
        Op::Attention(a) => return attention(a, operands(inputs)?),
        Op::Silu => {
            let [x] = operands(inputs)?;
            x.silu()?
        }
        Op::Mul => {
            let [a, b] = operands(inputs)?;
            a.mul(b)?
        }
        Op::Add => {
            let [a, b] = operands(inputs)?;
            a.add(b)?
        }
        Op::Reshape { shape } => {
            let [x] = operands(inputs)?;
            x.reshape(symbols.shape(shape).map_err(OpError::Data)?)?
        }
        Op::Cast { .. } => {
            let [x] = operands(inputs)?;
            x.clone()
        }
    };
    Ok(vec![output])
}

pub(crate) fn operands<const N: usize>(inputs: &[Tensor]) -> Result<&[Tensor; N], OpError> {
    inputs.try_into().map_err(|_| wrong_arity(inputs))
}

fn wrong_arity(inputs: &[Tensor]) -> OpError {
    OpError::Bug(format!("{} operands", inputs.len()))
}

fn gather(table: &Tensor, ids: &Tensor) -> Result<Tensor, OpError> {
    let (rows, width) = table.dims2()?;
    row_numbers(ids, rows)?;
    let shape = [ids.dims(), &[width]].concat();
    Ok(table.index_select(&ids.flatten_all()?, 0)?.reshape(shape)?)
}

/// The ids as row numbers of a table of `rows` rows.
pub(crate) fn row_numbers(ids: &Tensor, rows: usize) -> Result<Vec<usize>, OpError> {
    let row = |id: i64| usize::try_from(id).ok().filter(|r| *r < rows);
    let ids = ids.flatten_all()?.to_vec1::<i64>()?;
    ids.into_iter().map(|id| row(id).ok_or_else(|| OpError::Data(format!("id {id} is outside of the table's {rows} rows")))).collect()
}

fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, OpError> {
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = weight.dim(0)?;
    }
    // The transpose is a view; the matrix product reads it with strides.
    let y = as_rows(x)?.matmul(&weight.t()?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    Ok(y.reshape(shape)?)
}

/// `x [..., width]` as `[rows, width]`.
pub(crate) fn as_rows(x: &Tensor) -> Result<Tensor, OpError> {
    let width = x.dim(D::Minus1)?;
    let rows: usize = x.dims().iter().take(x.rank() - 1).product();
    Ok(x.reshape((rows, width))?)
}

fn rms_norm(x: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor, OpError> {
    let root = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    Ok(x.broadcast_div(&root)?.broadcast_mul(scale)?)
}

/// Rotates the pair `(i, i + head_dim/2)` of each head by `position * frequency[i]`, the angle computed in single precision.
fn rotate(x: &Tensor, positions: &Tensor, rope: &Rope) -> Result<Tensor, OpError> {
    let (batch, seq, width) = x.dims3()?;
    let head_dim = width / rope.heads;
    let half = head_dim / 2;
    let frequencies = rope.frequencies(head_dim);
    let positions = positions.flatten_all()?.to_vec1::<i64>()?;
    if let Some(negative) = positions.iter().find(|p| **p < 0) {
        return Err(OpError::Data(format!("position {negative} is negative")));
    }
    let angles: Vec<f32> = positions.iter().flat_map(|p| frequencies.iter().map(move |f| *p as f32 * f)).collect();
    let table = |f: fn(f32) -> f32| Tensor::from_iter(angles.iter().map(|a| f(*a)), &Device::Cpu)?.reshape((batch, seq, 1, half));
    let (cos, sin) = (table(f32::cos)?, table(f32::sin)?);
    let x = x.reshape((batch, seq, rope.heads, head_dim))?;
    let (a, b) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
    let rotated_a = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let rotated_b = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Ok(Tensor::cat(&[rotated_a, rotated_b], 3)?.reshape((batch, seq, width))?)
}
