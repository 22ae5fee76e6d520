//! Imported graphs, run by the evaluator, against what transformers computed for the same
//! checkpoints (f32, eager attention, CPU).

use std::collections::BTreeMap;

use dlc_eval::{Array, run};
use dlc_ir::{DType, Module};
use safetensors::SafeTensors;

use super::{decoders, fixture, import_fixture};

/// Largest difference of a logit; logits are of the size of 1.
const TOLERANCE: f32 = 2e-5;

type Arrays = BTreeMap<String, Array>;

fn read_golden(name: &str) -> Arrays {
    let bytes = std::fs::read(fixture(&format!("goldens/{name}")).join("golden.safetensors"))
        .expect("fixture");
    let file = SafeTensors::deserialize(&bytes).expect("valid");
    let array = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        let array = match view.dtype() {
            safetensors::Dtype::I64 => Array::i64(
                view.shape(),
                view.data()
                    .as_chunks()
                    .0
                    .iter()
                    .map(|b| i64::from_le_bytes(*b))
                    .collect(),
            ),
            _ => Array::f32(
                view.shape(),
                view.data()
                    .as_chunks()
                    .0
                    .iter()
                    .map(|b| f32::from_le_bytes(*b))
                    .collect(),
            ),
        };
        (name.to_owned(), array.expect("fits"))
    };
    file.iter().map(array).collect()
}

/// Columns `from..to` of a matrix of ids.
fn columns(ids: &Array, from: usize, to: usize) -> Array {
    let width = ids.shape()[1];
    let rows = ids
        .as_i64()
        .expect("ids")
        .chunks(width)
        .flat_map(|row| row[from..to].to_vec());
    Array::i64([ids.shape()[0], to - from], rows.collect()).expect("fits")
}

/// Feeds tokens after what `past` (outputs of an earlier run) left in the cache; an empty cache if
/// there is no past.
fn step(
    module: &Module,
    ids: Array,
    mask: Array,
    positions: Array,
    past: Option<Arrays>,
) -> Arrays {
    let mut feeds = BTreeMap::from([
        ("input_ids".to_owned(), ids),
        ("attention_mask".into(), mask),
        ("position_ids".into(), positions),
    ]);
    let mut past = past.unwrap_or_default();
    let (model, graph) = (&module.model, &module.graphs[0]);
    let batch = feeds["input_ids"].shape()[0];
    for input in graph.inputs().iter().filter(|i| i.cache.is_some()) {
        let present = past.remove(&input.name.replace("past_key_values", "present"));
        let empty =
            || Array::f32([batch, model.kv_heads, 0, model.head_dim], vec![]).expect("fits");
        feeds.insert(input.name.clone(), present.unwrap_or_else(empty));
    }
    run(graph, &module.weights, &feeds).expect("runs")
}

fn positions(from: usize, ids: &Array) -> Array {
    let [rows, width] = [ids.shape()[0], ids.shape()[1]];
    Array::i64(
        [rows, width],
        (0..rows)
            .flat_map(|_| (from..from + width).map(|p| p as i64))
            .collect(),
    )
    .expect("fits")
}

/// Logits are equal up to `tolerance` wherever `mask` (or no mask) has a token.
fn compare(case: &str, outputs: &Arrays, golden: &Array, mask: Option<&Array>, tolerance: f32) {
    let (ours, theirs) = (
        outputs["logits"].as_f32().expect("floats"),
        golden.as_f32().expect("floats"),
    );
    assert_eq!(outputs["logits"].shape(), golden.shape(), "{case}");
    let width = golden.shape()[2];
    let seen = |token: usize| mask.is_none_or(|m| m.as_i64().expect("mask")[token] == 1);
    let pairs = ours
        .iter()
        .zip(theirs)
        .enumerate()
        .filter(|(i, _)| seen(i / width));
    let worst = pairs.map(|(_, (a, b))| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{case}: off by {worst}");
}

#[test]
fn logits_equal_those_of_transformers() {
    for name in decoders() {
        let (module, golden) = (
            import_fixture(&format!("goldens/{name}"), None),
            read_golden(name),
        );
        let (ids, mask) = (&golden["input.input_ids"], &golden["input.attention_mask"]);
        let whole = step(&module, ids.clone(), mask.clone(), positions(0, ids), None);
        compare(name, &whole, &golden["output.logits"], None, TOLERANCE);

        let (first, next) = (columns(ids, 0, 7), columns(ids, 7, 9));
        let past = step(
            &module,
            first.clone(),
            columns(mask, 0, 7),
            positions(0, &first),
            None,
        );
        let after = step(
            &module,
            next.clone(),
            columns(mask, 0, 9),
            positions(7, &next),
            Some(past),
        );
        compare(
            &format!("{name} with a past"),
            &after,
            &golden["output.logits_after_7_for_2"],
            None,
            TOLERANCE,
        );

        let mask = &golden["input.left_padded_attention_mask"];
        let padded = step(
            &module,
            ids.clone(),
            mask.clone(),
            golden["input.left_padded_position_ids"].clone(),
            None,
        );
        compare(
            &format!("{name} padded on the left"),
            &padded,
            &golden["output.left_padded_logits"],
            Some(mask),
            TOLERANCE,
        );
    }
}

#[test]
fn half_precision_stays_near_transformers_in_single() {
    for (dtype, tolerance) in [(DType::F16, 1e-2), (DType::Bf16, 8e-2)] {
        let (module, golden) = (
            import_fixture("goldens/llama", Some(dtype)),
            read_golden("llama"),
        );
        let (ids, mask) = (&golden["input.input_ids"], &golden["input.attention_mask"]);
        let outputs = step(&module, ids.clone(), mask.clone(), positions(0, ids), None);
        compare(
            dtype.name(),
            &outputs,
            &golden["output.logits"],
            None,
            tolerance,
        );
    }
}
