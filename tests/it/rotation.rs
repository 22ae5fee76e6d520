//! Rotations that change with the length of the sequence: the files that are written say what the
//! evaluator says, within the length trained on and beyond it.

use std::collections::BTreeMap;

use dlc::checkpoint::Checkpoint;
use dlc::import::{ImportOptions, import};
use dlc_eval::{Array, run};
use dlc_ir::Module;
use dlc_runtime::{BackendKind, BackendSearch, Bundle, HostTensor, Session, SessionOptions, start};

use crate::command::Shell;
use crate::common::fixture;

const CASE: &str = "cases/llama-dynamic-ntk";
/// What the case was trained on.
const TRAINED: usize = 64;

/// Tokens at positions from 0 on, by the names of inputs; caches are empty.
fn inputs(tokens: usize) -> [(&'static str, Vec<i64>); 3] {
    let all = 0..tokens as i64;
    [
        ("input_ids", all.clone().map(|i| (i * 7 + 3) % 96).collect()),
        ("attention_mask", vec![1; tokens]),
        ("position_ids", all.collect()),
    ]
}

fn evaluated(module: &Module, tokens: usize) -> Vec<f32> {
    let ids =
        inputs(tokens).map(|(name, ids)| (name.to_owned(), Array::i64([1, tokens], ids).unwrap()));
    let mut feeds = BTreeMap::from(ids);
    for input in module.graphs[0]
        .inputs()
        .iter()
        .filter(|i| i.cache.is_some())
    {
        feeds.insert(
            input.name.clone(),
            Array::f32([1, module.model.kv_heads, 0, module.model.head_dim], vec![]).unwrap(),
        );
    }
    run(&module.graphs[0], &module.weights, &feeds).unwrap()["logits"]
        .as_f32()
        .unwrap()
        .to_vec()
}

fn written(bundle: &Bundle, tokens: usize) -> Vec<f32> {
    let backend = start(&BackendSearch {
        force: Some(BackendKind::Tract),
        ..BackendSearch::default()
    })
    .unwrap();
    let mut session =
        Session::load(&backend, bundle, "target", None, &SessionOptions::default()).unwrap();
    let ids: BTreeMap<&str, Vec<i64>> = inputs(tokens).into();
    let ports = &bundle.graph("target").unwrap().inputs;
    let feed = |name: &str, shape: &[String]| match ids.get(name) {
        Some(ids) => HostTensor::i64([1, tokens], ids.clone()),
        None => HostTensor::f32(
            [1, shape[1].parse().unwrap(), 0, shape[3].parse().unwrap()],
            vec![],
        ),
    };
    let feeds: Vec<(&str, HostTensor)> = ports
        .iter()
        .map(|port| (port.name.as_str(), feed(&port.name, &port.shape)))
        .collect();
    let outputs = session.run_host(&feeds).unwrap();
    outputs
        .iter()
        .find(|(name, _)| name == "logits")
        .unwrap()
        .1
        .to_f32()
        .unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

#[test]
fn a_dynamic_base_grows_beyond_the_length_trained_on_and_not_before() {
    let shell = Shell::new();
    shell.copy(&fixture(CASE), "model");
    let config = std::fs::read_to_string(shell.path("model/config.json")).unwrap();
    let open = || {
        import(
            &Checkpoint::open(&shell.path("model")).unwrap(),
            &ImportOptions::default(),
        )
        .unwrap()
    };
    let dynamic = open();
    for profile in ["portable", "onnx"] {
        shell.ok(&["compile", "model", "--profile", profile, "-o", profile]);
        let bundle = Bundle::open(&shell.path(profile)).unwrap();
        for tokens in [1, TRAINED, TRAINED + 1, 2 * TRAINED] {
            let difference =
                largest_difference(&evaluated(&dynamic, tokens), &written(&bundle, tokens));
            assert!(
                difference <= 1e-4,
                "{profile}, {tokens} tokens: {difference}"
            );
        }
    }
    shell.write(
        "model/config.json",
        config.replace("\"dynamic\"", "\"default\""),
    );
    let plain = open();
    assert_eq!(evaluated(&dynamic, TRAINED), evaluated(&plain, TRAINED));
    assert!(
        largest_difference(
            &evaluated(&dynamic, 2 * TRAINED),
            &evaluated(&plain, 2 * TRAINED)
        ) > 1e-3
    );
}
