//! Type inference: the types of a node's outputs from the types of its inputs. A node whose inputs
//! don't fit can't be built.

mod experts;
mod image;
mod quantized;

use crate::dim::Dim;
use crate::error::IrError;
use crate::op::{Attention, BucketedBias, DisentangledBias, Op, Rope, RopeScaling};
use crate::types::{DType, Shape, ValueType};

/// The types of the outputs of `op` applied to inputs of types `inputs` (values and weights alike).
pub(crate) fn infer(op: &Op, inputs: &[ValueType]) -> Result<Vec<ValueType>, IrError> {
    let cx = Check {
        op: op.name(),
        inputs,
    };
    let output = match op {
        Op::Gather => gather(&cx)?,
        Op::Linear => linear(&cx)?,
        Op::QuantizedLinear(format) => quantized::linear(&cx, *format)?,
        Op::QuantizedGather(format) => quantized::gather(&cx, *format)?,
        Op::Experts(mixture) => experts::mixture(&cx, *mixture)?,
        Op::GatherColumns => quantized::gather_columns(&cx)?,
        Op::RmsNorm { .. } => rms_norm(&cx)?,
        Op::LayerNorm { .. } => layer_norm(&cx)?,
        Op::Positions { .. } => positions(&cx)?,
        Op::LastToken { .. } | Op::FirstToken { .. } => one_token(&cx)?,
        Op::Rope(rope) => rotary(&cx, rope)?,
        Op::Attention(attention) if attention.causal && inputs.len() == 4 => {
            attend_without_cache(&cx, attention)?
        }
        Op::Attention(attention) if attention.causal => return attend_causally(&cx, attention),
        Op::Attention(attention) => attend_both_ways(&cx, attention)?,
        Op::DisentangledBias(bias) => disentangled_bias(&cx, bias)?,
        Op::BucketedBias(bias) => bucketed_bias(&cx, bias)?,
        Op::Silu | Op::Gelu { .. } | Op::Tanh | Op::Relu | Op::Scale { .. } => {
            cx.float_input::<1>(0)?.clone()
        }
        Op::Clip { limit } => clip(&cx, *limit)?,
        Op::Mul | Op::Add => entry_by_entry::<2>(&cx)?,
        Op::Modulate => entry_by_entry::<3>(&cx)?,
        Op::GroupNorm { groups, .. } => image::group_norm(&cx, *groups)?,
        Op::Conv2d { stride, padding } => image::conv2d(&cx, *stride, *padding)?,
        Op::Upsample { factor } => image::upsample(&cx, *factor)?,
        Op::TimestepEmbedding(embedding) => image::timestep_embedding(&cx, embedding)?,
        Op::Concat { axis } => concat(&cx, *axis)?,
        Op::Transpose { axes } => transpose(&cx, axes)?,
        Op::Slice { axis, start, len } => slice(&cx, *axis, *start, *len)?,
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
        Err(IrError::Type {
            op: self.op,
            problem: problem.into(),
        })
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
        self.require(input.dtype.is_float(), || {
            format!("input {at} is {input}, not a float tensor")
        })?;
        Ok(input)
    }

    fn same_dtype(&self, a: &ValueType, b: &ValueType) -> Result<(), IrError> {
        self.require(a.dtype == b.dtype, || {
            format!("element types differ: {a} and {b}")
        })
    }

    /// The last axis split into heads.
    fn head_dim(&self, ty: &ValueType, heads: usize) -> Result<usize, IrError> {
        match ty.shape.last().and_then(Dim::known) {
            Some(width) if ty.shape.rank() == 3 && heads > 0 && width % heads == 0 => {
                Ok(width / heads)
            }
            _ => self.fail(format!(
                "{ty} is not [batch, seq, {heads} heads * head_dim]"
            )),
        }
    }
}

