//! Lowerings that several profiles share.

use dlc_ir::{DType, Node, Operand, Shape};
use dlc_onnx::proto::data_type;

use super::super::builder::{Call, Name};
use super::context::Context;
use super::forms::Form;
use crate::error::ExportError;

pub(super) fn gather(cx: &mut Context<'_>, node: &Node) -> Result<(), ExportError> {
    let (table, ids) = (cx.operand(node, 0)?, cx.operand(node, 1)?);
    define_full(cx, node, |cx, out| {
        cx.b.op("Gather", &[&table, &ids])
            .int("axis", 0)
            .into(&[out]);
    })
}

/// `MatMul` on rows. `Gemm` where the matrix is stored in the checkpoint's layout, `[out, in]`,
/// since something else reads it too.
pub(super) fn linear(cx: &mut Context<'_>, node: &Node) -> Result<(), ExportError> {
    let (x, dtype) = if let Some(Operand::Weight(table)) = node.inputs.first() {
        // A table that every run multiplies alike; runtimes fold it.
        (cx.operand(node, 0)?, cx.target.weights[*table].dtype)
    } else {
        let value = cx.value_at(node, 0)?;
        (cx.flat(value)?, cx.ty(value).dtype)
    };
    let by_matmul = cx.is_transposed(node, 1);
    let mut inputs = vec![x, cx.operand(node, 1)?];
    let bias = if node.inputs.len() > 2 {
        Some(cx.operand(node, 2)?)
    } else {
        None
    };
    // tract multiplies a bias by Gemm's f32 `beta`, and so takes none of another type.
    let apart = bias.clone().filter(|_| by_matmul || dtype != DType::F32);
    inputs.extend(bias.filter(|_| apart.is_none()));
    define_like(cx, node, Form::Flat, |cx, out| {
        let inputs: Vec<_> = inputs.iter().collect();
        let call = if by_matmul {
            cx.b.op("MatMul", &inputs)
        } else {
            cx.b.op("Gemm", &inputs).int("transB", 1)
        };
        match apart {
            None => finish_call(call, out),
            Some(bias) => {
                let product = call.out();
                finish_call(cx.b.op("Add", &[&product, &bias]), out)
            }
        }
    })
}

/// Rows times a matrix.
pub(super) struct Product {
    pub rows: Name,
    pub matrix: Name,
    /// Whether the matrix is `[in, out]`, not `[out, in]`.
    pub is_transposed: bool,
    pub bias: Option<Name>,
}

impl Product {
    /// Adds it, with its output named `out` or after itself.
    pub fn finish(&self, cx: &mut Context<'_>, out: Option<&Name>) -> Name {
        let inputs = [Some(&self.rows), Some(&self.matrix), self.bias.as_ref()];
        let inputs: Vec<_> = inputs.into_iter().flatten().collect();
        let call = match (self.is_transposed, &self.bias) {
            (true, None) => cx.b.op("MatMul", &inputs),
            (true, Some(_)) => cx.b.op("Gemm", &inputs),
            (false, _) => cx.b.op("Gemm", &inputs).int("transB", 1),
        };
        finish_call(call, out)
    }
}

/// The common form of a node's values: rows if one of them is rows already, else their own shape.
pub(super) fn common_form(cx: &Context<'_>, node: &Node) -> Result<Form, ExportError> {
    for at in 0..node.inputs.len() {
        if matches!(node.inputs[at], Operand::Value(_))
            && !cx.has(cx.value_at(node, at)?, Form::Full)
        {
            return Ok(Form::Flat);
        }
    }
    Ok(Form::Full)
}

/// The value that `node` reads at `at`, in `form`.
pub(super) fn input_in(
    cx: &mut Context<'_>,
    node: &Node,
    at: usize,
    form: Form,
) -> Result<Name, ExportError> {
    match node.inputs.get(at) {
        Some(Operand::Value(value)) if form == Form::Flat => cx.flat(*value),
        _ => cx.operand(node, at),
    }
}

pub(super) fn slice(
    cx: &mut Context<'_>,
    node: &Node,
    axis: usize,
    start: usize,
    len: usize,
) -> Result<(), ExportError> {
    let x = cx.operand(node, 0)?;
    let [start, end, axis] = [start, start + len, axis].map(|n| cx.b.ints(&[n as i64]));
    define_full(cx, node, |cx, out| {
        cx.b.op("Slice", &[&x, &start, &end, &axis]).into(&[out]);
    })
}

pub(super) fn concat(cx: &mut Context<'_>, node: &Node, axis: usize) -> Result<(), ExportError> {
    let parts = (0..node.inputs.len())
        .map(|at| cx.operand(node, at))
        .collect::<Result<Vec<_>, _>>()?;
    define_full(cx, node, |cx, out| {
        cx.b.op("Concat", &parts.iter().collect::<Vec<_>>())
            .int("axis", axis as i64)
            .into(&[out]);
    })
}

pub(super) fn transpose(
    cx: &mut Context<'_>,
    node: &Node,
    axes: &[usize],
) -> Result<(), ExportError> {
    let x = cx.operand(node, 0)?;
    let axes: Vec<i64> = axes.iter().map(|&axis| axis as i64).collect();
    define_full(cx, node, |cx, out| {
        cx.b.op("Transpose", &[&x]).ints("perm", &axes).into(&[out]);
    })
}

