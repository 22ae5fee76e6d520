//! What a decoder says around the length that it was trained on, where its rotation changes, against
//! transformers: whole sequences within it and beyond it, single tokens after a cache across it, and
//! a short row beside a long one.

use std::collections::BTreeMap;

use dlc_bundle::Profile;
use dlc_eval::Array;
use dlc_ir::DType;
use dlc_runtime::{Backend, Bundle, Session, SessionOptions, SharedWeights};

use super::fixture;
use super::golden::{Feed, TOLERANCE, module, recorded};
use super::session::{export, run_once};

/// The golden that records them.
pub const GOLDEN: &str = "phi3-long";
/// What it was trained on.
const TRAINED: usize = 5;

/// Fails unless `run`, which takes what it returned for the tokens before, says what transformers
/// does.
pub fn check_lengths<C: Default>(
    mut run: impl FnMut(&Feed, &C) -> Result<(Vec<f32>, C), String>,
) -> Result<(), String> {
    let recorded = recorded(&fixture(&format!("goldens/{GOLDEN}/lengths.safetensors")));
    for length in TRAINED..=TRAINED + 2 {
        let (logits, _) = run(&columns(&recorded, 0, length), &C::default())?;
        compare(&recorded, &format!("output.logits_{length}"), &logits, None)?;
    }
    let (_, mut cache) = run(&columns(&recorded, 0, TRAINED), &C::default())?;
    for length in TRAINED..TRAINED + 2 {
        let logits;
        (logits, cache) = run(&columns(&recorded, length, length + 1), &cache)?;
        let name = format!("output.logits_after_{length}_for_1");
        compare(&recorded, &name, &logits, None)?;
    }
    let integers = |name: &str| recorded[name].as_i64().unwrap().to_vec();
    let padded = Feed {
        mask: integers("input.left_padded_attention_mask"),
        positions: integers("input.left_padded_position_ids"),
        ..columns(&recorded, 0, TRAINED + 1)
    };
    let (logits, _) = run(&padded, &C::default())?;
    let name = "output.left_padded_logits";
    compare(&recorded, name, &logits, Some(&padded.mask))
}

/// Exports the golden, and compares what `backend` computes.
pub fn check_lengths_on(backend: &Backend, profile: Profile) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    export(&module(GOLDEN, DType::F32), profile, &out);
    let bundle = Bundle::open(&out).map_err(|e| e.to_string())?;
    let weights = SharedWeights::open(&bundle, backend).map_err(|e| e.to_string())?;
    let options = SessionOptions::default();
    let mut session = Session::load(backend, &bundle, "target", weights.as_ref(), &options)
        .map_err(|e| e.to_string())?;
    check_lengths(|feed, caches: &Vec<_>| {
        let outputs = run_once(&bundle, &mut session, feed, caches)?;
        let logits = outputs.iter().find(|(name, _)| name == "logits").unwrap();
        Ok((logits.1.to_f32().unwrap(), outputs.clone()))
    })
}

/// Tokens `from..to` of both sequences, after those before.
fn columns(recorded: &BTreeMap<String, Array>, from: usize, to: usize) -> Feed {
    let ids = &recorded["input.input_ids"];
    let [rows, width] = ids.shape()[..] else {
        panic!("ids are a matrix")
    };
    let ids = ids.as_i64().unwrap().chunks(width);
    Feed {
        shape: [rows, to - from],
        ids: ids.flat_map(|row| row[from..to].to_vec()).collect(),
        mask: vec![1; rows * to],
        positions: (0..rows).flat_map(|_| from as i64..to as i64).collect(),
    }
}

/// Fails unless `logits` are the recorded ones wherever `mask`, or no mask, has a token.
fn compare(
    recorded: &BTreeMap<String, Array>,
    name: &str,
    logits: &[f32],
    mask: Option<&[i64]>,
) -> Result<(), String> {
    let expected = recorded[name].as_f32().unwrap();
    let width = *recorded[name].shape().last().unwrap();
    let is_token = |at: usize| mask.is_none_or(|mask| mask[at / width] == 1);
    let fits = |at: usize| !is_token(at) || (expected[at] - logits[at]).abs() <= TOLERANCE;
    match (0..expected.len()).find(|at| !fits(*at)) {
        _ if expected.len() != logits.len() => Err(format!("{name}: {} logits", logits.len())),
        Some(at) => Err(format!("{name}: {}, not {}", logits[at], expected[at])),
        None => Ok(()),
    }
}
