//! What a decoder says around the length that it was trained on, where its rotation changes, against
//! transformers: whole sequences within it and beyond it, single tokens after a cache across it, and
//! a short row beside a long one.

use std::collections::BTreeMap;

use dlc_eval::Array;
use dlc_ir::DType;

use super::fixture;
use super::golden::{Feed, TOLERANCE, module, recorded};
use super::session::{Arrays, Engine, same_length, within, worst_error};

/// The golden that records them.
pub const GOLDEN: &str = "phi3-long";
/// What it was trained on.
pub const TRAINED: usize = 5;

/// Fails unless `engine` computes what transformers does.
pub fn check_lengths(engine: &Engine) -> Result<(), String> {
    let recorded = recorded(&fixture(&format!("goldens/{GOLDEN}/lengths.safetensors")));
    let mut runner = engine.load(module(GOLDEN, DType::F32))?;
    let mut run = |feed: &Feed, caches: &Arrays| runner.run(&feed.arrays(&runner, caches));
    for length in TRAINED..=TRAINED + 2 {
        let outputs = run(&columns(&recorded, 0, length), &Arrays::new())?;
        compare(
            &recorded,
            &format!("output.logits_{length}"),
            &outputs,
            None,
        )?;
    }
    let mut outputs = run(&columns(&recorded, 0, TRAINED), &Arrays::new())?;
    for length in TRAINED..TRAINED + 2 {
        outputs = run(&columns(&recorded, length, length + 1), &outputs)?;
        let name = format!("output.logits_after_{length}_for_1");
        compare(&recorded, &name, &outputs, None)?;
    }
    let integers = |name: &str| recorded[name].as_i64().unwrap().to_vec();
    let padded = Feed {
        mask: integers("input.left_padded_attention_mask"),
        positions: integers("input.left_padded_position_ids"),
        ..columns(&recorded, 0, TRAINED + 1)
    };
    let outputs = run(&padded, &Arrays::new())?;
    let name = "output.left_padded_logits";
    compare(&recorded, name, &outputs, Some(&padded.mask))
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

/// Fails unless the logits are the recorded ones wherever `mask`, or no mask, has a token.
fn compare(
    recorded: &BTreeMap<String, Array>,
    name: &str,
    outputs: &Arrays,
    mask: Option<&[i64]>,
) -> Result<(), String> {
    let expected = recorded[name].as_f32().unwrap();
    let found = outputs["logits"].as_f32().unwrap();
    same_length(name, found, expected)?;
    let width = *recorded[name].shape().last().unwrap();
    let is_token = |at: usize| mask.is_none_or(|mask| mask[at / width] == 1);
    let pairs = found.iter().zip(expected).enumerate();
    let pairs = pairs.filter(|(at, _)| is_token(*at)).map(|(_, pair)| pair);
    within(name, worst_error(pairs), TOLERANCE)
}