fn gather(cx: &Check<'_>) -> Result<ValueType, IrError> {
    let [table, ids] = cx.arity()?;
    cx.require(table.shape.rank() == 2, || {
        format!("table {table} is not a matrix")
    })?;
    cx.require(ids.dtype == DType::I64, || format!("ids {ids} are not i64"))?;
    let dims = ids.shape.0.iter().chain(table.shape.last()).cloned();
    Ok(ValueType::new(table.dtype, dims))
}

fn linear(cx: &Check<'_>) -> Result<ValueType, IrError> {
    let (x, weight) = match cx.inputs {
        [x, weight] => (x, weight),
        [x, weight, bias] => {
            cx.same_dtype(x, bias)?;
            cx.require(
                bias.shape.rank() == 1 && bias.shape.0.first() == weight.shape.0.first(),
                || format!("bias {bias} doesn't fit weight {weight}"),
            )?;
            (x, weight)
        }
        other => return cx.fail(format!("takes 2 or 3 inputs, got {}", other.len())),
    };
    cx.same_dtype(x, weight)?;
    match (weight.shape.0.as_slice(), x.shape.last()) {
        ([out, inner], Some(last)) if inner == last => Ok(ValueType {
            dtype: x.dtype,
            shape: x.shape.with_last(out.clone()),
        }),
        _ => cx.fail(format!("weight {weight} doesn't fit input {x}")),
    }
}

fn rms_norm(cx: &Check<'_>) -> Result<ValueType, IrError> {
    let [x, scale] = cx.arity()?;
    cx.same_dtype(x, scale)?;
    cx.require(
        scale.shape.rank() == 1 && scale.shape.last() == x.shape.last(),
        || format!("scale {scale} doesn't fit input {x}"),
    )?;
    Ok(x.clone())
}

fn layer_norm(cx: &Check<'_>) -> Result<ValueType, IrError> {
    let [x, parameters @ ..] = cx.inputs else {
        return cx.fail("takes 1 to 3 inputs, got 0");
    };
    cx.require(parameters.len() <= 2 && x.dtype.is_float(), || {
        format!("takes 1 to 3 inputs, floats, got {}", cx.inputs.len())
    })?;
    cx.require(x.shape.rank() > 0, || format!("{x} has no axis"))?;
    for parameter in parameters {
        cx.same_dtype(x, parameter)?;
        let fits = parameter.shape.rank() == 1 && parameter.shape.last() == x.shape.last();
        cx.require(fits, || {
            format!("scale or bias {parameter} doesn't fit input {x}")
        })?;
    }
    Ok(x.clone())
}

fn positions(cx: &Check<'_>) -> Result<ValueType, IrError> {
    let [ids] = cx.arity()?;
    cx.require(ids.dtype == DType::I64 && ids.shape.rank() == 2, || {
        format!("ids {ids} are not i64[batch, seq]")
    })?;
    Ok(ids.clone())
}

fn one_token(cx: &Check<'_>) -> Result<ValueType, IrError> {
    let [x, ids] = cx.arity()?;
    let fits = x.shape.rank() == 3 && x.dtype.is_float();
    cx.require(fits, || format!("{x} is not floats of [batch, seq, width]"))?;
    cx.require(
        ids.dtype == DType::I64 && ids.shape.0[..] == x.shape.0[..2],
        || format!("ids {ids} don't fit {x}"),
    )?;
    let (batch, width) = (x.shape.0[0].clone(), x.shape.0[2].clone());
    Ok(ValueType::new(x.dtype, [batch, width]))
}

