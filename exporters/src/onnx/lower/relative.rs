//! Positions: the rows of learned tables, `DeBERTa`'s relative ones, and one token of a text.

use dlc_bundle::Profile;
use dlc_ir::{BucketedBias, DType, Dim, DisentangledBias, Node, Shape};
use dlc_onnx::proto::data_type;

use super::super::builder::Name;
use super::context::Context;
use super::forms::Form;
use super::masks::length;
use super::portable::heads_first;
use super::shared::define_full;
use crate::error::ExportError;

/// `0, 1, 2 ...` in every row, or `RoBERTa`'s count that leaves padding out.
pub(super) fn positions(
    cx: &mut Context<'_>,
    node: &Node,
    padding: Option<u32>,
) -> Result<(), ExportError> {
    let ids = cx.value_at(node, 0)?;
    let shape = cx.ty(ids).shape.clone();
    let Some(padding) = padding else {
        let (seq, full) = (length(cx, &shape.0[1])?, cx.exact_shape(&shape)?);
        let counted = cx.once(&format!("positions.{shape}"), |cx| {
            let (zero, one) = (cx.b.int(0), cx.b.int(1));
            let row = cx.b.op("Range", &[&zero, &seq, &one]).out();
            Ok(cx.b.op("Expand", &[&row, &full]).out())
        })?;
        cx.define(Context::output_at(node, 0)?, Form::Full, counted);
        return Ok(());
    };
    let (ids, padding, axis) = (cx.full(ids)?, cx.b.int(i64::from(padding)), cx.b.int(1));
    let is_padding = cx.b.op("Equal", &[&ids, &padding]).out();
    let is_token = cx.b.op("Not", &[&is_padding]).out();
    // Counted in single precision, which is exact far beyond any context: tract's CumSum doesn't
    // take integers made by a Cast.
    let is_token =
        cx.b.op("Cast", &[&is_token])
            .int("to", i64::from(data_type(DType::F32)))
            .out();
    let count = cx.b.op("CumSum", &[&is_token, &axis]).out();
    let count = cx.b.op("Mul", &[&count, &is_token]).out();
    let count =
        cx.b.op("Cast", &[&count])
            .int("to", i64::from(data_type(DType::I64)))
            .out();
    define_full(cx, node, |cx, out| {
        cx.b.op("Add", &[&count, &padding]).into(&[out]);
    })
}

/// The row of each text's last token: the largest index of a token that isn't padding says where.
pub(super) fn last_token(
    cx: &mut Context<'_>,
    node: &Node,
    padding: u32,
) -> Result<(), ExportError> {
    let (x, ids) = (cx.operand(node, 0)?, cx.value_at(node, 1)?);
    let seq = length(cx, &cx.ty(ids).shape.0[1].clone())?;
    let (ids, padding) = (cx.full(ids)?, cx.b.int(i64::from(padding)));
    let (zero, one) = (cx.b.int(0), cx.b.int(1));
    let is_padding = cx.b.op("Equal", &[&ids, &padding]).out();
    let indices = cx.b.op("Range", &[&zero, &seq, &one]).out();
    let indices = cx.b.op("Where", &[&is_padding, &zero, &indices]).out();
    let last = largest(cx, &indices);
    rows_at(cx, node, &x, &last)
}

/// The row of each text's first token that is `id`, or the text's largest: of such tokens the one
/// whose index is the largest once negated.
pub(super) fn first_token(
    cx: &mut Context<'_>,
    node: &Node,
    id: Option<u32>,
) -> Result<(), ExportError> {
    let (x, ids) = (cx.operand(node, 0)?, cx.value_at(node, 1)?);
    let seq = length(cx, &cx.ty(ids).shape.0[1].clone())?;
    let ids = cx.full(ids)?;
    let wanted = match id {
        Some(id) => cx.b.int(i64::from(id)),
        None => largest(cx, &ids),
    };
    let (zero, one) = (cx.b.int(0), cx.b.int(1));
    let found = cx.b.op("Equal", &[&ids, &wanted]).out();
    let indices = cx.b.op("Range", &[&zero, &seq, &one]).out();
    let (negated, lowest) = (
        cx.b.op("Neg", &[&indices]).out(),
        cx.b.int(i64::from(i32::MIN)),
    );
    let negated = cx.b.op("Where", &[&found, &negated, &lowest]).out();
    let most = largest(cx, &negated);
    let is_first = cx.b.op("Equal", &[&negated, &most]).out();
    let is_first = cx.b.op("And", &[&is_first, &found]).out();
    let first = cx.b.op("Where", &[&is_first, &indices, &zero]).out();
    let first = largest(cx, &first);
    rows_at(cx, node, &x, &first)
}

