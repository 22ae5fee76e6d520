//! How a value of the IR may stand in an ONNX graph, and what its axes are called there.

use std::ops::RangeInclusive;

use dlc_ir::{Dim, Rounding, Shape, ValueId};
use dlc_onnx::proto::DimensionValue;

/// How a value of the IR stands in the ONNX graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    /// With the shape that it has in the IR.
    Full,
    /// `[rows, width]`: all axes but the last are one.
    Flat,
    /// The last axis split: `[batch, seq, heads, head_dim]`.
    Heads(usize),
}

/// The keys of all forms of `value`.
pub(super) fn forms_of(value: ValueId) -> RangeInclusive<(ValueId, Form)> {
    (value, Form::Full)..=(value, Form::Heads(usize::MAX))
}

/// The axes of a value that stands in the graph in a form.
pub(super) fn dimensions(shape: &Shape, form: Form) -> Vec<DimensionValue> {
    let Some((last, leading)) = shape.0.split_last() else {
        return vec![];
    };
    let all = leading.iter().map(dimension);
    let split = |heads: usize| {
        last.known().map_or_else(
            || dimension(last),
            |width| DimensionValue::Number((width / heads.max(1)) as i64),
        )
    };
    match form {
        Form::Full => all.chain([dimension(last)]).collect(),
        Form::Flat => vec![product(all), dimension(last)],
        Form::Heads(heads) => all
            .chain([DimensionValue::Number(heads as i64), split(heads)])
            .collect(),
    }
}

/// Several axes as one; equal names stand for equal lengths.
fn product(dims: impl Iterator<Item = DimensionValue>) -> DimensionValue {
    let (mut number, mut names) = (1i64, Vec::new());
    for dim in dims {
        match dim {
            DimensionValue::Number(n) => number = number.saturating_mul(n),
            DimensionValue::Name(name) => names.push(name),
        }
    }
    names.sort();
    match (names.is_empty(), number) {
        (true, n) => DimensionValue::Number(n),
        (false, 1) => DimensionValue::Name(names.join("*")),
        (false, n) => DimensionValue::Name(format!("{n}*{}", names.join("*"))),
    }
}

/// An axis as Optimum and onnxruntime-genai name it.
pub(super) fn dimension(dim: &Dim) -> DimensionValue {
    let (parts, times) = dim.factors();
    let number = DimensionValue::Number(times as i64);
    let names = parts.iter().map(|part| DimensionValue::Name(name_of(part)));
    product([number].into_iter().chain(names))
}

/// The name of an axis that is no product. Quotients are written as ONNX's tools write them, so
/// that what infers shapes from them agrees.
fn name_of(dim: &Dim) -> String {
    if let Some(factor) = dim.as_factor().filter(|factor| !factor.is_whole()) {
        let (symbol, divisor) = (factor.symbol(), factor.divisor());
        return match factor.rounding() {
            Rounding::Up => format!("floor(({symbol}+{})/{divisor})", divisor - 1),
            Rounding::Down => format!("floor({symbol}/{divisor})"),
        };
    }
    let text = dim.to_string();
    match text.as_str() {
        "batch" => "batch_size",
        "seq" => "sequence_length",
        "past" => "past_sequence_length",
        "past+seq" => "total_sequence_length",
        other => other,
    }
    .to_owned()
}