fn rotary(cx: &Check<'_>, rope: &Rope) -> Result<ValueType, IrError> {
    let [x, positions] = cx.arity()?;
    let head_dim = cx.head_dim(x, rope.heads)?;
    let rotated = rope.rotated(head_dim);
    cx.require(
        (2..=head_dim).contains(&rotated) && rotated.is_multiple_of(2),
        || format!("{rotated} entries of heads {head_dim} wide can't be rotated"),
    )?;
    match &rope.scaling {
        RopeScaling::Dynamic { original, .. } => {
            cx.require(*original > 0 && rotated > 2, || {
                "a dynamic base needs a length trained on, and more than one frequency".to_owned()
            })?;
        }
        RopeScaling::LongRope { short, long, .. } => {
            cx.require([short, long].iter().all(|l| l.len() == rotated / 2), || {
                format!(
                    "`short=` and `long=` must hold {} numbers each",
                    rotated / 2
                )
            })?;
        }
        _ => {}
    }
    cx.require(
        positions.dtype == DType::I64 && positions.shape.0[..] == x.shape.0[..2],
        || format!("positions {positions} don't fit {x}"),
    )?;
    Ok(x.clone())
}

/// Checks queries, keys and values; returns the width of a head.
fn heads_of_attention(
    cx: &Check<'_>,
    attention: &Attention,
    [q, k, v]: [&ValueType; 3],
) -> Result<usize, IrError> {
    let Attention {
        heads, kv_heads, ..
    } = *attention;
    cx.require(kv_heads > 0 && heads % kv_heads == 0, || {
        format!("{heads} heads can't share {kv_heads} key/value heads")
    })?;
    let head_dim = cx.head_dim(q, heads)?;
    for other in [k, v] {
        cx.same_dtype(q, other)?;
        cx.require(cx.head_dim(other, kv_heads)? == head_dim, || {
            format!("heads of {other} are not {head_dim} wide")
        })?;
    }
    Ok(head_dim)
}

fn attend_causally(cx: &Check<'_>, attention: &Attention) -> Result<Vec<ValueType>, IrError> {
    let [q, k, v, mask, past_key, past_value] = cx.arity()?;
    let head_dim = heads_of_attention(cx, attention, [q, k, v])?;
    let (batch, seq) = (&q.shape.0[0], &q.shape.0[1]);
    let past = past_key
        .shape
        .0
        .get(2)
        .cloned()
        .unwrap_or_else(|| Dim::from(0));
    let cache = |length: Dim| {
        ValueType::new(
            q.dtype,
            [
                batch.clone(),
                attention.kv_heads.into(),
                length,
                head_dim.into(),
            ],
        )
    };
    for side in [past_key, past_value] {
        cx.require(*side == cache(past.clone()), || {
            format!("cache {side} is not {}", cache(past.clone()))
        })?;
    }
    let total = past.plus(seq);
    let wanted = ValueType::new(DType::I64, [batch.clone(), total.clone()]);
    cx.require(*mask == wanted, || format!("mask {mask} is not {wanted}"))?;
    Ok(vec![q.clone(), cache(total.clone()), cache(total)])
}

fn attend_without_cache(cx: &Check<'_>, attention: &Attention) -> Result<ValueType, IrError> {
    let [q, k, v, mask] = cx.arity()?;
    heads_of_attention(cx, attention, [q, k, v])?;
    let tokens = &q.shape.0[..2];
    cx.require([k, v].iter().all(|x| x.shape.0[..2] == *tokens), || {
        format!("keys {k} and values {v} don't belong to queries {q}")
    })?;
    let wanted = ValueType::new(DType::I64, [tokens[0].clone(), tokens[1].clone()]);
    cx.require(*mask == wanted, || format!("mask {mask} is not {wanted}"))?;
    Ok(q.clone())
}

