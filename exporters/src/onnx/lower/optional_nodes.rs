//! What graphs do with their [optional inputs](super::optional).

use dlc_bundle::{LOGITS_TO_KEEP, PROMPT_LENGTH};
use dlc_ir::DType;

use super::super::builder::Name;
use super::context::Context;
use super::optional::takes_optional_inputs;
use crate::error::ExportError;

/// The last rows of `value`, `[batch, seq, ..]`, as many as get logits.
pub(super) fn last_rows(cx: &mut Context<'_>, value: &Name) -> Result<Name, ExportError> {
    let count = input(cx, LOGITS_TO_KEEP)?;
    let start = cx.once(&format!("{LOGITS_TO_KEEP}/start"), |cx| {
        let one = cx.b.ints(&[1]);
        let count = cx.b.op("Reshape", &[&count, &one]).out();
        // From minus 0 on are all.
        Ok(cx.b.op("Neg", &[&count]).out())
    })?;
    cx.once(&format!("{value}/kept"), |cx| {
        let (end, axis) = (cx.b.ints(&[i64::MAX]), cx.b.ints(&[1]));
        Ok(cx.b.op("Slice", &[value, &start, &end, &axis]).out())
    })
}

/// How long the prompt is; None for graphs that don't take it.
pub(super) fn prompt_length(cx: &mut Context<'_>) -> Result<Option<Name>, ExportError> {
    let takes = takes_optional_inputs(cx.graph, cx.target.profile);
    takes.then(|| input(cx, PROMPT_LENGTH)).transpose()
}

fn input(cx: &mut Context<'_>, name: &'static str) -> Result<Name, ExportError> {
    cx.once(name, |cx| {
        let name = Name::from(name);
        cx.b.default_input(&name, DType::I64);
        Ok(name)
    })
}
