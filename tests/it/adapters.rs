//! Adapters merged by dlc say what PEFT's merged model says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dlc::checkpoint::Checkpoint;
use dlc::import::{ImportOptions, import};
use dlc::pipeline::{module_of_bundle, parse_adapter_flag};
use dlc::runtime::Bundle;
use dlc_eval::Array;
use dlc_exporters::manifest::Profile;
use dlc_ir::{Dim, Module};
use safetensors::SafeTensors;

use crate::common::decoding::{compile_quietly, compile_request};
use crate::common::fixture;
use crate::common::golden::TOLERANCE;

const KINDS: [&str; 4] = ["lora", "rslora", "dora", "dual"];

fn folder(kind: &str) -> PathBuf {
    fixture(&format!("adapters/{kind}-llama"))
}

/// Compiles the golden with its adapter, and reads the merged module back from the bundle.
fn merged(kind: &str, adapters: &[String], out: &Path) -> Result<(Bundle, Module), String> {
    let mut request = compile_request(folder(kind), Profile::Portable, out.join("bundle"));
    request.adapters = adapters.iter().map(|a| parse_adapter_flag(a).unwrap()).collect();
    compile_quietly(&request).map_err(|e| e.to_string())?;
    let bundle = Bundle::open(&request.output).unwrap();
    let module = module_of_bundle(&bundle).unwrap();
    Ok((bundle, module))
}

fn adapter(kind: &str) -> String {
    folder(kind).join("adapter").display().to_string()
}

fn recorded(kind: &str, name: &str) -> Vec<u8> {
    let bytes = std::fs::read(folder(kind).join("golden.safetensors")).unwrap();
    SafeTensors::deserialize(&bytes).unwrap().tensor(name).unwrap().data().to_vec()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn logits(kind: &str, module: &Module) -> Vec<f32> {
    let ids: Vec<i64> = recorded(kind, "input.input_ids").chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    let (batch, n) = (2, ids.len() / 2);
    let positions = (0..batch).flat_map(|_| 0..n as i64).collect();
    let graph = module.graph("target").unwrap();
    let mut feeds = BTreeMap::from([
        ("input_ids".to_owned(), Array::i64([batch, n], ids).unwrap()),
        ("attention_mask".to_owned(), Array::i64([batch, n], vec![1; batch * n]).unwrap()),
        ("position_ids".to_owned(), Array::i64([batch, n], positions).unwrap()),
    ]);
    for input in graph.inputs().iter().filter(|i| i.cache.is_some()) {
        let width = |axis: usize| graph.value(input.value).ty.shape.0.get(axis).and_then(Dim::known).unwrap();
        feeds.insert(input.name.clone(), Array::f32([batch, width(1), 0, width(3)], vec![]).unwrap());
    }
    dlc_eval::run(graph, &module.weights, &feeds).unwrap()["logits"].as_f32().unwrap().to_vec()
}

fn largest_error(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

#[test]
fn merged_logits_are_those_of_the_reference() {
    for kind in KINDS {
        let out = tempfile::tempdir().unwrap();
        let (_, module) = merged(kind, &[adapter(kind)], out.path()).unwrap();
        let error = largest_error(&logits(kind, &module), &floats(&recorded(kind, "output_merged.logits")));
        assert!(error <= TOLERANCE, "{kind}: {error:e}");
        let untouched = largest_error(&floats(&recorded(kind, "output.logits")), &floats(&recorded(kind, "output_merged.logits")));
        assert!(untouched > 100.0 * TOLERANCE, "{kind}: the adapter changes nothing, so merging it proves nothing");
    }
}

#[test]
fn a_strength_of_zero_or_two_opposite_adapters_leave_the_model_as_it_was() {
    for kind in ["lora", "dual"] {
        for adapters in [vec![format!("{}=0", adapter(kind))], vec![adapter(kind), format!("{}=-1", adapter(kind))]] {
            let out = tempfile::tempdir().unwrap();
            let (_, module) = merged(kind, &adapters, out.path()).unwrap();
            let error = largest_error(&logits(kind, &module), &floats(&recorded(kind, "output.logits")));
            assert!(error <= TOLERANCE, "{kind} {adapters:?}: {error:e}");
        }
    }
}

#[test]
fn exactly_the_weights_that_the_adapter_names_change_and_the_report_lists_them() {
    let out = tempfile::tempdir().unwrap();
    let (bundle, module) = merged("dual", &[adapter("dual")], out.path()).unwrap();
    let base = import(&Checkpoint::open(&folder("dual")).unwrap(), &ImportOptions::default()).unwrap();
    let differs = |name: &str| {
        let [a, b] = [&base, &module].map(|m| m.weights[m.weights.find(name).unwrap()].to_f32().unwrap());
        a != b
    };
    let changed: Vec<String> = base.weights.entries().map(|(_, w)| w.name.clone()).filter(|n| differs(n)).collect();
    let report = &bundle.manifest().passes[0].report["changes"];
    let mut listed: Vec<String> = report.as_sequence().unwrap().iter().map(|c| c["weight"].as_str().unwrap().to_owned()).collect();
    listed.sort();
    let mut sorted = changed.clone();
    sorted.sort();
    assert_eq!(listed, sorted);
    assert_eq!(changed.len(), 3 * 5);
    let frozen = report[0]["frozen"].as_f64().unwrap();
    assert!((0.3..0.7).contains(&frozen), "relu keeps {frozen} of random entries at rest");
}

type Edit = fn(&str) -> String;

#[test]
fn adapters_that_do_not_fit_are_refused_with_all_that_is_wrong() {
    let edits: [(&str, Edit); 8] = [
        ("lora", |c| c.replace("\"LORA\"", "\"VERA\"")),
        ("lora", |c| c.replace("\"r\": 4", "\"r\": 8")),
        ("lora", |c| c.replace("\"lora_alpha\": 10", "\"lora_alpha\": \"ten\"")),
        ("lora", |c| c.replace("\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]").replace("\"bias\": \"none\"", "\"bias\": \"all\"")),
        ("lora", |c| c.replace("\"alpha_pattern\": {}", "\"alpha_pattern\": {\"(\": 1}")),
        ("dora", |c| c.replace("\"use_dora\": true", "\"use_dora\": false")),
        ("dual", |c| c.replace("\"fan_in_fan_out\": false", "\"fan_in_fan_out\": true")),
        ("dual", |c| c.replace("{\n", "{\n  \"new_trick\": 3,\n")),
    ];
    let mut messages = Vec::new();
    for (kind, edit) in edits {
        let out = tempfile::tempdir().unwrap();
        let copy = out.path().join("adapter");
        std::fs::create_dir(&copy).unwrap();
        std::fs::copy(folder(kind).join("adapter/adapter_model.safetensors"), copy.join("adapter_model.safetensors")).unwrap();
        let config = std::fs::read_to_string(folder(kind).join("adapter/adapter_config.json")).unwrap();
        let edited = edit(&config);
        assert_ne!(edited, config);
        std::fs::write(copy.join("adapter_config.json"), edited).unwrap();
        messages.push(merged(kind, &[copy.display().to_string()], out.path()).map(|_| ()).unwrap_err());
        assert!(!out.path().join("bundle").exists());
    }
    insta::assert_snapshot!(messages.join("\n"));
}
