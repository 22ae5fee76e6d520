//! Profile `portable`: primitives of ai.onnx, opset 17.

use dlc_ir::{Attention, DType, Node, Rope};

use super::super::builder::Name;
use super::context::{Context, Form};
use super::shared::{additive_mask, common_form, define_like, finish_call, from_f32, input_in, rope_name, rotations, to_f32};
use crate::error::ExportError;

/// In single precision whatever the graph's element type, as Hugging Face's norms are. `Pow` with 2 is the pattern that runtimes fuse.
pub(super) fn rms_norm(cx: &mut Context<'_>, node: &Node, eps: f32) -> Result<(), ExportError> {
    let dtype = cx.ty(Context::output_at(node, 0)?).dtype;
    let form = common_form(cx, node)?;
    let (x, scale) = (input_in(cx, node, 0, form)?, cx.operand(node, 1)?);
    let x = to_f32(cx, &x, dtype);
    let (two, eps) = (cx.b.float(DType::F32, 2.0), cx.b.float(DType::F32, eps));
    let square = cx.b.op("Pow", &[&x, &two]).out();
    let mean = cx.b.op("ReduceMean", &[&square]).ints("axes", &[-1]).int("keepdims", 1).out();
    let mean = cx.b.op("Add", &[&mean, &eps]).out();
    let root = cx.b.op("Sqrt", &[&mean]).out();
    let x = cx.b.op("Div", &[&x, &root]).out();
    let x = from_f32(cx, x, dtype);
    define_like(cx, node, form, |cx, out| finish_call(cx.b.op("Mul", &[&x, &scale]), out))
}

/// `x * cos + rotate_half(x) * sin`, with the sign of `rotate_half` moved into the sines.
pub(super) fn rope(cx: &mut Context<'_>, node: &Node, rope: &Rope) -> Result<(), ExportError> {
    let (x, positions) = (cx.value_at(node, 0)?, cx.value_at(node, 1)?);
    let (dtype, head_dim) = (cx.ty(x).dtype, cx.width(x)? / rope.heads);
    let [cos, sin] = widened(cx, rope, head_dim, positions, dtype)?;
    let x = cx.heads(x, rope.heads)?;
    let sizes = cx.b.ints(&[head_dim as i64 / 2, head_dim as i64 / 2]);
    let [low, high] = cx.b.op("Split", &[&x, &sizes]).int("axis", 3).outs();
    let turned = cx.b.op("Concat", &[&high, &low]).int("axis", 3).out();
    let straight = cx.b.op("Mul", &[&x, &cos]).out();
    let turned = cx.b.op("Mul", &[&turned, &sin]).out();
    let rotated = cx.b.op("Add", &[&straight, &turned]).out();
    cx.define(Context::output_at(node, 0)?, Form::Heads(rope.heads), rotated);
    Ok(())
}

/// `[cos, cos]` and `[-sin, sin]`, `[batch, seq, 1, head_dim]`.
fn widened(cx: &mut Context<'_>, rope: &Rope, head_dim: usize, positions: dlc_ir::ValueId, dtype: DType) -> Result<[Name; 2], ExportError> {
    let [cos, sin] = rotations(cx, rope, head_dim, positions, dtype)?;
    let scope = format!("{}/{}", cx.full_name(positions), rope_name(rope, head_dim));
    let mut widen = |half: &Name, negate: bool| {
        cx.once(&format!("{scope}/{}.{dtype}", if negate { "signed_sin" } else { "cos" }), |cx| {
            let axis = cx.b.ints(&[2]);
            let half = cx.b.op("Unsqueeze", &[half, &axis]).out();
            let first = if negate { cx.b.op("Neg", &[&half]).out() } else { half.clone() };
            Ok(cx.b.op("Concat", &[&first, &half]).int("axis", 3).out())
        })
    };
    Ok([widen(&cos, false)?, widen(&sin, true)?])
}

/// Query heads that share a key/value head are stacked along the sequence axis, so keys and values are never repeated. Scores, mask and
/// softmax are in single precision whatever the graph's element type.
pub(super) fn attention(cx: &mut Context<'_>, node: &Node, attention: &Attention) -> Result<(), ExportError> {
    let Attention { heads, kv_heads, scale, window } = *attention;
    let (q, mask) = (cx.value_at(node, 0)?, cx.value_at(node, 3)?);
    let (dtype, head_dim, group) = (cx.ty(q).dtype, (cx.width(q)? / heads) as i64, heads / kv_heads);
    let seq = cx.ty(q).shape.0[1].clone();
    let keys = extend_cache(cx, node, 1, kv_heads)?;
    let values = extend_cache(cx, node, 2, kv_heads)?;
    let mask = additive_mask(cx, mask, &seq, window, DType::F32)?;
    let mask = stacked(cx, mask, group)?;

    let q = cx.heads(q, heads)?;
    let mut q = cx.b.op("Transpose", &[&q]).ints("perm", &[0, 2, 1, 3]).out();
    if group > 1 {
        let shape = cx.b.ints(&[0, kv_heads as i64, -1, head_dim]);
        q = cx.b.op("Reshape", &[&q, &shape]).out();
    }
    let scale = cx.b.float(dtype, scale);
    let q = cx.b.op("Mul", &[&q, &scale]).out();
    let keys = cx.b.op("Transpose", &[&keys]).ints("perm", &[0, 1, 3, 2]).out();
    let scores = cx.b.op("MatMul", &[&q, &keys]).out();
    let scores = to_f32(cx, &scores, dtype);
    let scores = cx.b.op("Add", &[&scores, &mask]).out();
    let probabilities = cx.b.op("Softmax", &[&scores]).int("axis", -1).out();
    let probabilities = from_f32(cx, probabilities, dtype);
    let mut mixed = cx.b.op("MatMul", &[&probabilities, &values]).out();
    if group > 1 {
        let shape = cx.b.ints(&[0, heads as i64, -1, head_dim]);
        mixed = cx.b.op("Reshape", &[&mixed, &shape]).out();
    }
    let mixed = cx.b.op("Transpose", &[&mixed]).ints("perm", &[0, 2, 1, 3]).out();
    cx.define(Context::output_at(node, 0)?, Form::Heads(heads), mixed);
    Ok(())
}

/// Past and new keys (`part` 1) or values (`part` 2), `[batch, kv_heads, total, head_dim]`.
fn extend_cache(cx: &mut Context<'_>, node: &Node, part: usize, kv_heads: usize) -> Result<Name, ExportError> {
    let (new, past) = (cx.value_at(node, part)?, cx.value_at(node, part + 3)?);
    let (new, past) = (cx.heads(new, kv_heads)?, cx.full(past)?);
    let new = cx.b.op("Transpose", &[&new]).ints("perm", &[0, 2, 1, 3]).out();
    let value = Context::output_at(node, part)?;
    let present = cx.full_name(value);
    cx.b.op("Concat", &[&past, &new]).int("axis", 2).into(&[&present]);
    cx.define(value, Form::Full, present.clone());
    Ok(present)
}

/// `mask` once for each of `group` stacked query heads.
fn stacked(cx: &mut Context<'_>, mask: Name, group: usize) -> Result<Name, ExportError> {
    if group == 1 {
        return Ok(mask);
    }
    cx.once(&format!("{mask}.x{group}"), |cx| {
        let repeats = cx.b.ints(&[1, 1, group as i64, 1]);
        Ok(cx.b.op("Tile", &[&mask, &repeats]).out())
    })
}
