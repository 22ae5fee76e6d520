//! Operations on the rows of tensors, which several ops share: a row runs along the last axis.

use candle_core::{D, Tensor};

use crate::error::OpError;

/// The ids as row numbers of a table of `rows` rows.
pub(crate) fn row_numbers(ids: &Tensor, rows: usize) -> Result<Vec<usize>, OpError> {
    let row = |id: i64| usize::try_from(id).ok().filter(|r| *r < rows);
    let ids = ids.flatten_all()?.to_vec1::<i64>()?;
    ids.into_iter()
        .map(|id| {
            row(id).ok_or_else(|| {
                OpError::Data(format!("id {id} is outside of the table's {rows} rows"))
            })
        })
        .collect()
}

pub(crate) fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor, OpError> {
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

/// `x` less its mean, divided by its deviation, along the last axis.
pub(crate) fn normed(x: &Tensor, eps: f64) -> candle_core::Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let root = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    centred.broadcast_div(&root)
}

/// Softmax over the last axis.
pub(crate) fn softmax(x: &Tensor) -> candle_core::Result<Tensor> {
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let e = x
        .broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?
        .exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}
