//! Lowerings that several profiles share, and what all layers share: masks and rotary tables.

use dlc_ir::{DType, Dim, Node, Rope, RopeScaling, Shape, ValueId};

use super::super::builder::{Call, Name};
use super::super::proto::{BOOL, data_type};
use super::context::{Context, Form};
use crate::error::ExportError;

pub(super) fn gather(cx: &mut Context<'_>, node: &Node) -> Result<(), ExportError> {
    let (table, ids) = (cx.operand(node, 0)?, cx.operand(node, 1)?);
    define_full(cx, node, |cx, out| cx.b.op("Gather", &[&table, &ids]).int("axis", 0).into(&[out]))
}

/// `Gemm` on rows: it takes weights in the checkpoint's `[out, in]` layout, where `MatMul` would want a transposed copy.
pub(super) fn linear(cx: &mut Context<'_>, node: &Node) -> Result<(), ExportError> {
    let value = cx.value_at(node, 0)?;
    let mut inputs = vec![cx.flat(value)?, cx.operand(node, 1)?];
    let bias = if node.inputs.len() > 2 { Some(cx.operand(node, 2)?) } else { None };
    // tract multiplies a bias by Gemm's f32 `beta`, and so takes none of another type.
    let apart = bias.clone().filter(|_| cx.ty(value).dtype != DType::F32);
    inputs.extend(bias.filter(|_| apart.is_none()));
    define_like(cx, node, Form::Flat, |cx, out| {
        let call = cx.b.op("Gemm", &inputs.iter().collect::<Vec<_>>()).int("transB", 1);
        match apart {
            None => finish_call(call, out),
            Some(bias) => {
                let product = call.out();
                finish_call(cx.b.op("Add", &[&product, &bias]), out)
            }
        }
    })
}

/// The common form of a node's values: rows if one of them is rows already, else their own shape.
pub(super) fn common_form(cx: &Context<'_>, node: &Node) -> Result<Form, ExportError> {
    for at in 0..node.inputs.len() {
        if matches!(node.inputs[at], dlc_ir::Operand::Value(_)) && !cx.has(cx.value_at(node, at)?, Form::Full) {
            return Ok(Form::Flat);
        }
    }
    Ok(Form::Full)
}

/// The value that `node` reads at `at`, in `form`.
pub(super) fn input_in(cx: &mut Context<'_>, node: &Node, at: usize, form: Form) -> Result<Name, ExportError> {
    match node.inputs.get(at) {
        Some(dlc_ir::Operand::Value(value)) if form == Form::Flat => cx.flat(*value),
        _ => cx.operand(node, at),
    }
}

pub(super) fn elementwise(cx: &mut Context<'_>, node: &Node, op: &'static str) -> Result<(), ExportError> {
    let form = common_form(cx, node)?;
    let inputs = [input_in(cx, node, 0, form)?, input_in(cx, node, 1, form)?];
    define_like(cx, node, form, |cx, out| finish_call(cx.b.op(op, &[&inputs[0], &inputs[1]]), out))
}

pub(super) fn silu(cx: &mut Context<'_>, node: &Node) -> Result<(), ExportError> {
    let form = common_form(cx, node)?;
    let x = input_in(cx, node, 0, form)?;
    let gate = cx.b.op("Sigmoid", &[&x]).out();
    define_like(cx, node, form, |cx, out| finish_call(cx.b.op("Mul", &[&x, &gate]), out))
}

pub(super) fn cast(cx: &mut Context<'_>, node: &Node, dtype: DType) -> Result<(), ExportError> {
    let form = common_form(cx, node)?;
    let x = input_in(cx, node, 0, form)?;
    define_like(cx, node, form, |cx, out| finish_call(cx.b.op("Cast", &[&x]).int("to", i64::from(data_type(dtype))), out))
}

/// Splitting off heads, and merging them again, are forms of a value; everything else is a `Reshape`.
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
    define_full(cx, node, |cx, out| cx.b.op("Reshape", &[&x, &shape]).into(&[out]))
}