fn attend_both_ways(cx: &Check<'_>, attention: &Attention) -> Result<ValueType, IrError> {
    let [q, k, v, more @ ..] = cx.inputs else {
        return cx.fail(format!("takes 3 to 5 inputs, got {}", cx.inputs.len()));
    };
    cx.require(more.len() <= 2, || {
        format!("takes 3 to 5 inputs, got {}", cx.inputs.len())
    })?;
    cx.require(attention.softcap.is_none(), || {
        "has no cap in both directions".into()
    })?;
    heads_of_attention(cx, attention, [q, k, v])?;
    let (batch, seq, keys) = (&q.shape.0[0], &q.shape.0[1], &k.shape.0[1]);
    cx.require(
        k.shape.0[..2] == v.shape.0[..2] && k.shape.0[0] == *batch,
        || format!("keys {k} and values {v} don't belong to queries {q}"),
    )?;
    cx.require(
        attention.window.is_none_or(|w| w > 0 && seq == keys),
        || "has a window over one sequence only, at least 1 wide".into(),
    )?;
    let wanted = ValueType::new(DType::I64, [batch.clone(), keys.clone()]);
    cx.require(more.first().is_none_or(|mask| *mask == wanted), || {
        format!("the mask is not {wanted}")
    })?;
    let wanted = |batch: &Dim| {
        let heads = attention.heads.into();
        ValueType::new(q.dtype, [batch.clone(), heads, seq.clone(), keys.clone()])
    };
    let fits = |bias: &ValueType| [batch, &Dim::from(1)].iter().any(|b| *bias == wanted(b));
    cx.require(more.get(1).is_none_or(fits), || {
        format!("the bias is not {}", wanted(batch))
    })?;
    Ok(q.clone())
}

fn disentangled_bias(cx: &Check<'_>, bias: &DisentangledBias) -> Result<ValueType, IrError> {
    let tables = usize::from(bias.c2p) + usize::from(bias.p2c);
    cx.require(tables > 0 && cx.inputs.len() == 2 + tables, || {
        format!("takes {} inputs, got {}", 2 + tables, cx.inputs.len())
    })?;
    let (q, k) = (&cx.inputs[0], &cx.inputs[1]);
    cx.head_dim(q, bias.heads)?;
    cx.require(q == k, || {
        format!("keys {k} are not of the type of queries {q}")
    })?;
    cx.require((1..=1 << 24).contains(&bias.reach()), || {
        format!("a span of {} is none", bias.span)
    })?;
    let logarithmic = bias.log_until.is_none_or(|until| {
        bias.span.is_multiple_of(2) && bias.span >= 4 && until > bias.span / 2 + 1
    });
    cx.require(logarithmic, || {
        format!(
            "{} rows can't be shared up to distance {:?}",
            bias.span, bias.log_until
        )
    })?;
    for table in &cx.inputs[2..] {
        let wanted = ValueType::new(q.dtype, [Dim::from(2 * bias.span), q.shape.0[2].clone()]);
        cx.require(*table == wanted, || {
            format!("table {table} is not {wanted}")
        })?;
    }
    Ok(ValueType::new(
        q.dtype,
        [
            q.shape.0[0].clone(),
            bias.heads.into(),
            q.shape.0[1].clone(),
            q.shape.0[1].clone(),
        ],
    ))
}

fn bucketed_bias(cx: &Check<'_>, bias: &BucketedBias) -> Result<ValueType, IrError> {
    let [x, table] = cx.arity()?;
    let ([_, seq, ..], [rows, heads]) = (&x.shape.0[..], &table.shape.0[..]) else {
        return cx.fail(format!("{x} and {table} are no sequences and no table"));
    };
    let BucketedBias { buckets, until } = *bias;
    cx.require(*rows == buckets.into() && table.dtype.is_float(), || {
        format!("{table} is no table of {buckets} rows")
    })?;
    cx.require(
        buckets.is_multiple_of(4) && buckets > 0 && (buckets / 4 + 1..=1 << 24).contains(&until),
        || format!("{buckets} buckets can't be shared up to distance {until}"),
    )?;
    Ok(ValueType::new(
        table.dtype,
        [Dim::from(1), heads.clone(), seq.clone(), seq.clone()],
    ))
}

