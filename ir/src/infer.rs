//! Type inference: the types of a node's outputs from the types of its inputs. A node whose inputs don't fit can't be built.

use crate::error::IrError;
use crate::op::{Attention, Op, Rope};
use crate::types::{DType, Dim, Shape, ValueType};

/// The types of the outputs of `op` applied to inputs of types `inputs` (values and weights alike).
pub(crate) fn infer(op: &Op, inputs: &[ValueType]) -> Result<Vec<ValueType>, IrError> {
    let cx = Check { op: op.name(), inputs };
    let output = match op {
        Op::Gather => gather(&cx)?,
        Op::Linear => linear(&cx)?,
        Op::RmsNorm { .. } => rms_norm(&cx)?,
        Op::Rope(rope) => rotary(&cx, rope)?,
        Op::Attention(attention) => return attend(&cx, attention),
        Op::Silu => cx.float_input::<1>(0)?.clone(),
        Op::Mul | Op::Add => same_types(&cx)?,
        Op::Reshape { shape } => reshape(&cx, shape)?,
        Op::Cast { dtype } => cast(&cx, *dtype)?,
    };
    Ok(vec![output])
}

struct Check<'a> {
    op: &'static str,
    inputs: &'a [ValueType],
}

impl Check<'_> {
    fn fail<T>(&self, problem: impl Into<String>) -> Result<T, IrError> {
        Err(IrError::Type { op: self.op, problem: problem.into() })
    }

    fn require(&self, holds: bool, problem: impl FnOnce() -> String) -> Result<(), IrError> {
        if holds { Ok(()) } else { self.fail(problem()) }
    }

    fn arity<const N: usize>(&self) -> Result<&[ValueType; N], IrError> {
        match self.inputs.try_into() {
            Ok(inputs) => Ok(inputs),
            Err(_) => self.fail(format!("takes {N} inputs, got {}", self.inputs.len())),
        }
    }

    fn float_input<const N: usize>(&self, at: usize) -> Result<&ValueType, IrError> {
        let input = &self.arity::<N>()?[at];
        self.require(input.dtype.is_float(), || format!("input {at} is {input}, not a float tensor"))?;
        Ok(input)
    }

    fn same_dtype(&self, a: &ValueType, b: &ValueType) -> Result<(), IrError> {
        self.require(a.dtype == b.dtype, || format!("element types differ: {a} and {b}"))
    }

    /// The last axis split into heads.
    fn head_dim(&self, ty: &ValueType, heads: usize) -> Result<usize, IrError> {
        match ty.shape.last().and_then(Dim::known) {
            Some(width) if ty.shape.rank() == 3 && heads > 0 && width % heads == 0 => Ok(width / heads),
            _ => self.fail(format!("{ty} is not [batch, seq, {heads} heads * head_dim]")),
        }
    }
}

fn gather(cx: &Check<'_>) -> Result<ValueType, IrError> {
    let [table, ids] = cx.arity()?;
    cx.require(table.shape.rank() == 2, || format!("table {table} is not a matrix"))?;
    cx.require(ids.dtype == DType::I64, || format!("ids {ids} are not i64"))?;
    let dims = ids.shape.0.iter().chain(table.shape.last()).cloned();
    Ok(ValueType::new(table.dtype, dims))
}

fn linear(cx: &Check<'_>) -> Result<ValueType, IrError> {
    let (x, weight) = match cx.inputs {
        [x, weight] => (x, weight),
        [x, weight, bias] => {
            cx.same_dtype(x, bias)?;
            cx.require(bias.shape.rank() == 1 && bias.shape.0.first() == weight.shape.0.first(), || {
                format!("bias {bias} doesn't fit weight {weight}")
            })?;
            (x, weight)
        }
        other => return cx.fail(format!("takes 2 or 3 inputs, got {}", other.len())),
    };
    cx.same_dtype(x, weight)?;
    match (weight.shape.0.as_slice(), x.shape.last()) {
        ([out, inner], Some(last)) if inner == last => Ok(ValueType { dtype: x.dtype, shape: x.shape.with_last(out.clone()) }),
        _ => cx.fail(format!("weight {weight} doesn't fit input {x}")),
    }
}

fn rms_norm(cx: &Check<'_>) -> Result<ValueType, IrError> {
    let [x, scale] = cx.arity()?;
    cx.same_dtype(x, scale)?;
    cx.require(scale.shape.rank() == 1 && scale.shape.last() == x.shape.last(), || format!("scale {scale} doesn't fit input {x}"))?;
    Ok(x.clone())
}

fn rotary(cx: &Check<'_>, rope: &Rope) -> Result<ValueType, IrError> {
    let [x, positions] = cx.arity()?;
    let head_dim = cx.head_dim(x, rope.heads)?;
    cx.require(head_dim % 2 == 0, || format!("heads of odd width {head_dim} can't be rotated"))?;
    cx.require(positions.dtype == DType::I64 && positions.shape.0[..] == x.shape.0[..2], || format!("positions {positions} don't fit {x}"))?;
    Ok(x.clone())
}

fn attend(cx: &Check<'_>, attention: &Attention) -> Result<Vec<ValueType>, IrError> {
    let [q, k, v, mask, past_key, past_value] = cx.arity()?;
    let Attention { heads, kv_heads, .. } = *attention;
    cx.require(kv_heads > 0 && heads % kv_heads == 0, || format!("{heads} heads can't share {kv_heads} key/value heads"))?;
    let head_dim = cx.head_dim(q, heads)?;
    for other in [k, v] {
        cx.same_dtype(q, other)?;
        cx.require(cx.head_dim(other, kv_heads)? == head_dim, || format!("heads of {other} are not {head_dim} wide"))?;
    }
    let (batch, seq) = (&q.shape.0[0], &q.shape.0[1]);
    let past = past_key.shape.0.get(2).cloned().unwrap_or_else(|| Dim::from(0));
    let cache = |length: Dim| ValueType::new(q.dtype, [batch.clone(), kv_heads.into(), length, head_dim.into()]);
    for side in [past_key, past_value] {
        cx.require(*side == cache(past.clone()), || format!("cache {side} is not {}", cache(past.clone())))?;
    }
    let total = past.plus(seq);
    let wanted = ValueType::new(DType::I64, [batch.clone(), total.clone()]);
    cx.require(*mask == wanted, || format!("mask {mask} is not {wanted}"))?;
    Ok(vec![q.clone(), cache(total.clone()), cache(total)])
}

fn same_types(cx: &Check<'_>) -> Result<ValueType, IrError> {
    let [a, b] = cx.arity()?;
    cx.require(a == b && a.dtype.is_float(), || format!("inputs differ: {a} and {b}"))?;
    Ok(a.clone())
}

fn reshape(cx: &Check<'_>, shape: &Shape) -> Result<ValueType, IrError> {
    let [x] = cx.arity()?;
    cx.require(x.shape.same_elements(shape), || format!("{x} doesn't hold as many elements as {shape}"))?;
    Ok(ValueType { dtype: x.dtype, shape: shape.clone() })
}

fn cast(cx: &Check<'_>, dtype: DType) -> Result<ValueType, IrError> {
    let x = cx.float_input::<1>(0)?;
    cx.require(dtype.is_float(), || format!("to {dtype}, which is not a float type"))?;
    Ok(ValueType { dtype, shape: x.shape.clone() })
}