/// A constant where axes at the front stay (0) and at most one further axis has a symbol (-1).
fn reshape_target(cx: &mut Context<'_>, node: &Node, form: Form, shape: &Shape) -> Result<Name, ExportError> {
    let from = &cx.ty(cx.value_at(node, 0)?).shape;
    let kept = if form == Form::Full { from.0.iter().zip(&shape.0).take_while(|(a, b)| a == b).count() } else { 0 };
    let rest = &shape.0[kept..];
    if rest.iter().filter(|d| d.known().is_none()).count() > 1 {
        return cx.shape_tensor(shape);
    }
    let numbers = rest.iter().map(|d| d.known().map_or(-1, |n| n as i64));
    let numbers: Vec<i64> = std::iter::repeat_n(0, kept).chain(numbers).collect();
    Ok(cx.b.ints(&numbers))
}

/// Adds the last operator of a node whose value has its own shape.
pub(super) fn define_full(cx: &mut Context<'_>, node: &Node, add: impl FnOnce(&mut Context<'_>, &Name)) -> Result<(), ExportError> {
    let value = Context::output_at(node, 0)?;
    let name = cx.full_name(value);
    add(cx, &name);
    cx.define(value, Form::Full, name);
    Ok(())
}

/// Adds the last operator of a node whose value is in `form`. A form that isn't the value's own shape is named after its operator.
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

/// Cosines and sines of the rotation angles, `[batch, seq, head_dim / 2]` each, computed once for all layers of one spec.
pub(super) fn rotations(cx: &mut Context<'_>, rope: &Rope, head_dim: usize, positions: ValueId, dtype: DType) -> Result<[Name; 2], ExportError> {
    let name = rope_name(rope, head_dim);
    let spec = format!("{}/{name}", cx.full_name(positions));
    let angles = cx.once(&spec, |cx| {
        let positions = cx.full(positions)?;
        let bytes = rope.frequencies(head_dim).into_iter().flat_map(f32::to_le_bytes).collect();
        let frequencies = cx.b.constant(&format!("{name}.frequencies"), DType::F32, &[head_dim / 2], bytes);
        let positions = cx.b.op("Cast", &[&positions]).int("to", i64::from(data_type(DType::F32))).out();
        let axis = cx.b.ints(&[2]);
        let column = cx.b.op("Unsqueeze", &[&positions, &axis]).out();
        Ok(cx.b.op("Mul", &[&column, &frequencies]).out())
    })?;
    let mut table = |op: &'static str| {
        cx.once(&format!("{spec}/{op}.{dtype}"), |cx| {
            let table = cx.b.op(op, &[&angles]).out();
            Ok(from_f32(cx, table, dtype))
        })
    };
    Ok([table("Cos")?, table("Sin")?])
}

/// A readable name that equal specs, and only those, have in common.
pub(super) fn rope_name(rope: &Rope, head_dim: usize) -> String {
    let scaling = match rope.scaling {
        RopeScaling::None => String::new(),
        RopeScaling::Linear { factor } => format!(".linear{factor:?}"),
        RopeScaling::Llama3 { factor, low, high, original } => format!(".llama3-{factor:?}-{low:?}-{high:?}-{original}"),
    };
    format!("rope.theta{:?}.dim{head_dim}{scaling}", rope.theta)
}

/// `name`, single precision, in the element type of the graph.
pub(super) fn from_f32(cx: &mut Context<'_>, name: Name, dtype: DType) -> Name {
    if dtype == DType::F32 { name } else { cx.b.op("Cast", &[&name]).int("to", i64::from(data_type(dtype))).out() }
}

/// `name`, of the element type of the graph, in single precision.
pub(super) fn to_f32(cx: &mut Context<'_>, name: &Name, dtype: DType) -> Name {
    if dtype == DType::F32 { name.clone() } else { cx.b.op("Cast", &[name]).int("to", i64::from(data_type(DType::F32))).out() }
}

/// What is added to the scores of keys that a token doesn't see. Finite, so that a row that sees nothing stays finite.
fn hidden_score(dtype: DType) -> f32 {
    if dtype == DType::F16 { -1e4 } else { -1e9 }
}

