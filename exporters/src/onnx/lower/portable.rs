//! Profile `portable`: primitives of ai.onnx, in their form of opset 17.

use dlc_ir::{Attention, DType, Node, Rope};

use super::super::builder::Name;
use super::context::Context;
use super::forms::Form;
use super::masks::{additive_mask, key_mask, window_mask};
use super::queries::has_cache;
use super::rotation::{rope_name, rotations};
use super::shared::{common_form, define_like, finish_call, from_f32, input_in, to_f32};
use crate::error::ExportError;

/// In single precision whatever the graph's element type, as Hugging Face's norms are. `Pow` with 2
/// is the pattern that runtimes fuse.
pub(super) fn rms_norm(cx: &mut Context<'_>, node: &Node, eps: f32) -> Result<(), ExportError> {
    let dtype = cx.ty(Context::output_at(node, 0)?).dtype;
    let form = common_form(cx, node)?;
    let (x, scale) = (input_in(cx, node, 0, form)?, cx.operand(node, 1)?);
    let x = to_f32(cx, &x, dtype);
    let (two, eps) = (cx.b.float(DType::F32, 2.0), cx.b.float(DType::F32, eps));
    let square = cx.b.op("Pow", &[&x, &two]).out();
    let mean =
        cx.b.op("ReduceMean", &[&square])
            .ints("axes", &[-1])
            .int("keepdims", 1)
            .out();
    let mean = cx.b.op("Add", &[&mean, &eps]).out();
    let root = cx.b.op("Sqrt", &[&mean]).out();
    let x = cx.b.op("Div", &[&x, &root]).out();
    let x = from_f32(cx, x, dtype);
    define_like(cx, node, form, |cx, out| {
        finish_call(cx.b.op("Mul", &[&x, &scale]), out)
    })
}

/// `x * cos + rotate_half(x) * sin`, with the sign of `rotate_half` moved into the sines; what
/// isn't rotated goes beside it.
pub(super) fn rope(cx: &mut Context<'_>, node: &Node, rope: &Rope) -> Result<(), ExportError> {
    let (x, positions) = (cx.value_at(node, 0)?, cx.value_at(node, 1)?);
    let (dtype, head_dim) = (cx.ty(x).dtype, cx.width(x)? / rope.heads);
    let rotated = rope.rotated(head_dim);
    let [cos, sin] = widened(cx, rope, rotated, positions, dtype)?;
    let mut x = cx.heads(x, rope.heads)?;
    let mut rest = None;
    if rotated < head_dim {
        let sizes = cx.b.ints(&[rotated as i64, (head_dim - rotated) as i64]);
        let [turned, kept] = cx.b.op("Split", &[&x, &sizes]).int("axis", 3).outs();
        (x, rest) = (turned, Some(kept));
    }
    let sizes = cx.b.ints(&[rotated as i64 / 2, rotated as i64 / 2]);
    let [low, high] = cx.b.op("Split", &[&x, &sizes]).int("axis", 3).outs();
    let turned = cx.b.op("Concat", &[&high, &low]).int("axis", 3).out();
    let straight = cx.b.op("Mul", &[&x, &cos]).out();
    let turned = cx.b.op("Mul", &[&turned, &sin]).out();
    let mut made = cx.b.op("Add", &[&straight, &turned]).out();
    if let Some(rest) = rest {
        made = cx.b.op("Concat", &[&made, &rest]).int("axis", 3).out();
    }
    cx.define(Context::output_at(node, 0)?, Form::Heads(rope.heads), made);
    Ok(())
}

/// `[cos, cos]` and `[-sin, sin]`, `[batch, seq, 1, rotated]`.
fn widened(
    cx: &mut Context<'_>,
    rope: &Rope,
    rotated: usize,
    positions: dlc_ir::ValueId,
    dtype: DType,
) -> Result<[Name; 2], ExportError> {
    let [cos, sin] = rotations(cx, rope, rotated, positions, dtype)?;
    let scope = format!("{}/{}", cx.full_name(positions), rope_name(rope, rotated));
    let mut widen = |half: &Name, negate: bool| {
        cx.once(
            &format!(
                "{scope}/{}.{dtype}",
                if negate { "signed_sin" } else { "cos" }
            ),
            |cx| {
                let axis = cx.b.ints(&[2]);
                let half = cx.b.op("Unsqueeze", &[half, &axis]).out();
                let first = if negate {
                    cx.b.op("Neg", &[&half]).out()
                } else {
                    half.clone()
                };
                Ok(cx.b.op("Concat", &[&first, &half]).int("axis", 3).out())
            },
        )
    };
    Ok([widen(&cos, false)?, widen(&sin, true)?])
}

/// Attention over past and new keys, or over new ones alone.
pub(super) fn attend_causally(
    cx: &mut Context<'_>,
    node: &Node,
    attention: &Attention,
) -> Result<(), ExportError> {
    let seq = cx.ty(cx.value_at(node, 0)?).shape.0[1].clone();
    let mut side = |part| {
        if has_cache(node) {
            extend_cache(cx, node, part, attention.kv_heads)
        } else {
            heads_first(cx, node, part, attention.kv_heads)
        }
    };
    let (keys, values) = (side(1)?, side(2)?);
    let mask = additive_mask(
        cx,
        cx.value_at(node, 3)?,
        &seq,
        attention.window,
        DType::F32,
    )?;
    attend(cx, node, attention, [keys, values], &[mask])
}