/// The largest of each row of integers, `[batch, 1]`.
fn largest(cx: &mut Context<'_>, rows: &Name) -> Name {
    let largest = match cx.target.profile {
        Profile::Portable => cx.b.op("ReduceMax", &[rows]).ints("axes", &[1]),
        Profile::Onnx | Profile::Ort => {
            let axes = cx.b.ints(&[1]);
            cx.b.op("ReduceMax", &[rows, &axes])
        }
    };
    largest.int("keepdims", 1).out()
}

/// Defines the node as the rows of `x [batch, seq, width]` at `places [batch, 1]`.
fn rows_at(cx: &mut Context<'_>, node: &Node, x: &Name, places: &Name) -> Result<(), ExportError> {
    define_full(cx, node, |cx, out| {
        cx.b.op("GatherND", &[x, places])
            .int("batch_dims", 1)
            .into(&[out]);
    })
}

/// Scores of all rows of a table, of which each pair of tokens takes the one of its distance.
pub(super) fn disentangled_bias(
    cx: &mut Context<'_>,
    node: &Node,
    bias: &DisentangledBias,
) -> Result<(), ExportError> {
    let q = cx.value_at(node, 0)?;
    let (dtype, seq) = (cx.ty(q).dtype, cx.ty(q).shape.0[1].clone());
    let rows = rows(cx, bias, &seq)?;
    let shape = cx.exact_shape(&Shape(vec![
        cx.ty(q).shape.0[0].clone(),
        bias.heads.into(),
        seq.clone(),
        seq,
    ]))?;
    let mut tables = 2..;
    let mut parts = Vec::new();
    if bias.c2p {
        let scores = scores(cx, node, 0, tables.next().unwrap_or_default(), bias.heads)?;
        let rows = cx.once(&format!("{rows}/expanded.{}", bias.heads), |cx| {
            Ok(cx.b.op("Expand", &[&rows, &shape]).out())
        })?;
        parts.push(
            cx.b.op("GatherElements", &[&scores, &rows])
                .int("axis", 3)
                .out(),
        );
    }
    if bias.p2c {
        let scores = scores(cx, node, 1, tables.next().unwrap_or_default(), bias.heads)?;
        // Row j of keys, column i of queries: the distance is still i - j.
        let rows = cx.once(&format!("{rows}/transposed.{}", bias.heads), |cx| {
            let turned = cx.b.op("Transpose", &[&rows]).ints("perm", &[1, 0]).out();
            Ok(cx.b.op("Expand", &[&turned, &shape]).out())
        })?;
        let looked =
            cx.b.op("GatherElements", &[&scores, &rows])
                .int("axis", 3)
                .out();
        parts.push(
            cx.b.op("Transpose", &[&looked])
                .ints("perm", &[0, 1, 3, 2])
                .out(),
        );
    }
    let sum = match &parts[..] {
        [a, b] => cx.b.op("Add", &[a, b]).out(),
        [one] => one.clone(),
        _ => {
            return Err(ExportError::module(
                "",
                "neither content nor positions look",
            ));
        }
    };
    let scale = cx.b.float(dtype, bias.scale);
    define_full(cx, node, |cx, out| {
        cx.b.op("Mul", &[&sum, &scale]).into(&[out]);
    })
}

