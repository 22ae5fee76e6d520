//! The matrices of one module: what adapters call them, and what they multiply to.

use std::collections::BTreeMap;
use std::sync::Arc;

use dlc_ir::Expr;

use super::config::Kind;
use crate::sources::AdapterTensor;

/// What PEFT puts before the names of the model's own modules.
pub(super) const PREFIX: &str = "base_model.model.";

/// A module's tensors by what they are.
pub(super) type Parts<'a> = BTreeMap<&'static str, &'a AdapterTensor>;

/// `base_model.model.<module>.<part>` -> module and part. PEFT leaves the adapter's name out; files
/// saved by hand may have it.
pub(super) fn split(name: &str, kind: Kind) -> Option<(&str, &'static str)> {
    let parts: &[(&str, &'static str)] = match kind {
        Kind::Dual => &[
            ("lora_magnitude_A.weight", "A"),
            ("lora_magnitude_B.weight", "B"),
            ("lora_direction_A.weight", "C"),
            ("lora_direction_B.weight", "D"),
        ],
        Kind::Dora { .. } => &[
            ("lora_A.weight", "A"),
            ("lora_B.weight", "B"),
            ("lora_B.bias", "bias"),
            ("lora_magnitude_vector", "m"),
            ("lora_magnitude_vector.weight", "m"),
            ("lora_embedding_A", "EA"),
            ("lora_embedding_B", "EB"),
        ],
        Kind::Lora | Kind::RsLora => &[
            ("lora_A.weight", "A"),
            ("lora_B.weight", "B"),
            ("lora_B.bias", "bias"),
            ("lora_embedding_A", "EA"),
            ("lora_embedding_B", "EB"),
        ],
    };
    let (module, part) = name.strip_prefix(PREFIX)?.split_once(".lora_")?;
    let part = format!("lora_{}", part.replacen(".default", "", 1));
    parts
        .iter()
        .find(|(known, _)| *known == part)
        .map(|(_, part)| (module, *part))
}

/// `left [out, r] x right [r, inner]`, and r.
pub(super) fn product(
    parts: &Parts<'_>,
    [left, right]: [&str; 2],
    [out, inner]: [usize; 2],
) -> Result<(Arc<Expr>, usize), String> {
    let (Some(b), Some(a)) = (parts.get(left), parts.get(right)) else {
        return Err(format!("its matrix {left} or {right} is missing"));
    };
    // Of a convolution, `A` is one too, and `B` mixes channels of single places: as matrices they
    // multiply to the kernel as it lies.
    let flat = |tensor: &AdapterTensor| {
        [
            tensor.shape.first().copied().unwrap_or(1),
            tensor.shape.iter().skip(1).product(),
        ]
    };
    match (flat(b), flat(a)) {
        ([rows, rank], [same, columns])
            if rows == out && columns == inner && rank == same && rank > 0 =>
        {
            Ok((matmul(b.data.clone(), a.data.clone(), rank, columns), rank))
        }
        (b, a) => Err(format!(
            "{left} {b:?} and {right} {a:?} don't multiply to the weight's [{out}, {inner}]"
        )),
    }
}

/// An embedding's change `A' B'` of `A [r, rows]` and `B [width, r]`, and r.
pub(super) fn looked_up(
    parts: &Parts<'_>,
    [rows, width]: [usize; 2],
) -> Result<(Arc<Expr>, usize), String> {
    let (Some(a), Some(b)) = (parts.get("EA"), parts.get("EB")) else {
        return Err("its lora_embedding_A or lora_embedding_B is missing".into());
    };
    match (&a.shape[..], &b.shape[..]) {
        (&[rank, n], &[m, same]) if n == rows && m == width && rank == same && rank > 0 => Ok((
            matmul(
                a.data.clone().transposed(n),
                b.data.clone().transposed(rank),
                rank,
                width,
            ),
            rank,
        )),
        (a, b) => Err(format!(
            "lora_embedding_A {a:?} and lora_embedding_B {b:?} don't fit the table's [{rows}, {width}]"
        )),
    }
}

fn matmul(left: Expr, right: Expr, inner: usize, columns: usize) -> Arc<Expr> {
    Arc::new(Expr::MatMul {
        left: Arc::new(left),
        right: Arc::new(right),
        inner,
        columns,
    })
}

pub(super) fn norms(parts: &Parts<'_>, out: usize) -> Result<Arc<Expr>, String> {
    let norms = parts
        .get("m")
        .ok_or("its lora_magnitude_vector is missing")?;
    let elements: usize = norms.shape.iter().product();
    if elements == out {
        Ok(Arc::new(norms.data.clone()))
    } else {
        Err(format!(
            "lora_magnitude_vector {:?} doesn't fit {out} rows",
            norms.shape
        ))
    }
}

pub(super) fn check_rank(promised: Option<usize>, found: usize) -> Result<(), String> {
    match promised {
        Some(promised) if promised != found => Err(format!(
            "its rank is [{found}], the configuration says [{promised}]"
        )),
        _ => Ok(()),
    }
}
