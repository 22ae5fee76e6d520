//! Cosines and sines of rotations, computed in the graph for the positions of a run, once for all
//! layers.

use dlc_ir::{DType, Rope, RopeScaling, ValueId};
use dlc_onnx::proto::data_type;
use sha2::{Digest, Sha256};

use super::super::builder::Name;
use super::context::Context;
use super::optional_nodes::prompt_length;
use super::shared::from_f32;
use crate::error::ExportError;

/// Cosines and sines of the rotation angles, `[batch, seq, rotated / 2]` each, computed once for
/// all layers of one spec.
pub(super) fn rotations(
    cx: &mut Context<'_>,
    rope: &Rope,
    rotated: usize,
    positions: ValueId,
    dtype: DType,
) -> Result<[Name; 2], ExportError> {
    let (name, positions) = (rope_name(rope, rotated), cx.full(positions)?);
    let spec = format!("{positions}/{name}");
    let angles = cx.once(&spec, |cx| {
        let bytes = rope
            .frequencies(rotated)
            .into_iter()
            .flat_map(f32::to_le_bytes)
            .collect();
        let mut frequencies = cx.b.constant(
            &format!("{name}.frequencies"),
            DType::F32,
            &[rotated / 2],
            bytes,
        );
        let positions =
            cx.b.op("Cast", &[&positions])
                .int("to", i64::from(data_type(DType::F32)))
                .out();
        if rope.changes_with_length() {
            frequencies = of_length(cx, rope, rotated, [&positions, &frequencies])?;
        }
        let axis = cx.b.ints(&[2]);
        let column = cx.b.op("Unsqueeze", &[&positions, &axis]).out();
        Ok(cx.b.op("Mul", &[&column, &frequencies]).out())
    })?;
    let mut table = |op: &'static str| {
        cx.once(&format!("{spec}/{op}.{dtype}"), |cx| {
            let mut table = cx.b.op(op, &[&angles]).out();
            if rope.attention_factor().to_bits() != 1f32.to_bits() {
                let factor = cx.b.float(DType::F32, rope.attention_factor());
                table = cx.b.op("Mul", &[&table, &factor]).out();
            }
            Ok(from_f32(cx, table, dtype))
        })
    };
    Ok([table("Cos")?, table("Sin")?])
}

/// `frequencies` as [`Rope::frequencies_at`] makes them for the length that `positions`, in single
/// precision, tell, or for that of the text that the caller says it is part of.
fn of_length(
    cx: &mut Context<'_>,
    rope: &Rope,
    rotated: usize,
    [positions, frequencies]: [&Name; 2],
) -> Result<Name, ExportError> {
    let number = |cx: &mut Context<'_>, what: &str, numbers: &[f32]| {
        let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        cx.b.constant(
            &format!("{}.{what}", rope_name(rope, rotated)),
            DType::F32,
            &[numbers.len()],
            bytes,
        )
    };
    let mut last = cx.b.op("ReduceMax", &[positions]).int("keepdims", 0).out();
    if let Some(length) = prompt_length(cx)? {
        let length =
            cx.b.op("Cast", &[&length])
                .int("to", i64::from(data_type(DType::F32)))
                .out();
        let one = cx.b.float(DType::F32, 1.0);
        let end = cx.b.op("Sub", &[&length, &one]).out();
        last = cx.b.op("Max", &[&last, &end]).out();
    }
    Ok(match rope.scaling {
        RopeScaling::LongRope { original, .. } => {
            let beyond = original.saturating_add(1);
            let long = number(cx, "long", &rope.frequencies_at(rotated, beyond));
            // The last position within the length trained on.
            let end = number(cx, "end", &[original as f32 - 1.0]);
            let is_long = cx.b.op("Greater", &[&last, &end]).out();
            cx.b.op("Where", &[&is_long, &long, frequencies]).out()
        }
        RopeScaling::Dynamic { factor, original } => {
            let original = original as f64;
            // factor * (last + 1) / original - (factor - 1), at least 1.
            let slope = number(cx, "slope", &[(factor / original) as f32]);
            let start = number(cx, "start", &[(factor / original - (factor - 1.0)) as f32]);
            let one = number(cx, "least", &[1.0]);
            let exponents = number(cx, "exponents", &rope.exponents(rotated));
            let grown = cx.b.op("Mul", &[&last, &slope]).out();
            let grown = cx.b.op("Add", &[&grown, &start]).out();
            let stretch = cx.b.op("Max", &[&grown, &one]).out();
            let powers = cx.b.op("Pow", &[&stretch, &exponents]).out();
            cx.b.op("Mul", &[frequencies, &powers]).out()
        }
        _ => frequencies.clone(),
    })
}

/// A readable name that equal specs, and only those, have in common.
pub(super) fn rope_name(rope: &Rope, rotated: usize) -> String {
    let scaling = match &rope.scaling {
        RopeScaling::None => String::new(),
        RopeScaling::Linear { factor } => format!(".linear{factor:?}"),
        RopeScaling::Dynamic { factor, original } => format!(".dynamic{factor:?}-{original}"),
        RopeScaling::Llama3 {
            factor,
            low,
            high,
            original,
        } => format!(".llama3-{factor:?}-{low:?}-{high:?}-{original}"),
        RopeScaling::Yarn {
            factor,
            fast,
            slow,
            original,
            truncate,
            attention,
        } => {
            let ramp = if *truncate { "whole" } else { "exact" };
            format!(".yarn{factor:?}-{fast:?}-{slow:?}-{original}-{ramp}-{attention:?}")
        }
        RopeScaling::LongRope {
            short,
            long,
            original,
            attention,
        } => format!(
            ".longrope-{original}-{attention:?}-{}",
            digest([short, long])
        ),
    };
    format!(
        "rope.theta{:?}.dim{}{scaling}",
        rope.theta,
        rope.rotary_dim.unwrap_or(rotated)
    )
}

/// A short name of lists of numbers.
fn digest(lists: [&[f64]; 2]) -> String {
    let mut hash = Sha256::new();
    for number in lists.into_iter().flatten() {
        hash.update(number.to_le_bytes());
    }
    let bytes: [u8; 32] = hash.finalize().into();
    let [first, ..] = bytes.as_chunks::<8>().0 else {
        return String::new();
    };
    format!("{:016x}", u64::from_be_bytes(*first))
}