/// The entry of the table's column for each pair of tokens, computed once for all layers that share
/// the table.
pub(super) fn bucketed_bias(
    cx: &mut Context<'_>,
    node: &Node,
    bias: &BucketedBias,
) -> Result<(), ExportError> {
    let BucketedBias { buckets, until } = *bias;
    let seq = cx.ty(cx.value_at(node, 0)?).shape.0[1].clone();
    let table = cx.operand(node, 1)?;
    let scope = format!("distance.{seq}.buckets{buckets}.{until}");
    let rows = rows_of(cx, &scope, &seq, until, |distance| bias.bucket(distance))?;
    let scores = cx.once(&format!("{scope}/{table}"), |cx| {
        let numbers = cx.b.op("Gather", &[&table, &rows]).int("axis", 0).out();
        let axis = cx.b.ints(&[0]);
        let turned =
            cx.b.op("Transpose", &[&numbers])
                .ints("perm", &[2, 0, 1])
                .out();
        Ok(cx.b.op("Unsqueeze", &[&turned, &axis]).out())
    })?;
    cx.define(Context::output_at(node, 0)?, Form::Full, scores);
    Ok(())
}

/// The row of the tables for each query and key, `i64 [seq, seq]`.
fn rows(cx: &mut Context<'_>, bias: &DisentangledBias, seq: &Dim) -> Result<Name, ExportError> {
    let scope = format!(
        "distance.{seq}.span{}.{}",
        bias.span,
        bias.log_until
            .map_or_else(|| "linear".to_owned(), |until| format!("log{until}"))
    );
    rows_of(cx, &scope, seq, bias.reach(), |distance| bias.row(distance))
}

/// What `row` says of each query's distance from each key, `i64 [seq, seq]`, computed once for all
/// layers as `scope`. Beyond `reach` it doesn't change, on either side.
fn rows_of(
    cx: &mut Context<'_>,
    scope: &str,
    seq: &Dim,
    reach: usize,
    row: impl Fn(i64) -> usize,
) -> Result<Name, ExportError> {
    let reach = reach as i64;
    let seq = length(cx, seq)?;
    cx.once(scope, |cx| {
        let table: Vec<i64> = (-reach..=reach)
            .map(|distance| row(distance) as i64)
            .collect();
        let bytes = table.iter().flat_map(|row| row.to_le_bytes()).collect();
        let table =
            cx.b.constant(&format!("{scope}.rows"), DType::I64, &[table.len()], bytes);
        let (zero, one, axis) = (cx.b.int(0), cx.b.int(1), cx.b.ints(&[1]));
        let (least, most) = (cx.b.int(-reach), cx.b.int(reach));
        let keys = cx.b.op("Range", &[&zero, &seq, &one]).out();
        let queries = cx.b.op("Unsqueeze", &[&keys, &axis]).out();
        let distance = cx.b.op("Sub", &[&queries, &keys]).out();
        let distance = cx.b.op("Max", &[&distance, &least]).out();
        let distance = cx.b.op("Min", &[&distance, &most]).out();
        let entry = cx.b.op("Add", &[&distance, &most]).out();
        Ok(cx.b.op("Gather", &[&table, &entry]).int("axis", 0).out())
    })
}

/// Queries or keys (the operand `content`) on every row of the operand `table`:
/// `[batch, heads, seq, 2 span]`.
fn scores(
    cx: &mut Context<'_>,
    node: &Node,
    content: usize,
    table: usize,
    heads: usize,
) -> Result<Name, ExportError> {
    let width = cx.width(cx.value_at(node, content)?)?;
    let content = heads_first(cx, node, content, heads)?;
    let table = cx.operand(node, table)?;
    let shape = cx.b.ints(&[-1, heads as i64, (width / heads) as i64]);
    let table = cx.b.op("Reshape", &[&table, &shape]).out();
    let table =
        cx.b.op("Transpose", &[&table])
            .ints("perm", &[1, 2, 0])
            .out();
    Ok(cx.b.op("MatMul", &[&content, &table]).out())
}
