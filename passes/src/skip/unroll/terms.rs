//! Arithmetic between evaluations, as nodes.

use dlc_ir::{DType, IrError, Op, Operand, Shape, ValueId};
use dlc_methods::diffusion::Arithmetic;

use super::missing;
use crate::skip::subnet::Copier;

impl Arithmetic for Copier<'_> {
    type Value = ValueId;
    type Term = ValueId;
    type Error = IrError;

    fn term(value: &ValueId) -> &ValueId {
        value
    }

    fn sum(&mut self, terms: &[(f64, &ValueId)], _: Option<ValueId>) -> Result<ValueId, IrError> {
        let mut total = None;
        for (coefficient, value) in terms {
            let term = times(self, **value, *coefficient)?;
            total = Some(match total {
                Some(so_far) => self
                    .builder
                    .add(Op::Add, [Operand::Value(so_far), term.into()])?,
                None => term,
            });
        }
        total.ok_or_else(|| missing("a sum, whose coefficients are all 0,"))
    }

    fn clip(&mut self, value: ValueId, limit: f32) -> Result<ValueId, IrError> {
        self.builder.add(Op::Clip { limit }, [value.into()])
    }
}

fn times(copy: &mut Copier<'_>, value: ValueId, factor: f64) -> Result<ValueId, IrError> {
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
