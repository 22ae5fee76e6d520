//! Rotary embeddings: the base, and the scalings that both llama.cpp and dlc know.

use std::f64::consts::TAU;

use serde_json::{Value as Json, json};

use super::config::Shape;
use crate::keys::Keys;

/// What transformers and llama.cpp take where a file names no base.
const DEFAULT_BASE: f64 = 10_000.0;
/// What `convert_hf_to_gguf.py` takes where a configuration doesn't say it, as none does.
const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;
/// How far a factor may lie from the formula's: what single precision loses on the way.
const TOLERANCE: f64 = 1e-5;

/// `rope_theta` and `rope_scaling`. `divisors` are those of `rope_freqs.weight`, by which llama.cpp
/// divides frequencies.
pub(super) fn read(keys: &mut Keys<'_>, shape: &Shape, divisors: Option<&[f32]>) -> (Json, Json) {
    let key = keys.full("rope.freq_base");
    let base = keys.number(&key).unwrap_or(DEFAULT_BASE);
    if base <= 0.0 {
        keys.problems
            .push(format!("key `{key}` is {base}, not above 0"));
    }
    let scaling = scaling(keys);
    let scaling = match divisors {
        None => scaling,
        Some(_) if !scaling.is_null() => {
            keys.problems
                .push("`rope_freqs.weight` stands beside another scaling of the rotation".into());
            scaling
        }
        Some(divisors) => llama3(keys, shape, base, divisors),
    };
    (base.into(), scaling)
}

/// What the keys say.
fn scaling(keys: &mut Keys<'_>) -> Json {
    let [kind, factor, old_factor] = [
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scale_linear",
    ]
    .map(|k| keys.full(k));
    let factors = [&factor, &old_factor].map(|key| keys.number(key));
    let factor = factors.into_iter().flatten().next();
    keys.refuse_unless("rope.scaling.attn_factor", |value| {
        value.number() == Some(1.0)
    });
    match keys.text(&kind) {
        Some("linear") | None
            if factor.is_some_and(|f| f.to_bits() != 1f64.to_bits() && f > 0.0) =>
        {
            json!({"rope_type": "linear", "factor": factor})
        }
        None | Some("none" | "linear") => Json::Null,
        Some(other) => {
            let other = dlc_errors::printable::shown(other);
            keys.problems.push(format!(
                "key `{kind}` is {other}; dlc follows none, linear and the factors of Llama 3"
            ));
            Json::Null
        }
    }
}

/// The parameters of Llama 3's scaling, of which the file has only what follows from them: those
/// with which the formula gives these divisors.
fn llama3(keys: &mut Keys<'_>, shape: &Shape, base: f64, divisors: &[f32]) -> Json {
    let factor = divisors.iter().copied().fold(1.0f32, f32::max);
    if divisors.iter().all(|d| d.to_bits() == 1f32.to_bits()) {
        return Json::Null;
    }
    let key = keys.full("rope.scaling.original_context_length");
    let told = keys.size(&key);
    // What Llama 3 was trained on comes before what nobody trains on.
    let lengths = told
        .into_iter()
        .chain([8192])
        .chain((4..21).map(|bits| 1 << bits));
    let fits = |original: &usize| {
        let expected = (0..divisors.len()).map(|i| {
            let wavelength = TAU * base.powf((2 * i) as f64 / shape.head_dim as f64);
            divisor(wavelength, f64::from(factor), *original as f64)
        });
        divisors.len() == shape.head_dim / 2
            && expected
                .zip(divisors)
                .all(|(e, d)| (e - f64::from(*d)).abs() <= TOLERANCE * e)
    };
    let Some(original) = lengths.into_iter().find(fits) else {
        keys.problems.push(
            "tensor `rope_freqs.weight` scales the rotation by factors that aren't those of Llama 3's formula"
                .into(),
        );
        return Json::Null;
    };
    json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": original,
    })
}

/// By what Llama 3 divides a frequency (`_compute_llama3_parameters` of transformers).
fn divisor(wavelength: f64, factor: f64, original: f64) -> f64 {
    if wavelength < original / HIGH {
        1.0
    } else if wavelength > original / LOW {
        factor
    } else {
        let smooth = (original / wavelength - LOW) / (HIGH - LOW);
        1.0 / ((1.0 - smooth) / factor + smooth)
    }
}
