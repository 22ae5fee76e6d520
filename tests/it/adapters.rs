//! Adapters merged by dlc say what PEFT's merged model says.

use std::collections::BTreeMap;
use std::path::Path;

use dlc::checkpoint::Checkpoint;
use dlc::import::{ImportOptions, import};
use dlc::pipeline::{module_of_bundle, parse_pass_flag};
use dlc::runtime::{BackendKind, BackendSearch, Bundle, start};
use dlc_exporters::manifest::Profile;
use dlc_ir::Module;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};

use crate::common::adapters::{KINDS, adapter, check_adapter, compile_with, feed, folder, largest_error, logits};
use crate::common::decoding::{compile_quietly, compile_request};
use crate::common::golden::TOLERANCE;
use crate::goldens::evaluate;

/// Compiles the golden with its adapter, and reads the merged module back from the bundle.
fn merged(kind: &str, adapters: &[String], out: &Path) -> Result<(Bundle, Module), String> {
    let bundle = compile_with(kind, adapters, Profile::Portable, out).map_err(|e| e.to_string())?;
    let module = module_of_bundle(&bundle).unwrap();
    Ok((bundle, module))
}

fn evaluated(kind: &str, module: &Module) -> Vec<f32> {
    evaluate(module, &feed(kind), &BTreeMap::new())["logits"].as_f32().unwrap().to_vec()
}

#[test]
fn merged_logits_are_those_of_the_reference() {
    for kind in KINDS {
        let out = tempfile::tempdir().unwrap();
        let (_, module) = merged(kind, &[adapter(kind)], out.path()).unwrap();
        let error = largest_error(&evaluated(kind, &module), &logits(kind, "output_merged.logits"));
        assert!(error <= TOLERANCE, "{kind}: {error:e}");
        let untouched = largest_error(&logits(kind, "output.logits"), &logits(kind, "output_merged.logits"));
        assert!(untouched > 100.0 * TOLERANCE, "{kind}: the adapter changes nothing, so merging it proves nothing");
    }
}

#[test]
fn merged_bundles_run_on_tract() {
    let backend = start(&BackendSearch { force: Some(BackendKind::Tract), ..BackendSearch::default() }).unwrap();
    for kind in KINDS {
        for profile in [Profile::Portable, Profile::Onnx] {
            check_adapter(&backend, kind, profile).unwrap();
        }
    }
}

#[test]
fn the_scores_of_fit_prune_are_those_of_the_merged_model() {
    let out = tempfile::tempdir().unwrap();
    let samples = out.path().join("samples.jsonl");
    std::fs::write(&samples, "{\"tokens\": [5, 17, 80, 33, 9, 41, 2, 66]}\n{\"tokens\": [90, 3, 3, 28, 54]}\n").unwrap();
    let prune = parse_pass_flag(&format!("fit-prune:drop=1,calibration={}", samples.display())).unwrap();
    let scores = |model: &Path, adapters: &[String], name: &str| {
        let mut request = compile_request(model.to_owned(), Profile::Portable, out.path().join(name));
        request.adapters = adapters.iter().map(|a| dlc::pipeline::parse_adapter_flag(a).unwrap()).collect();
        request.passes = vec![prune.clone()];
        let outcome = compile_quietly(&request).unwrap();
        outcome.runs.iter().find_map(|r| r.report.scores.clone()).unwrap().columns[0].values.clone()
    };
    let together = scores(&folder("dual"), &[adapter("dual")], "together");
    let base = scores(&folder("dual"), &[], "base");
    // The merged weights as a checkpoint of their own.
    let (_, module) = merged("dual", &[adapter("dual")], &out.path().join("merge")).unwrap();
    let checkpoint = out.path().join("checkpoint");
    std::fs::create_dir(&checkpoint).unwrap();
    std::fs::copy(folder("dual").join("config.json"), checkpoint.join("config.json")).unwrap();
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = module
        .weights
        .entries()
        .map(|(_, w)| (w.name.clone(), w.shape.clone(), w.to_f32().unwrap().iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let views = data.iter().map(|(n, shape, bytes)| (n.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    serialize_to_file(views, None, &checkpoint.join("model.safetensors")).unwrap();
    assert_eq!(together, scores(&checkpoint, &[], "apart"));
    assert_ne!(together, base);
}

#[test]
fn a_strength_of_zero_or_two_opposite_adapters_leave_the_model_as_it_was() {
    for kind in ["lora", "dual"] {
        for adapters in [vec![format!("{}=0", adapter(kind))], vec![adapter(kind), format!("{}=-1", adapter(kind))]] {
            let out = tempfile::tempdir().unwrap();
            let (_, module) = merged(kind, &adapters, out.path()).unwrap();
            let error = largest_error(&evaluated(kind, &module), &logits(kind, "output.logits"));
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