/// The mask that attention adds to its scores, `[batch, 1, seq, total]`: 0 where a token sees a key, else a large negative number.
/// Computed once for all layers with the same window.
pub(super) fn additive_mask(cx: &mut Context<'_>, mask: ValueId, seq: &Dim, window: Option<usize>, dtype: DType) -> Result<Name, ExportError> {
    let window_name = window.map(|w| format!(".window{w}")).unwrap_or_default();
    let scope = format!("{}/hidden{window_name}.{seq}.{dtype}", cx.full_name(mask));
    cx.once(&scope, |cx| {
        let rows = rows(cx, mask, seq)?;
        let mut visible = visible(cx, mask, seq, &rows)?;
        if let Some(window) = window {
            let near = near(cx, mask, seq, &rows, window)?;
            visible = cx.b.op("And", &[&visible, &near]).out();
        }
        let (zero, hidden) = (cx.b.float(dtype, 0.0), cx.b.float(dtype, hidden_score(dtype)));
        Ok(cx.b.op("Where", &[&visible, &zero, &hidden]).out())
    })
}

/// Indices of this run's tokens among all tokens, `[seq]`: `past .. total`.
fn rows(cx: &mut Context<'_>, mask: ValueId, seq: &Dim) -> Result<Name, ExportError> {
    let key = format!("{}/rows.{seq}", cx.full_name(mask));
    let (seq, total) = (length(cx, seq)?, length(cx, &total(cx, mask))?);
    cx.once(&key, |cx| {
        let past = cx.b.op("Sub", &[&total, &seq]).out();
        let one = cx.b.int(1);
        Ok(cx.b.op("Range", &[&past, &total, &one]).out())
    })
}

/// How many tokens there are, past ones included.
fn total(cx: &Context<'_>, mask: ValueId) -> Dim {
    cx.ty(mask).shape.0.get(1).cloned().unwrap_or_else(|| Dim::from(0))
}

/// The number that `dim` stands for, without axes.
fn length(cx: &mut Context<'_>, dim: &Dim) -> Result<Name, ExportError> {
    if let Some(n) = dim.known() {
        return Ok(cx.b.int(n as i64));
    }
    let vector = cx.axis(dim)?;
    cx.once(&format!("shape/scalar/{dim}"), |cx| {
        let axis = cx.b.ints(&[0]);
        Ok(cx.b.op("Squeeze", &[&vector, &axis]).out())
    })
}

/// Which keys are tokens (mask 1) and not ahead of the row, `bool [batch, 1, seq, total]`.
fn visible(cx: &mut Context<'_>, mask: ValueId, seq: &Dim, rows: &Name) -> Result<Name, ExportError> {
    let total = length(cx, &total(cx, mask))?;
    cx.once(&format!("{}/visible.{seq}", cx.full_name(mask)), |cx| {
        let (zero, one) = (cx.b.int(0), cx.b.int(1));
        let columns = cx.b.op("Range", &[&zero, &total, &one]).out();
        let axis = cx.b.ints(&[1]);
        let rows = cx.b.op("Unsqueeze", &[rows, &axis]).out();
        let causal = cx.b.op("LessOrEqual", &[&columns, &rows]).out();
        let mask = cx.full(mask)?;
        let live = cx.b.op("Cast", &[&mask]).int("to", BOOL).out();
        let axes = cx.b.ints(&[1, 2]);
        let live = cx.b.op("Unsqueeze", &[&live, &axes]).out();
        Ok(cx.b.op("And", &[&live, &causal]).out())
    })
}

/// Which keys lie within `window` tokens of the row, counted over tokens whose mask is 1, `bool [batch, 1, seq, total]`.
fn near(cx: &mut Context<'_>, mask: ValueId, seq: &Dim, rows: &Name, window: usize) -> Result<Name, ExportError> {
    let distance = cx.once(&format!("{}/distance.{seq}", cx.full_name(mask)), |cx| {
        let mask = cx.full(mask)?;
        let axis = cx.b.int(1);
        let counts = cx.b.op("CumSum", &[&mask, &axis]).out();
        let mine = cx.b.op("Gather", &[&counts, rows]).int("axis", 1).out();
        let (axes, axis) = (cx.b.ints(&[1, 2]), cx.b.ints(&[1, 3]));
        let mine = cx.b.op("Unsqueeze", &[&mine, &axis]).out();
        let theirs = cx.b.op("Unsqueeze", &[&counts, &axes]).out();
        Ok(cx.b.op("Sub", &[&mine, &theirs]).out())
    })?;
    let window = cx.b.int(window as i64);
    Ok(cx.b.op("Less", &[&distance, &window]).out())
}
