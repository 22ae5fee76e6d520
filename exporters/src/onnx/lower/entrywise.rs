//! Ops on each entry by itself: sums, products, activations.

use dlc_bundle::Profile;
use dlc_ir::{DType, Node, Operand, Shape};
use dlc_onnx::proto::data_type;

use super::super::builder::Name;
use super::context::Context;
use super::forms::Form;
use super::shared::{common_form, define_like, finish_call, from_f32, input_in, to_f32};
use crate::error::ExportError;

/// A sum or product; its second operand may broadcast to the first.
pub(super) fn binary(
    cx: &mut Context<'_>,
    node: &Node,
    op: &'static str,
) -> Result<(), ExportError> {
    let form = broadcast_form(cx, node)?;
    let inputs = [input_in(cx, node, 0, form)?, input_in(cx, node, 1, form)?];
    define_like(cx, node, form, |cx, out| {
        finish_call(cx.b.op(op, &[&inputs[0], &inputs[1]]), out)
    })
}

/// `x * (1 + scale) + shift`.
pub(super) fn modulate(cx: &mut Context<'_>, node: &Node) -> Result<(), ExportError> {
    let form = broadcast_form(cx, node)?;
    let dtype = cx.ty(Context::output_at(node, 0)?).dtype;
    let [x, scale, shift] = [
        input_in(cx, node, 0, form)?,
        input_in(cx, node, 1, form)?,
        input_in(cx, node, 2, form)?,
    ];
    let one = cx.b.float(dtype, 1.0);
    let factor = cx.b.op("Add", &[&scale, &one]).out();
    let scaled = cx.b.op("Mul", &[&x, &factor]).out();
    define_like(cx, node, form, |cx, out| {
        finish_call(cx.b.op("Add", &[&scaled, &shift]), out)
    })
}

/// The common form of a node's values, which is their own shape if one of them broadcasts along
/// other axes than the first ones.
fn broadcast_form(cx: &Context<'_>, node: &Node) -> Result<Form, ExportError> {
    let shape = &cx.ty(Context::output_at(node, 0)?).shape;
    let fits = |other: &Shape| other == shape || other.rank() == 1 && other.last() == shape.last();
    let alike = node.inputs.iter().all(|operand| match operand {
        Operand::Value(value) => fits(&cx.ty(*value).shape),
        Operand::Weight(weight) => {
            cx.target.weights[*weight].shape.len() == 1
                && fits(&cx.target.weights[*weight].ty().shape)
        }
    });
    if alike {
        common_form(cx, node)
    } else {
        Ok(Form::Full)
    }
}

/// An operator of one input.
pub(super) fn unary(
    cx: &mut Context<'_>,
    node: &Node,
    op: &'static str,
) -> Result<(), ExportError> {
    with_last(cx, node, |_, x| Ok((op, vec![x.clone()])))
}

pub(super) fn silu(cx: &mut Context<'_>, node: &Node) -> Result<(), ExportError> {
    with_last(cx, node, |cx, x| {
        let gate = cx.b.op("Sigmoid", &[x]).out();
        Ok(("Mul", vec![x.clone(), gate]))
    })
}

pub(super) fn scale(cx: &mut Context<'_>, node: &Node, factor: f32) -> Result<(), ExportError> {
    let dtype = cx.ty(Context::output_at(node, 0)?).dtype;
    with_last(cx, node, |cx, x| {
        let factor = cx.b.float(dtype, factor);
        Ok(("Mul", vec![x.clone(), factor]))
    })
}

pub(super) fn clip(cx: &mut Context<'_>, node: &Node, limit: f32) -> Result<(), ExportError> {
    let dtype = cx.ty(Context::output_at(node, 0)?).dtype;
    with_last(cx, node, |cx, x| {
        let bounds = [-limit, limit].map(|bound| cx.b.float(dtype, bound));
        Ok(("Clip", [vec![x.clone()], bounds.to_vec()].concat()))
    })
}

pub(super) fn cast(cx: &mut Context<'_>, node: &Node, dtype: DType) -> Result<(), ExportError> {
    let form = common_form(cx, node)?;
    let x = input_in(cx, node, 0, form)?;
    define_like(cx, node, form, |cx, out| {
        finish_call(
            cx.b.op("Cast", &[&x])
                .int("to", i64::from(data_type(dtype))),
            out,
        )
    })
}

/// ai.onnx has `Gelu` from opset 20 on. Primitives compute in single precision whatever the graph's
/// element type, in the order that runtimes fuse.
pub(super) fn gelu(cx: &mut Context<'_>, node: &Node, tanh: bool) -> Result<(), ExportError> {
    let dtype = cx.ty(Context::output_at(node, 0)?).dtype;
    let form = common_form(cx, node)?;
    let x = input_in(cx, node, 0, form)?;
    let x = to_f32(cx, &x, dtype);
    if cx.target.profile != Profile::Portable && dtype == DType::F32 {
        let approximate = if tanh { "tanh" } else { "none" };
        return define_like(cx, node, form, |cx, out| {
            finish_call(cx.b.op("Gelu", &[&x]).text("approximate", approximate), out)
        });
    }
    let (one, half) = (cx.b.float(DType::F32, 1.0), cx.b.float(DType::F32, 0.5));
    let curve = if tanh {
        by_tanh(cx, &x)
    } else {
        by_erf(cx, &x)
    };
    let sum = cx.b.op("Add", &[&curve, &one]).out();
    if dtype == DType::F32 {
        let product = cx.b.op("Mul", &[&x, &sum]).out();
        return define_like(cx, node, form, |cx, out| {
            finish_call(cx.b.op("Mul", &[&product, &half]), out)
        });
    }
    let product = cx.b.op("Mul", &[&x, &sum]).out();
    let product = cx.b.op("Mul", &[&product, &half]).out();
    let rounded = from_f32(cx, product, dtype);
    cx.define(Context::output_at(node, 0)?, form, rounded);
    Ok(())
}

/// `erf(x / sqrt(2))`.
fn by_erf(cx: &mut Context<'_>, x: &Name) -> Name {
    let root = cx.b.float(DType::F32, std::f32::consts::SQRT_2);
    let divided = cx.b.op("Div", &[x, &root]).out();
    cx.b.op("Erf", &[&divided]).out()
}

/// `tanh(sqrt(2 / pi) (x + 0.044715 x^3))`.
fn by_tanh(cx: &mut Context<'_>, x: &Name) -> Name {
    let [cubic, root] =
        [0.044_715, (2.0 / std::f32::consts::PI).sqrt()].map(|c| cx.b.float(DType::F32, c));
    let three = cx.b.float(DType::F32, 3.0);
    let cube = cx.b.op("Pow", &[x, &three]).out();
    let cube = cx.b.op("Mul", &[&cube, &cubic]).out();
    let sum = cx.b.op("Add", &[x, &cube]).out();
    let scaled = cx.b.op("Mul", &[&sum, &root]).out();
    cx.b.op("Tanh", &[&scaled]).out()
}

/// Lowers a node of one input to an operator that `last` chooses after it has added what comes
/// before; takes and gives any form.
fn with_last(
    cx: &mut Context<'_>,
    node: &Node,
    last: impl FnOnce(&mut Context<'_>, &Name) -> Result<(&'static str, Vec<Name>), ExportError>,
) -> Result<(), ExportError> {
    let form = common_form(cx, node)?;
    let x = input_in(cx, node, 0, form)?;
    let (op, inputs) = last(cx, &x)?;
    define_like(cx, node, form, |cx, out| {
        finish_call(cx.b.op(op, &inputs.iter().collect::<Vec<_>>()), out)
    })
}
