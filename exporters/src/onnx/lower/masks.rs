//! Masks: what attention adds to the scores of keys that a query doesn't see. Computed once for all
//! layers.

use dlc_ir::{DType, Dim, ValueId};
use dlc_onnx::proto::{BOOL, data_type};

use super::super::builder::Name;
use super::context::Context;
use crate::error::ExportError;

/// What is added to the scores of keys that a token doesn't see. Finite, so that a row that sees
/// nothing stays finite.
fn hidden_score(dtype: DType) -> f32 {
    if dtype == DType::F16 { -1e4 } else { -1e9 }
}

/// Lets every token be seen, so that the graph takes no `attention_mask`.
pub(super) fn see_every_token(cx: &mut Context<'_>) -> Result<(), ExportError> {
    let input = |name| cx.graph.find_input(name).map(|input| input.value);
    let (Some(ids), Some(mask)) = (input("input_ids"), input("attention_mask")) else {
        return Ok(());
    };
    let outer = cx.b.enter("attention_mask/all".to_owned());
    let ids = cx.full(ids)?;
    // Of ones that are spread over the shape tract 0.23 makes a constant without the batch.
    let all = cx.b.op("Equal", &[&ids, &ids]).out();
    let integer = i64::from(data_type(DType::I64));
    let ones = cx.b.op("Cast", &[&all]).int("to", integer).out();
    cx.b.enter(outer);
    cx.stand_in(mask, ones);
    Ok(())
}

/// The mask that attention adds to its scores, `[batch, 1, seq, total]`: 0 where a token sees a
/// key, else a large negative number. Computed once for all layers with the same window.
pub(super) fn additive_mask(
    cx: &mut Context<'_>,
    mask: ValueId,
    seq: &Dim,
    window: Option<usize>,
    dtype: DType,
) -> Result<Name, ExportError> {
    let window_name = window.map(|w| format!(".window{w}")).unwrap_or_default();
    let scope = format!("{}/hidden{window_name}.{seq}.{dtype}", cx.full_name(mask));
    cx.once(&scope, |cx| {
        let rows = rows(cx, mask, seq)?;
        let mut visible = visible(cx, mask, seq, &rows)?;
        if let Some(window) = window {
            let near = near(cx, mask, seq, &rows, window)?;
            visible = cx.b.op("And", &[&visible, &near]).out();
        }
        let (zero, hidden) = (
            cx.b.float(dtype, 0.0),
            cx.b.float(dtype, hidden_score(dtype)),
        );
        Ok(cx.b.op("Where", &[&visible, &zero, &hidden]).out())
    })
}

/// Indices of this run's tokens among all tokens, `[seq]`: `past .. total`.
fn rows(cx: &mut Context<'_>, mask: ValueId, seq: &Dim) -> Result<Name, ExportError> {
    let key = format!("{}/rows.{seq}", cx.full_name(mask));
    let total = total(cx, mask);
    let has_past = total != *seq;
    let (seq, total) = (length(cx, seq)?, length(cx, &total)?);
    cx.once(&key, |cx| {
        let past = if has_past {
            cx.b.op("Sub", &[&total, &seq]).out()
        } else {
            cx.b.int(0)
        };
        let one = cx.b.int(1);
        Ok(cx.b.op("Range", &[&past, &total, &one]).out())
    })
}

/// How many tokens there are, past ones included.
fn total(cx: &Context<'_>, mask: ValueId) -> Dim {
    cx.ty(mask)
        .shape
        .0
        .get(1)
        .cloned()
        .unwrap_or_else(|| Dim::from(0))
}