fn slice(cx: &Check<'_>, axis: usize, start: usize, len: usize) -> Result<ValueType, IrError> {
    let [x] = cx.arity()?;
    let Some(dim) = x.shape.0.get(axis) else {
        return cx.fail(format!("{x} has no axis {axis}"));
    };
    let end = start.checked_add(len).filter(|_| len > 0);
    let fits = end.is_some_and(|end| dim.known().is_none_or(|n| end <= n));
    cx.require(fits, || {
        format!("entries {start} to {start}+{len} are not in axis {axis} of {x}")
    })?;
    let mut dims = x.shape.0.clone();
    dims[axis] = len.into();
    Ok(ValueType::new(x.dtype, dims))
}

/// The first input's type, to which the others broadcast.
fn entry_by_entry<const N: usize>(cx: &Check<'_>) -> Result<ValueType, IrError> {
    let [a, others @ ..] = cx.arity::<N>()?.as_slice() else {
        return cx.fail("takes no inputs");
    };
    for b in others {
        let fits = |(a, b): (&Dim, &Dim)| a == b || b.known() == Some(1);
        let broadcasts = b.shape.rank() <= a.shape.rank()
            && a.shape.0.iter().rev().zip(b.shape.0.iter().rev()).all(fits);
        cx.require(
            a.dtype == b.dtype && broadcasts && a.dtype.is_float(),
            || format!("inputs differ: {a} and {b}"),
        )?;
    }
    Ok(a.clone())
}

fn clip(cx: &Check<'_>, limit: f32) -> Result<ValueType, IrError> {
    cx.require(limit >= 0.0, || {
        format!("to {limit}, which is no magnitude")
    })?;
    cx.float_input::<1>(0).cloned()
}

fn concat(cx: &Check<'_>, axis: usize) -> Result<ValueType, IrError> {
    let [first, others @ ..] = cx.inputs else {
        return cx.fail("takes 2 or more inputs, got 0");
    };
    cx.require(!others.is_empty(), || {
        "takes 2 or more inputs, got 1".into()
    })?;
    let Some(mut sum) = first.shape.0.get(axis).cloned() else {
        return cx.fail(format!("{first} has no axis {axis}"));
    };
    for other in others {
        let alike = |(i, (a, b)): (usize, (&Dim, &Dim))| i == axis || a == b;
        let fits = other.dtype == first.dtype && other.shape.rank() == first.shape.rank();
        let fits = fits
            && first
                .shape
                .0
                .iter()
                .zip(&other.shape.0)
                .enumerate()
                .all(alike);
        cx.require(fits, || format!("inputs differ: {first} and {other}"))?;
        sum = sum.plus(&other.shape.0[axis]);
    }
    let mut dims = first.shape.0.clone();
    dims[axis] = sum;
    Ok(ValueType::new(first.dtype, dims))
}

fn transpose(cx: &Check<'_>, axes: &[usize]) -> Result<ValueType, IrError> {
    let [x] = cx.arity()?;
    let mut sorted = axes.to_vec();
    sorted.sort_unstable();
    cx.require(sorted.into_iter().eq(0..x.shape.rank()), || {
        format!("{axes:?} are not the axes of {x}")
    })?;
    Ok(ValueType::new(
        x.dtype,
        axes.iter().map(|&axis| x.shape.0[axis].clone()),
    ))
}

fn reshape(cx: &Check<'_>, shape: &Shape) -> Result<ValueType, IrError> {
    let [x] = cx.arity()?;
    cx.require(x.shape.same_elements(shape), || {
        format!("{x} doesn't hold as many elements as {shape}")
    })?;
    Ok(ValueType {
        dtype: x.dtype,
        shape: shape.clone(),
    })
}

fn cast(cx: &Check<'_>, dtype: DType) -> Result<ValueType, IrError> {
    let x = cx.float_input::<1>(0)?;
    cx.require(dtype.is_float(), || {
        format!("to {dtype}, which is not a float type")
    })?;
    Ok(ValueType {
        dtype,
        shape: x.shape.clone(),
    })
}
