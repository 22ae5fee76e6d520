//! Profile `onnx`: ai.onnx up to opset 23, with its `Attention`, `RMSNormalization` and
//! `RotaryEmbedding`.

use dlc_ir::{Attention, DType, Node, Rope, Shape};

use super::super::builder::Name;
use super::context::Context;
use super::forms::Form;
use super::masks::{additive_mask, key_mask, window_mask};
use super::queries::has_cache;
use super::rotation::rotations;
use super::shared::{common_form, define_full, define_like, finish_call, input_in};
use crate::error::ExportError;

pub(super) fn rms_norm(cx: &mut Context<'_>, node: &Node, eps: f32) -> Result<(), ExportError> {
    let form = common_form(cx, node)?;
    let (x, scale) = (input_in(cx, node, 0, form)?, cx.operand(node, 1)?);
    define_like(cx, node, form, |cx, out| {
        finish_call(
            cx.b.op("RMSNormalization", &[&x, &scale])
                .int("axis", -1)
                .float("epsilon", eps),
            out,
        )
    })
}

/// With angles of this run's positions, so without `position_ids`.
pub(super) fn rope(cx: &mut Context<'_>, node: &Node, rope: &Rope) -> Result<(), ExportError> {
    let (x, positions) = (cx.value_at(node, 0)?, cx.value_at(node, 1)?);
    let (dtype, head_dim) = (cx.ty(x).dtype, cx.width(x)? / rope.heads);
    let rotated = rope.rotated(head_dim);
    let [cos, sin] = rotations(cx, rope, rotated, positions, dtype)?;
    let x = cx.full(x)?;
    define_full(cx, node, |cx, out| {
        let mut call =
            cx.b.op("RotaryEmbedding", &[&x, &cos, &sin])
                .int("num_heads", rope.heads as i64);
        if rotated < head_dim {
            call = call.int("rotary_embedding_dim", rotated as i64);
        }
        call.into(&[out]);
    })
}

/// The mask says everything that is hidden, so the operator's own causal mask (which forgets the
/// past) stays off. Capped scores are left to primitives: opset 23 caps them after the mask is
/// added, which shows what is hidden.
pub(super) fn attend_causally(
    cx: &mut Context<'_>,
    node: &Node,
    attention: &Attention,
) -> Result<(), ExportError> {
    let (q, mask) = (cx.value_at(node, 0)?, cx.value_at(node, 3)?);
    let (dtype, seq) = (cx.ty(q).dtype, cx.ty(q).shape.0[1].clone());
    let mask = additive_mask(cx, mask, &seq, attention.window, dtype)?;
    let [q, k, v] = [
        cx.operand(node, 0)?,
        cx.operand(node, 1)?,
        cx.operand(node, 2)?,
    ];
    let mut inputs = vec![q, k, v, mask];
    if has_cache(node) {
        inputs.extend([cx.operand(node, 4)?, cx.operand(node, 5)?]);
    }
    let values = node.outputs.clone();
    let names: Vec<Name> = values.iter().map(|value| cx.full_name(*value)).collect();
    let mut call =
        cx.b.op("Attention", &inputs.iter().collect::<Vec<_>>())
            .int("q_num_heads", attention.heads as i64)
            .int("kv_num_heads", attention.kv_heads as i64)
            .float("scale", attention.scale)
            .int("is_causal", 0);
    if dtype != DType::F32 {
        call = call.int("softmax_precision", 1);
    }
    call.into(&names.iter().collect::<Vec<_>>());
    for (value, name) in values.into_iter().zip(names) {
        cx.define(value, Form::Full, name);
    }
    Ok(())
}

/// The sum of what is added to the scores, computed once for all layers that add the same.
fn sum(cx: &mut Context<'_>, addends: &[Name]) -> Result<Option<Name>, ExportError> {
    let Some((first, rest)) = addends.split_first() else {
        return Ok(None);
    };
    let mut sum = first.clone();
    for addend in rest {
        sum = cx.once(&format!("{sum}+{addend}"), |cx| {
            Ok(cx.b.op("Add", &[&sum, addend]).out())
        })?;
    }
    Ok(Some(sum))
}

pub(super) fn attend_both_ways(
    cx: &mut Context<'_>,
    node: &Node,
    attention: &Attention,
) -> Result<(), ExportError> {
    let q = cx.value_at(node, 0)?;
    let (dtype, seq) = (cx.ty(q).dtype, cx.ty(q).shape.0[1].clone());
    let mut inputs = vec![
        cx.operand(node, 0)?,
        cx.operand(node, 1)?,
        cx.operand(node, 2)?,
    ];
    let mask = match node.inputs.get(3) {
        Some(_) => Some(cx.value_at(node, 3)?),
        None => None,
    };
    let mut addends = Vec::new();
    if node.inputs.len() > 4 {
        addends.push(cx.operand(node, 4)?);
    }
    if let Some(window) = attention.window {
        addends.push(window_mask(cx, mask, &seq, window, dtype)?);
    } else if let Some(mask) = mask {
        let mut mask = key_mask(cx, mask, dtype)?;
        if addends.is_empty() {
            // tract wants a row for every query.
            let scope = format!("{mask}/rows.{seq}");
            let shape = cx.exact_shape(&Shape(vec![1.into(), 1.into(), seq, 1.into()]))?;
            mask = cx.once(&scope, |cx| Ok(cx.b.op("Expand", &[&mask, &shape]).out()))?;
        }
        addends.push(mask);
    }
    inputs.extend(sum(cx, &addends)?);
    define_full(cx, node, |cx, out| {
        let mut call =
            cx.b.op("Attention", &inputs.iter().collect::<Vec<_>>())
                .int("q_num_heads", attention.heads as i64)
                .int("kv_num_heads", attention.kv_heads as i64)
                .float("scale", attention.scale);
        if dtype != DType::F32 {
            call = call.int("softmax_precision", 1);
        }
        call.into(&[out]);
    })
}
