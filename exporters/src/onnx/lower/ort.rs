//! Profile `ort`: the operators of ONNX Runtime's own domain `com.microsoft`, over ai.onnx to opset 23
//! (whose `RMSNormalization` is for the norms that follow no sum; `SimplifiedLayerNormalization`
//! stands in ai.onnx for ONNX Runtime alone, and no checker knows it there).
//!
//! `GroupQueryAttention` rotates queries and keys itself and counts positions from the cache, so
//! rotary nodes and `position_ids` fall away. It takes the mask as lengths: per row, tokens are the
//! first entries of the cache, see [`padding`](super::padding). With more than one row it takes
//! several tokens only on an empty cache. Heads whose width isn't a multiple of 8 it doesn't take
//! at all: such graphs get ai.onnx `Attention`, and caches that are appended to. It rotates heads
//! in multiples of 16 only; others are rotated before it.

use std::collections::HashMap;

use dlc_bundle::CacheLayout;
use dlc_ir::{Attention, Def, Dim, Graph, Node, NodeId, Op, Operand, Rope, ValueId};
use dlc_onnx::proto::INT32;

use super::super::builder::Name;
use super::context::Context;
use super::forms::Form;
use super::masks::window_mask;
use super::padding::last_entry;
use super::queries::{has_cache, maker, readers};
use super::rotation::rope_name;
use super::shared::define_full;
use crate::error::ExportError;
use crate::weights::{RopeTable, Stored, Wave};

/// Longest table of cosines that is written: no model comes near, a hostile configuration could
/// fill the disk.
const MAX_POSITIONS: usize = 1 << 24;

/// Which nodes are lowered together with others.
#[derive(Debug, Default)]
pub(super) struct Folds {
    /// The rotation that each attention node does itself.
    rope_of: HashMap<NodeId, Rope>,
    rope_nodes: Vec<NodeId>,
    /// The norm that is computed along with each sum.
    norm_after: HashMap<NodeId, NodeId>,
    norm_nodes: Vec<NodeId>,
}

impl Folds {
    pub fn find(graph: &Graph, caches: CacheLayout) -> Self {
        let mut folds = Self::default();
        for (id, node) in graph.nodes() {
            match node.op {
                Op::Attention(_) if caches == CacheLayout::InPlace => {
                    folds.fold_rope(graph, id, node);
                }
                Op::RmsNorm { .. } | Op::LayerNorm { .. } => folds.fold_norm(graph, id, node),
                _ => {}
            }
        }
        folds
    }

    pub fn rope_is_fused(&self, node: NodeId) -> bool {
        self.rope_nodes.contains(&node)
    }

    pub fn rope_of(&self, attention: NodeId) -> Option<&Rope> {
        self.rope_of.get(&attention)
    }

    pub fn norm_is_fused(&self, node: NodeId) -> bool {
        self.norm_nodes.contains(&node)
    }

    pub fn norm_after(&self, add: NodeId) -> Option<NodeId> {
        self.norm_after.get(&add).copied()
    }

    /// Folds the rotations of queries and keys if they are equal, of the graph's own positions,
    /// read by nothing else, fixed, and such as the operator takes: heads in multiples of 16, of
    /// which multiples of 16 are rotated.
    fn fold_rope(&mut self, graph: &Graph, id: NodeId, node: &Node) {
        let rotation = |at: usize| {
            let (maker, value) = maker(graph, *node.inputs.get(at)?)?;
            let Op::Rope(rope) = &graph.node(maker).op else {
                return None;
            };
            let positions = graph.node(maker).inputs.get(1)?;
            let own = graph
                .find_input("position_ids")
                .is_some_and(|i| *positions == Operand::Value(i.value));
            let head_dim = graph.value(value).ty.shape.last().and_then(Dim::known)? / rope.heads;
            let fits = head_dim % 16 == 0 && rope.rotated(head_dim) % 16 == 0;
            // The operator's tables don't change with the length.
            let fixed = !rope.changes_with_length();
            (own && fits && fixed && readers(graph, value) == 1).then_some((maker, rope))
        };
        let (Some((q_node, q)), Some((k_node, k))) = (rotation(0), rotation(1)) else {
            return;
        };
        if q.theta.to_bits() == k.theta.to_bits() && q.scaling == k.scaling {
            self.rope_of.insert(id, q.clone());
            self.rope_nodes.extend([q_node, k_node]);
        }
    }