/// Attention in both directions.
pub(super) fn attend_both_ways(
    cx: &mut Context<'_>,
    node: &Node,
    attention: &Attention,
) -> Result<(), ExportError> {
    let sides = [
        heads_first(cx, node, 1, attention.kv_heads)?,
        heads_first(cx, node, 2, attention.kv_heads)?,
    ];
    let mask = match node.inputs.get(3) {
        Some(_) => Some(cx.value_at(node, 3)?),
        None => None,
    };
    let mut addends = Vec::new();
    if let Some(window) = attention.window {
        let seq = cx.ty(cx.value_at(node, 0)?).shape.0[1].clone();
        addends.push(window_mask(cx, mask, &seq, window, DType::F32)?);
    } else if let Some(mask) = mask {
        addends.push(key_mask(cx, mask, DType::F32)?);
    }
    if node.inputs.len() > 4 {
        let (dtype, bias) = (cx.ty(cx.value_at(node, 4)?).dtype, cx.operand(node, 4)?);
        addends.push(to_f32(cx, &bias, dtype));
    }
    attend(cx, node, attention, sides, &addends)
}

/// Keys and values that several query heads share are repeated, as Hugging Face's exports do it:
/// runtimes that look for attention know that form, and OpenVINO's paged attention misreads others.
/// Scores, what is added to them and softmax are in single precision whatever the graph's element
/// type.
fn attend(
    cx: &mut Context<'_>,
    node: &Node,
    attention: &Attention,
    [keys, values]: [Name; 2],
    addends: &[Name],
) -> Result<(), ExportError> {
    let Attention {
        heads,
        kv_heads,
        scale,
        softcap,
        ..
    } = *attention;
    let q = cx.value_at(node, 0)?;
    let (dtype, head_dim) = (cx.ty(q).dtype, cx.width(q)? / heads);
    let q = heads_first(cx, node, 0, heads)?;
    let [keys, values] =
        [keys, values].map(|shared| repeated(cx, shared, heads, heads / kv_heads, head_dim));
    let scale = cx.b.float(dtype, scale);
    let q = cx.b.op("Mul", &[&q, &scale]).out();
    let keys =
        cx.b.op("Transpose", &[&keys])
            .ints("perm", &[0, 1, 3, 2])
            .out();
    let scores = cx.b.op("MatMul", &[&q, &keys]).out();
    let mut scores = to_f32(cx, &scores, dtype);
    if let Some(cap) = softcap {
        let cap = cx.b.float(DType::F32, cap);
        let share = cx.b.op("Div", &[&scores, &cap]).out();
        let squashed = cx.b.op("Tanh", &[&share]).out();
        scores = cx.b.op("Mul", &[&squashed, &cap]).out();
    }
    for addend in addends {
        scores = cx.b.op("Add", &[&scores, addend]).out();
    }
    let probabilities = cx.b.op("Softmax", &[&scores]).int("axis", -1).out();
    let probabilities = from_f32(cx, probabilities, dtype);
    let mixed = cx.b.op("MatMul", &[&probabilities, &values]).out();
    let mixed =
        cx.b.op("Transpose", &[&mixed])
            .ints("perm", &[0, 2, 1, 3])
            .out();
    cx.define(Context::output_at(node, 0)?, Form::Heads(heads), mixed);
    Ok(())
}

/// What a node reads at `at`, as `[batch, heads, seq, head_dim]`.
pub(super) fn heads_first(
    cx: &mut Context<'_>,
    node: &Node,
    at: usize,
    heads: usize,
) -> Result<Name, ExportError> {
    let x = cx.value_at(node, at)?;
    let x = cx.heads(x, heads)?;
    Ok(cx
        .b
        .op("Transpose", &[&x])
        .ints("perm", &[0, 2, 1, 3])
        .out())
}

/// Past and new keys (`part` 1) or values (`part` 2), `[batch, kv_heads, total, head_dim]`.
fn extend_cache(
    cx: &mut Context<'_>,
    node: &Node,
    part: usize,
    kv_heads: usize,
) -> Result<Name, ExportError> {
    let past = cx.operand(node, part + 3)?;
    let new = heads_first(cx, node, part, kv_heads)?;
    let value = Context::output_at(node, part)?;
    let present = cx.full_name(value);
    cx.b.op("Concat", &[&past, &new])
        .int("axis", 2)
        .into(&[&present]);
    cx.define(value, Form::Full, present.clone());
    Ok(present)
}

/// Keys or values, each for the `group` query heads that share it:
/// `[batch, heads, total, head_dim]`.
fn repeated(
    cx: &mut Context<'_>,
    shared: Name,
    heads: usize,
    group: usize,
    head_dim: usize,
) -> Name {
    if group == 1 {
        return shared;
    }
    let (axis, repeats) = (cx.b.ints(&[2]), cx.b.ints(&[1, 1, group as i64, 1, 1]));
    let shape = cx.b.ints(&[0, heads as i64, -1, head_dim as i64]);
    let apart = cx.b.op("Unsqueeze", &[&shared, &axis]).out();
    let repeated = cx.b.op("Expand", &[&apart, &repeats]).out();
    cx.b.op("Reshape", &[&repeated, &shape]).out()
}