/// The number that `dim` stands for, without axes.
pub(super) fn length(cx: &mut Context<'_>, dim: &Dim) -> Result<Name, ExportError> {
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
fn visible(
    cx: &mut Context<'_>,
    mask: ValueId,
    seq: &Dim,
    rows: &Name,
) -> Result<Name, ExportError> {
    let total = total(cx, mask);
    let has_past = total != *seq;
    let total = length(cx, &total)?;
    cx.once(&format!("{}/visible.{seq}", cx.full_name(mask)), |cx| {
        let (zero, one) = (cx.b.int(0), cx.b.int(1));
        let columns = cx.b.op("Range", &[&zero, &total, &one]).out();
        let axis = cx.b.ints(&[1]);
        let rows = cx.b.op("Unsqueeze", &[rows, &axis]).out();
        let causal = if has_past {
            cx.b.op("LessOrEqual", &[&columns, &rows]).out()
        } else {
            // tract gets the shape wrong where a range is compared with itself.
            let behind = cx.b.op("Sub", &[&rows, &columns]).out();
            cx.b.op("GreaterOrEqual", &[&behind, &zero]).out()
        };
        let live = live(cx, mask)?;
        Ok(cx.b.op("And", &[&live, &causal]).out())
    })
}

/// Which keys lie within `window` tokens of the row, counted over tokens whose mask is 1,
/// `bool [batch, 1, seq, total]`.
fn near(
    cx: &mut Context<'_>,
    mask: ValueId,
    seq: &Dim,
    rows: &Name,
    window: usize,
) -> Result<Name, ExportError> {
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

/// The mask of attention in both directions, `[batch, 1, 1, keys]`: 0 where a key is a token, else
/// a large negative number.
pub(super) fn key_mask(
    cx: &mut Context<'_>,
    mask: ValueId,
    dtype: DType,
) -> Result<Name, ExportError> {
    cx.once(&format!("{}/hidden.{dtype}", cx.full_name(mask)), |cx| {
        let live = live(cx, mask)?;
        let (zero, hidden) = (
            cx.b.float(dtype, 0.0),
            cx.b.float(dtype, hidden_score(dtype)),
        );
        Ok(cx.b.op("Where", &[&live, &zero, &hidden]).out())
    })
}

/// The mask of a window in both directions, `[batch or 1, 1, seq, seq]`: 0 where a key lies less
/// than `window` places from the row and is a token by `mask`, else a large negative number.
pub(super) fn window_mask(
    cx: &mut Context<'_>,
    mask: Option<ValueId>,
    seq: &Dim,
    window: usize,
    dtype: DType,
) -> Result<Name, ExportError> {
    let whose = mask.map_or_else(String::new, |mask| format!("{}/", cx.full_name(mask)));
    let length = length(cx, seq)?;
    let near = cx.once(&format!("distance.{seq}.window{window}"), |cx| {
        let (zero, one, axis) = (cx.b.int(0), cx.b.int(1), cx.b.ints(&[1]));
        let keys = cx.b.op("Range", &[&zero, &length, &one]).out();
        let rows = cx.b.op("Unsqueeze", &[&keys, &axis]).out();
        let (window, axes) = (cx.b.int(window as i64), cx.b.ints(&[0, 1]));
        let [before, after] = [[&rows, &keys], [&keys, &rows]].map(|[a, b]| {
            let distance = cx.b.op("Sub", &[a, b]).out();
            cx.b.op("Less", &[&distance, &window]).out()
        });
        let near = cx.b.op("And", &[&before, &after]).out();
        Ok(cx.b.op("Unsqueeze", &[&near, &axes]).out())
    })?;
    cx.once(&format!("{whose}hidden.window{window}.{dtype}"), |cx| {
        let visible = match mask {
            Some(mask) => {
                let live = live(cx, mask)?;
                cx.b.op("And", &[&live, &near]).out()
            }
            None => near,
        };
        let (zero, hidden) = (
            cx.b.float(dtype, 0.0),
            cx.b.float(dtype, hidden_score(dtype)),
        );
        Ok(cx.b.op("Where", &[&visible, &zero, &hidden]).out())
    })
}

/// Which keys are tokens, `bool [batch, 1, 1, keys]`.
fn live(cx: &mut Context<'_>, mask: ValueId) -> Result<Name, ExportError> {
    cx.once(&format!("{}/live", cx.full_name(mask)), |cx| {
        let mask = cx.full(mask)?;
        let live = cx.b.op("Cast", &[&mask]).int("to", BOOL).out();
        let axes = cx.b.ints(&[1, 2]);
        Ok(cx.b.op("Unsqueeze", &[&live, &axes]).out())
    })
}