    /// Folds a norm into the sum that it reads, the first norm if there are several.
    fn fold_norm(&mut self, graph: &Graph, id: NodeId, node: &Node) {
        let Some((add, _)) = node.inputs.first().and_then(|input| maker(graph, *input)) else {
            return;
        };
        let sum = graph.node(add);
        let of_values = sum.inputs.iter().all(|i| matches!(i, Operand::Value(_)));
        let parameters = &node.inputs[1..];
        let parameters_are_weights =
            !parameters.is_empty() && parameters.iter().all(|i| matches!(i, Operand::Weight(_)));
        let flat_enough = sum
            .outputs
            .iter()
            .all(|v| matches!(graph.value(*v).ty.shape.rank(), 2 | 3));
        let ty = |at: usize| {
            if let Some(Operand::Value(v)) = sum.inputs.get(at) {
                Some(&graph.value(*v).ty)
            } else {
                None
            }
        };
        let alike = ty(0) == ty(1);
        if sum.op == Op::Add
            && of_values
            && alike
            && flat_enough
            && parameters_are_weights
            && !self.norm_after.contains_key(&add)
        {
            self.norm_after.insert(add, id);
            self.norm_nodes.push(id);
        }
    }
}

/// `FusedMatMul` takes weights in the checkpoint's `[out, in]` layout, and inputs of any rank.
pub(super) fn linear(cx: &mut Context<'_>, node: &Node) -> Result<(), ExportError> {
    let (x, weight) = (cx.operand(node, 0)?, cx.operand(node, 1)?);
    if node.inputs.len() < 3 {
        return define_full(cx, node, |cx, out| {
            cx.b.microsoft("FusedMatMul", &[&x, &weight])
                .int("transB", 1)
                .into(&[out]);
        });
    }
    let bias = cx.operand(node, 2)?;
    let product =
        cx.b.microsoft("FusedMatMul", &[&x, &weight])
            .int("transB", 1)
            .out();
    define_full(cx, node, |cx, out| {
        cx.b.op("Add", &[&product, &bias]).into(&[out]);
    })
}

/// A residual sum and the norm that reads it.
pub(super) fn add_and_norm(
    cx: &mut Context<'_>,
    node: &Node,
    norm: NodeId,
) -> Result<(), ExportError> {
    let outer = cx.enter_node(norm);
    let norm = cx.graph.node(norm);
    let (operator, eps) = match norm.op {
        Op::RmsNorm { eps } => ("SkipSimplifiedLayerNormalization", eps),
        Op::LayerNorm { eps } => ("SkipLayerNormalization", eps),
        _ => {
            return Err(ExportError::module(
                "",
                "the node that reads the sum is no norm",
            ));
        }
    };
    let (sum, normed) = (Context::output_at(node, 0)?, Context::output_at(norm, 0)?);
    let mut inputs = vec![cx.operand(node, 0)?, cx.operand(node, 1)?];
    for at in 1..norm.inputs.len() {
        inputs.push(cx.operand(norm, at)?);
    }
    let (sum_name, normed_name, none) = (cx.full_name(sum), cx.full_name(normed), Name::from(""));
    let call =
        cx.b.microsoft(operator, &inputs.iter().collect::<Vec<_>>())
            .float("epsilon", eps);
    call.into(&[&normed_name, &none, &none, &sum_name]);
    cx.define(sum, Form::Full, sum_name);
    cx.define(normed, Form::Full, normed_name);
    cx.b.enter(outer);
    Ok(())
}

/// Whether `GroupQueryAttention` takes all heads of a decoder's graph: it wants their width to be a
/// multiple of 8.
pub(super) fn takes_grouped_attention(graph: &Graph) -> bool {
    let head_dims = graph
        .nodes()
        .filter_map(|(_, node)| match (&node.op, node.inputs.first()) {
            (Op::Attention(a), Some(Operand::Value(q))) if a.causal && has_cache(node) => graph
                .value(*q)
                .ty
                .shape
                .last()
                .and_then(Dim::known)
                .map(|width| width / a.heads),
            _ => None,
        });
    let mut head_dims = head_dims.peekable();
    head_dims.peek().is_some() && head_dims.all(|head_dim| head_dim % 8 == 0)
}

/// Attention in both directions: `MultiHeadAttention`, which adds no bias of its own here.
pub(super) fn attend_both_ways(
    cx: &mut Context<'_>,
    node: &Node,
    attention: &Attention,
) -> Result<(), ExportError> {
    let mut inputs = vec![
        cx.operand(node, 0)?,
        cx.operand(node, 1)?,
        cx.operand(node, 2)?,
    ];
    let mask = match node.inputs.get(3) {
        Some(_) => Some(cx.value_at(node, 3)?),
        None => None,
    };
    let mut bias = match node.inputs.get(4) {
        Some(_) => Some(cx.operand(node, 4)?),
        None => None,
    };
    if let Some(window) = attention.window {
        let q = cx.value_at(node, 0)?;
        let (dtype, seq) = (cx.ty(q).dtype, cx.ty(q).shape.0[1].clone());
        let hidden = window_mask(cx, mask, &seq, window, dtype)?;
        bias = Some(match bias {
            Some(bias) => cx.b.op("Add", &[&bias, &hidden]).out(),
            None => hidden,
        });
    } else if let Some(mask) = mask {
        let mask = cx.once(&format!("{}/keys", cx.full_name(mask)), |cx| {
            let mask = cx.full(mask)?;
            Ok(cx.b.op("Cast", &[&mask]).int("to", INT32).out())
        })?;
        inputs.extend([Name::from(""), mask]);
    }
    if let Some(bias) = bias {
        inputs.resize(5, Name::from(""));
        inputs.push(bias);
    }
    define_full(cx, node, |cx, out| {
        let call =
            cx.b.microsoft("MultiHeadAttention", &inputs.iter().collect::<Vec<_>>());
        call.int("num_heads", attention.heads as i64)
            .float("scale", attention.scale)
            .into(&[out]);
    })
}

