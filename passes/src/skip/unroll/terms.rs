//! Arithmetic between evaluations, as nodes.

use dlc_ir::{DType, IrError, Op, Operand, Shape, ValueId};

use super::missing;
use crate::skip::subnet::Copier;

/// The sum of terms with coefficients, those with 0 aside; none if there are none.
pub(super) fn sum(
    copy: &mut Copier<'_>,
    terms: Vec<(Operand, f64)>,
) -> Result<Option<ValueId>, IrError> {
    let mut total = None;
    for (operand, coefficient) in terms.into_iter().filter(|(_, c)| *c != 0.0) {
        let Operand::Value(value) = operand else {
            return Err(missing("a term of a sum, a weight instead of a value,"));
        };
        let term = times(copy, value, coefficient)?;
        total = Some(match total {
            Some(so_far) => copy
                .builder
                .add(Op::Add, [Operand::Value(so_far), term.into()])?,
            None => term,
        });
    }
    Ok(total)
}

pub(super) fn times(
    copy: &mut Copier<'_>,
    value: ValueId,
    factor: f64,
) -> Result<ValueId, IrError> {
    if factor.to_bits() == 1f64.to_bits() {
        Ok(value)
    } else {
        copy.builder.add(
            Op::Scale {
                factor: factor as f32,
            },
            [value.into()],
        )
    }
}

/// A zero for each row of `images`, whatever numbers they hold.
pub(super) fn zeros(
    copy: &mut Copier<'_>,
    images: ValueId,
    dtype: DType,
) -> Result<ValueId, IrError> {
    let rows = copy.builder.value_type(images).shape.0.first().cloned();
    let mut value = images;
    for axis in 1..4 {
        value = copy.builder.add(
            Op::Slice {
                axis,
                start: 0,
                len: 1,
            },
            [value.into()],
        )?;
    }
    let row = copy.builder.add(
        Op::Reshape {
            shape: Shape(rows.into_iter().collect()),
        },
        [value.into()],
    )?;
    let zeros = copy.builder.add(Op::Scale { factor: 0.0 }, [row.into()])?;
    cast(copy, zeros, dtype)
}

pub(super) fn cast(
    copy: &mut Copier<'_>,
    value: ValueId,
    dtype: DType,
) -> Result<ValueId, IrError> {
    if copy.builder.value_type(value).dtype == dtype {
        Ok(value)
    } else {
        copy.builder.add(Op::Cast { dtype }, [value.into()])
    }
}