/// In opset 17 and later alike. Sums are in single precision whatever the graph's element type
/// (`stash_type`). The operator has no form without a scale, so a norm without parameters is scaled
/// by ones.
pub(super) fn layer_norm(cx: &mut Context<'_>, node: &Node, eps: f32) -> Result<(), ExportError> {
    let form = common_form(cx, node)?;
    let mut inputs = vec![input_in(cx, node, 0, form)?];
    if node.inputs.len() == 1 {
        let value = Context::output_at(node, 0)?;
        inputs.push(cx.b.filled(cx.ty(value).dtype, cx.width(value)?, 1.0));
    }
    for at in 1..node.inputs.len() {
        inputs.push(cx.operand(node, at)?);
    }
    define_like(cx, node, form, |cx, out| {
        let call =
            cx.b.op("LayerNormalization", &inputs.iter().collect::<Vec<_>>())
                .int("axis", -1)
                .float("epsilon", eps);
        finish_call(call, out)
    })
}

/// Splitting off heads, and merging them again, are forms of a value; everything else is a
/// `Reshape`.
pub(super) fn reshape(cx: &mut Context<'_>, node: &Node, shape: &Shape) -> Result<(), ExportError> {
    let (from, to) = (cx.value_at(node, 0)?, Context::output_at(node, 0)?);
    let heads = |split: &Shape, merged: &Shape| match (split.0.as_slice(), merged.0.as_slice()) {
        ([a, b, heads, _], [c, d, _]) if a == c && b == d => heads.known(),
        _ => None,
    };
    if let Some(heads) = heads(shape, &cx.ty(from).shape) {
        let name = cx.heads(from, heads)?;
        cx.define(to, Form::Full, name);
        return Ok(());
    }
    if let Some(heads) = heads(&cx.ty(from).shape, shape) {
        let name = cx.full(from)?;
        cx.define(to, Form::Heads(heads), name);
        return Ok(());
    }
    let form = common_form(cx, node)?;
    let x = input_in(cx, node, 0, form)?;
    let shape = reshape_target(cx, node, form, shape)?;
    define_full(cx, node, |cx, out| {
        cx.b.op("Reshape", &[&x, &shape]).into(&[out]);
    })
}

/// A constant where axes at the front stay (0) and at most one further axis has a symbol (-1).
fn reshape_target(
    cx: &mut Context<'_>,
    node: &Node,
    form: Form,
    shape: &Shape,
) -> Result<Name, ExportError> {
    let from = &cx.ty(cx.value_at(node, 0)?).shape;
    let kept = if form == Form::Full {
        from.0
            .iter()
            .zip(&shape.0)
            .take_while(|(a, b)| a == b)
            .count()
    } else {
        0
    };
    let rest = &shape.0[kept..];
    if rest.iter().filter(|d| d.known().is_none()).count() > 1 {
        return cx.shape_tensor(shape);
    }
    let numbers = rest.iter().map(|d| d.known().map_or(-1, |n| n as i64));
    let numbers: Vec<i64> = std::iter::repeat_n(0, kept).chain(numbers).collect();
    Ok(cx.b.ints(&numbers))
}

/// Adds the last operator of a node whose value has its own shape.
pub(super) fn define_full(
    cx: &mut Context<'_>,
    node: &Node,
    add: impl FnOnce(&mut Context<'_>, &Name),
) -> Result<(), ExportError> {
    let value = Context::output_at(node, 0)?;
    let name = cx.full_name(value);
    add(cx, &name);
    cx.define(value, Form::Full, name);
    Ok(())
}

/// Adds the last operator of a node whose value is in `form`. A form that isn't the value's own
/// shape is named after its operator.
pub(super) fn define_like(
    cx: &mut Context<'_>,
    node: &Node,
    form: Form,
    add: impl FnOnce(&mut Context<'_>, Option<&Name>) -> Name,
) -> Result<(), ExportError> {
    let value = Context::output_at(node, 0)?;
    let own_shape = form == Form::Full || form == Form::Flat && cx.ty(value).shape.rank() == 2;
    let name = own_shape.then(|| cx.full_name(value));
    let made = add(cx, name.as_ref());
    cx.define(value, if own_shape { Form::Full } else { form }, made);
    Ok(())
}

/// Adds `call`, with its output named `name` or after itself.
pub(super) fn finish_call(call: Call<'_>, name: Option<&Name>) -> Name {
    match name {
        Some(name) => {
            call.into(&[name]);
            name.clone()
        }
        None => call.out(),
    }
}

/// `name`, single precision, in the element type of the graph.
pub(super) fn from_f32(cx: &mut Context<'_>, name: Name, dtype: DType) -> Name {
    if dtype == DType::F32 {
        name
    } else {
        cx.b.op("Cast", &[&name])
            .int("to", i64::from(data_type(dtype)))
            .out()
    }
}

/// `name`, of the element type of the graph, in single precision.
pub(super) fn to_f32(cx: &mut Context<'_>, name: &Name, dtype: DType) -> Name {
    if dtype == DType::F32 {
        name.clone()
    } else {
        cx.b.op("Cast", &[name])
            .int("to", i64::from(data_type(DType::F32)))
            .out()
    }
}