/// A window of `w` is `local_window_size` `w`: both count the token itself (measured with ONNX
/// Runtime 1.31 on CPU).
pub(super) fn attend_causally(
    cx: &mut Context<'_>,
    node: &Node,
    attention: &Attention,
    rope: Option<&Rope>,
) -> Result<(), ExportError> {
    let before = |cx: &Context<'_>, at: usize| -> Result<ValueId, ExportError> {
        let value = cx.value_at(node, at)?;
        match (rope, cx.graph.value(value).def) {
            (Some(_), Def::Node(maker, _)) => cx.value_at(cx.graph.node(maker), 0),
            _ => Ok(value),
        }
    };
    let (q, k) = (before(cx, 0)?, before(cx, 1)?);
    let (dtype, head_dim) = (cx.ty(q).dtype, cx.width(q)? / attention.heads);
    let mask = cx.value_at(node, 3)?;
    let (last, total) = (
        last_entry(cx, mask, &cx.ty(q).shape.0[1].clone())?,
        total(cx, mask)?,
    );
    let mut inputs = vec![
        cx.full(q)?,
        cx.full(k)?,
        cx.operand(node, 2)?,
        cx.operand(node, 4)?,
        cx.operand(node, 5)?,
        last,
        total,
    ];
    if let Some(rope) = rope {
        if cx.target.context_length > MAX_POSITIONS {
            return Err(ExportError::module(
                "",
                format!("a context of {} tokens is absurd", cx.target.context_length),
            ));
        }
        inputs.extend([Wave::Cos, Wave::Sin].map(|wave| table(cx, rope, head_dim, dtype, wave)));
    }
    let values = [
        Context::output_at(node, 0)?,
        Context::output_at(node, 1)?,
        Context::output_at(node, 2)?,
    ];
    let names = values.map(|value| cx.full_name(value));
    let mut call =
        cx.b.microsoft("GroupQueryAttention", &inputs.iter().collect::<Vec<_>>())
            .int("num_heads", attention.heads as i64)
            .int("kv_num_heads", attention.kv_heads as i64)
            .float("scale", attention.scale)
            .int("do_rotary", i64::from(rope.is_some()));
    if let Some(window) = attention.window {
        call = call.int("local_window_size", window as i64);
    }
    if let Some(cap) = attention.softcap {
        call = call.float("softcap", cap);
    }
    call.into(&[&names[0], &names[1], &names[2]]);
    for (value, name) in values.into_iter().zip(names) {
        cx.define(value, Form::Full, name);
    }
    Ok(())
}

/// The length of the mask, `i32 []`.
fn total(cx: &mut Context<'_>, mask: ValueId) -> Result<Name, ExportError> {
    cx.once(&format!("{}/total", cx.full_name(mask)), |cx| {
        let (mask, one) = (cx.full(mask)?, cx.b.int(1));
        let shape = cx.b.op("Shape", &[&mask]).out();
        let total = cx.b.op("Gather", &[&shape, &one]).int("axis", 0).out();
        Ok(cx.b.op("Cast", &[&total]).int("to", INT32).out())
    })
}

/// Cosines or sines for every position, `[context_length, head_dim / 2]`, from the weight file.
fn table(
    cx: &mut Context<'_>,
    rope: &Rope,
    head_dim: usize,
    dtype: dlc_ir::DType,
    wave: Wave,
) -> Name {
    let positions = cx.target.context_length;
    let name = format!(
        "{}.{}.{positions}.{dtype}",
        rope_name(rope, rope.rotated(head_dim)),
        wave.name()
    );
    let table = RopeTable {
        name: name.clone(),
        dtype,
        positions,
        frequencies: rope.frequencies(head_dim).into(),
        factor: rope.attention_factor(),
        wave,
    };
    let name = Name::from(name);
    let shape = table.shape();
    cx.b.stored(Stored::Table(table), &name, dtype, &shape);
    name
}
