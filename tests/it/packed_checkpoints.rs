//! Checkpoints that are quantised already: by GPTQ, AWQ, or in blocks of GGUF.

use dlc::checkpoint::Checkpoint;
use dlc_bundle::Profile;
use dlc_ir::cost::quantized_matrices;
use dlc_runtime::{BackendKind, BackendSearch, start};

use crate::command::{Shell, snapshot};
use crate::common::fixture;
use crate::common::golden::{CASES, Golden, TOLERANCE};
use crate::common::packed::{FOLDER, NAMES, check_kept, kept, module, place};
use crate::common::session::Engine;
use crate::common::suite::check_module;

#[test]
fn matrices_as_numbers_compute_what_transformers_does() {
    for name in NAMES {
        let golden = Golden::read_of(FOLDER, name);
        for case in CASES {
            check_module(&Engine::Evaluator, module(name), &golden, case, TOLERANCE)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

#[test]
fn kept_codes_compute_what_transformers_does() {
    check_kept(&Engine::Evaluator).unwrap();
    let tract = start(&BackendSearch {
        force: Some(BackendKind::Tract),
        ..BackendSearch::default()
    })
    .unwrap();
    check_kept(&Engine::Backend(tract, Profile::Portable)).unwrap();
}

#[test]
fn it_is_said_which_matrices_keep_their_codes() {
    let mut said = String::new();
    for name in NAMES {
        let (module, codes) = kept(name);
        let target = module.graph("target").unwrap();
        let bytes: u64 = quantized_matrices(target, &module.weights)
            .map(|matrix| matrix.bytes)
            .sum();
        said += &format!("{name}: {}; {bytes} bytes\n", codes.notes().join("; "));
    }
    snapshot!("kept_codes", said);
}

#[test]
fn codes_are_kept_or_become_numbers_and_it_is_said_why() {
    let shell = Shell::new();
    for name in NAMES {
        let model = place(name).display().to_string();
        let compile = |out: &str, more: &[&str]| {
            let all = [&["compile", model.as_str(), "-o", out][..], more].concat();
            shell.ok(&all).stderr
        };
        let said = compile(&format!("{name}-kept"), &["--profile", "onnx"]);
        if name != "gptq-qwen2" {
            assert!(said.contains("keep their codes"), "{said}");
        }
        let said = compile(
            &format!("{name}-numbers"),
            &["--profile", "onnx", "--dequantize"],
        );
        assert!(said.contains("became numbers: --dequantize"), "{said}");
        let said = compile(&format!("{name}-portable"), &[]);
        assert!(said.contains("became numbers: profile portable"), "{said}");
        let numbers = format!("{name}-numbers");
        shell.ok(&["verify", &numbers, "--source", &model]);
        let said = compile(
            &format!("{name}-half"),
            &["--profile", "ort", "--dtype", "f16"],
        );
        assert!(said.contains("computed in f32"), "{said}");
    }
}

#[test]
fn bytes_depend_on_no_threads_and_the_configuration_says_nothing_of_codes() {
    let shell = Shell::new();
    let arguments = ["fixtures/quantised/awq-qwen2", "--profile", "ort"];
    shell.compile_alike_on_any_threads(&arguments, "one");
    let config = std::fs::read_to_string(shell.path("one/config.json")).unwrap();
    assert!(!config.contains("quantization_config"), "{config}");
    let inspected = shell.ok(&["inspect", "one"]).stdout;
    assert!(
        inspected.contains("matrices in 4 bits, blocks of 64"),
        "{inspected}"
    );
}

#[test]
fn passes_work_on_kept_codes_or_decline_by_name() {
    let shell = Shell::new();
    let compile = |out: &str, more: &[&str]| {
        let model = "fixtures/quantised/gptq-llama";
        let all = [
            &["compile", model, "--profile", "onnx", "-o", out][..],
            more,
        ]
        .concat();
        shell.dlc(&all)
    };
    shell.write(
        "tokens.jsonl",
        "{\"tokens\": [5, 17, 80, 3, 44, 9]}\n{\"tokens\": [7, 2, 95, 12, 33, 40]}\n",
    );
    let prune = "fit-prune:drop=1,calibration=tokens.jsonl";
    let pruned = compile("pruned", &["--pass", prune]);
    assert_eq!(pruned.code, Some(0), "{}", pruned.stderr);
    let inspected = shell.ok(&["inspect", "pruned"]).stdout;
    for graph in ["target", "draft"] {
        let line = inspected
            .lines()
            .find(|line| line.starts_with(graph) && line.contains("matrices in 4 bits"));
        assert!(line.is_some(), "{inspected}");
    }
    for pass in ["auto-draft", "quantize-draft"] {
        let declined = compile("declined", &["--pass", pass]);
        let expected = if pass == "auto-draft" { 3 } else { 0 };
        // The head isn't quantised in the checkpoint, so that a draft can have it quantised.
        assert_eq!(declined.code, Some(expected), "{}", declined.stderr);
        if pass == "auto-draft" {
            assert!(
                declined.stderr.contains("--dequantize"),
                "{}",
                declined.stderr
            );
        }
    }
    let declined = compile("headless", &["--pass", "quantize-draft:head=none"]);
    assert_eq!(declined.code, Some(3), "{}", declined.stderr);
    assert!(
        declined.stderr.contains("--dequantize"),
        "{}",
        declined.stderr
    );
}

#[test]
fn an_adapter_is_merged_into_the_numbers_and_the_rest_keeps_its_codes() {
    let shell = Shell::new();
    let compiled = shell.ok(&[
        "compile",
        "fixtures/quantised/gptq-llama",
        "--adapter",
        "fixtures/quantised/gptq-llama-adapter",
        "--profile",
        "onnx",
        "-o",
        "merged",
    ]);
    assert!(
        compiled
            .stderr
            .contains("12 matrices of GPTQ keep their codes"),
        "{}",
        compiled.stderr
    );
    assert!(
        compiled
            .stderr
            .contains("2 matrices of GPTQ (model.layers.0"),
        "{}",
        compiled.stderr
    );
    let bundle = dlc_runtime::Bundle::open(&shell.path("merged")).unwrap();
    let merged = dlc::pipeline::module_of_bundle(&bundle).unwrap();
    let golden = Golden::read_of(FOLDER, "gptq-llama-adapter");
    for case in CASES {
        check_module(&Engine::Evaluator, merged.clone(), &golden, case, TOLERANCE).unwrap();
    }
    let refused = shell.dlc(&[
        "merge",
        "fixtures/quantised/gptq-llama",
        "--adapter",
        "fixtures/quantised/gptq-llama-adapter",
        "-o",
        "checkpoint",
    ]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("is quantised by GPTQ"),
        "{}",
        refused.stderr
    );
}

#[test]
fn other_ways_of_quantising_are_refused_by_name() {
    let shell = Shell::new();
    shell.copy(&fixture("goldens/llama"), "other");
    let config = std::fs::read(shell.path("other/config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    for (method, part) in [
        (
            "bitsandbytes",
            "quantised by bitsandbytes; of what is quantised dlc reads gptq and awq",
        ),
        ("fp8", "quantised by fp8"),
        ("compressed-tensors", "Take the original checkpoint"),
        ("gptq", "no tensor is quantised"),
    ] {
        config["quantization_config"] = serde_json::json!({"quant_method": method});
        shell.write("other/config.json", config.to_string());
        let ran = shell.dlc(&["compile", "other", "-o", "bundle"]);
        assert_eq!(ran.code, Some(3), "{}", ran.stderr);
        assert!(ran.stderr.contains(part), "{method}: {}", ran.stderr);
    }
}

#[test]
fn biases_of_zeros_of_layers_without_biases_are_left_out() {
    let shell = Shell::new();
    shell.copy(&fixture("quantised/gptq-llama"), "old");
    let bytes = std::fs::read(shell.path("old/model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let with = |zero: u8| {
        let bias = vec![zero; 128];
        let mut tensors: Vec<_> = file.tensors();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F16, vec![64], &bias);
        tensors.push(("model.layers.0.self_attn.q_proj.bias".into(), view.unwrap()));
        safetensors::serialize(tensors, None).unwrap()
    };
    shell.write("old/model.safetensors", with(0));
    let checkpoint = Checkpoint::open(&shell.path("old")).unwrap();
    let imported =
        dlc::import::import_with_sources(&checkpoint, &dlc::import::ImportOptions::default())
            .unwrap();
    assert!(
        imported.warnings.iter().any(|w| w.contains("q_proj.bias")),
        "{:?}",
        imported.warnings
    );
    shell.write("old/model.safetensors", with(1));
    let refused = shell.dlc(&["compile", "old", "-o", "bundle"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("q_proj.bias"), "{}", refused.stderr);
}
