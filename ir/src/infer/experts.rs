//! Types of mixtures of experts.

use super::{Check, quantized};
use crate::dim::Dim;
use crate::error::IrError;
use crate::op::Experts;
use crate::types::ValueType;

pub(super) fn mixture(cx: &Check<'_>, experts: Experts) -> Result<ValueType, IrError> {
    let [x, logits, inputs @ ..] = cx.inputs else {
        return cx.fail(format!("takes 5 or more inputs, got {}", cx.inputs.len()));
    };
    let parts = experts.parts(inputs.get(2).map_or(0, |third| third.shape.rank()));
    let of_expert = Experts::MATRICES * parts;
    let count = inputs.len() / of_expert;
    cx.require(count > 0 && inputs.len().is_multiple_of(of_expert), || {
        format!(
            "takes a gate, an up and a down matrix of each expert, got {} inputs for them",
            inputs.len()
        )
    })?;
    cx.require((1..=count).contains(&experts.top), || {
        format!("can't choose {} of {count} experts", experts.top)
    })?;
    let Some(width) = x
        .shape
        .last()
        .filter(|_| x.dtype.is_float() && x.shape.rank() > 1)
    else {
        return cx.fail(format!("{x} is not a float tensor of rows"));
    };
    let wanted = ValueType {
        dtype: x.dtype,
        shape: x.shape.with_last(count.into()),
    };
    cx.require(*logits == wanted, || {
        format!("logits {logits} are not {wanted}")
    })?;
    let Some(inner) = inputs[0].shape.0.first() else {
        return cx.fail(format!("gate {} is not a matrix", inputs[0]));
    };
    let shapes = [[inner, width], [inner, width], [width, inner]];
    for (at, matrix) in inputs.chunks_exact(parts).enumerate() {
        check(cx, experts, matrix, x, shapes[at % Experts::MATRICES])?;
    }
    Ok(x.clone())
}

/// Fails unless `matrix`, itself or in parts, has these rows and columns.
fn check(
    cx: &Check<'_>,
    experts: Experts,
    matrix: &[ValueType],
    x: &ValueType,
    [rows, columns]: [&Dim; 2],
) -> Result<(), IrError> {
    if let Some(format) = experts.format {
        let (Some(rows), Some(columns)) = (rows.known(), columns.known()) else {
            return cx.fail("the rows and columns of quantised matrices must be numbers");
        };
        return quantized::matrix(cx, format, matrix, x.dtype, [rows, columns]);
    }
    let wanted = ValueType::new(x.dtype, [rows.clone(), columns.clone()]);
    cx.require(matrix.iter().all(|matrix| *matrix == wanted), || {
        format!("matrix {} is not {wanted}", matrix[0])
    })
}
