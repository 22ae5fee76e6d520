//! Adapters that were changed a little: what says the same is merged as before, anything else is
//! refused with what is wrong.

use std::collections::BTreeMap;

use dlc::pipeline::{PipelineError, module_of_bundle};
use dlc_bundle::Profile;
use dlc_errors::Faulty;
use dlc_runtime::Bundle;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command::Shell;
use crate::common::adapters::{compile_with, folder, inputs, largest_error, logits};
use crate::common::golden::TOLERANCE;

/// Names without what PEFT puts before them, with shapes and numbers.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

const PREFIX: &str = "base_model.model.";

/// The adapter of `golden` with these keys in its configuration and other tensors, compiled into
/// its base.
fn compiled(
    golden: &str,
    keys: &Value,
    edit: impl Fn(&mut Tensors),
) -> (Result<Bundle, PipelineError>, TempDir) {
    let out = tempfile::tempdir().unwrap();
    let from = folder(golden).join("adapter");
    let adapter = out.path().join("tuned");
    std::fs::create_dir(&adapter).unwrap();
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(from.join("adapter_config.json")).unwrap()).unwrap();
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(from.join("adapter_model.safetensors")).unwrap();
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let floats = |view: &TensorView<'_>| {
        view.data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    };
    let mut tensors: Tensors = read
        .iter()
        .map(|(n, v)| {
            (
                n.strip_prefix(PREFIX).unwrap().to_owned(),
                (v.shape().to_vec(), floats(&v)),
            )
        })
        .collect();
    edit(&mut tensors);
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(n, (shape, x))| {
            (
                format!("{PREFIX}{n}"),
                shape,
                x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            )
        })
        .collect();
    let views = data.iter().map(|(n, shape, bytes)| {
        (
            n.clone(),
            TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    serialize_to_file(views, None, &adapter.join("adapter_model.safetensors")).unwrap();
    let bundle = compile_with(
        golden,
        &[adapter.display().to_string()],
        Profile::Portable,
        out.path(),
    );
    (bundle, out)
}

/// An error without the temporary folder's name, after whose fault it is.
fn shown(error: &PipelineError, folder: &TempDir) -> String {
    let text = error.to_string();
    let text = text.replace(&folder.path().display().to_string(), "[TMP]");
    format!("{:?}: {text}", error.fault())
}

#[test]
fn configurations_that_say_the_same_merge_the_same() {
    let targets = json!(["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]);
    for (golden, keys) in [
        ("lora-llama", json!({"init_lora_weights": "gaussian"})),
        ("lora-llama", json!({"init_lora_weights": "Orthogonal"})),
        ("lora-llama", json!({"init_lora_weights": "eva"})),
        ("lora-llama", json!({"init_lora_weights": false})),
        (
            "lora-llama",
            json!({"target_modules": r"^(?!.*(lm_head|gate|o_proj)).*proj$"}),
        ),
        (
            "lora-llama",
            json!({"target_modules": targets, "layers_to_transform": [0, 1, 2], "layers_pattern": ""}),
        ),
        (
            "lora-llama",
            json!({"use_rslora": null, "use_dora": null, "rank_pattern": null, "modules_to_save": null, "bias": null}),
        ),
        (
            "lora-llama",
            json!({"alpha_pattern": {"(?=q_proj)q_proj": 10}}),
        ),
        // What is trained as a whole is no target.
        (
            "lora-bert",
            json!({"target_modules": ["query", "value", "classifier"]}),
        ),
        (
            "layers-llama",
            json!({"target_modules": layers_by_name(), "layers_to_transform": [7]}),
        ),
    ] {
        let (bundle, _out) = compiled(golden, &keys, |_| ());
        let module = module_of_bundle(&bundle.unwrap_or_else(|e| panic!("{keys}: {e}"))).unwrap();
        let graph = module.graph("target").unwrap();
        let found = dlc_eval::run(graph, &module.weights, &inputs(golden, graph)).unwrap();
        let error = largest_error(
            found["logits"].as_f32().unwrap(),
            &logits(golden, "output_merged.logits"),
        );
        assert!(error <= TOLERANCE, "{golden} {keys}: {error:e}");
    }
}

/// The modules of `layers-llama` by their whole names, which PEFT doesn't filter by layer.
fn layers_by_name() -> Vec<String> {
    let bytes =
        std::fs::read(folder("layers-llama").join("adapter/adapter_model.safetensors")).unwrap();
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let modules = read.names().into_iter().filter_map(|name| {
        name.strip_prefix(PREFIX)?
            .strip_suffix(".lora_A.weight")
            .map(str::to_owned)
    });
    modules.collect()
}

#[test]
fn an_adapter_without_strength_or_turned_around_is_merged_so() {
    let merged =
        |keys: Value| module_of_bundle(&compiled("lora-llama", &keys, |_| ()).0.unwrap()).unwrap();
    let weight = |module: &dlc_ir::Module| {
        let weights = &module.weights;
        weights[weights
            .find("model.layers.0.self_attn.q_proj.weight")
            .unwrap()]
        .to_f32()
        .unwrap()
    };
    let [plus, zero, minus] =
        [10.0, 0.0, -10.0].map(|alpha| weight(&merged(json!({"lora_alpha": alpha}))));
    for ((p, z), m) in plus.iter().zip(&zero).zip(&minus) {
        assert!((p - z + (m - z)).abs() < 1e-5 && p.is_finite());
    }
    assert_ne!(plus, zero);
}

#[test]
fn configurations_that_dlc_can_not_follow_are_refused() {
    let cases = [
        ("lora-llama", json!({"init_lora_weights": "pissa"})),
        ("lora-llama", json!({"init_lora_weights": "pissa_niter_4"})),
        ("lora-llama", json!({"init_lora_weights": "olora"})),
        ("lora-llama", json!({"init_lora_weights": "corda"})),
        ("lora-llama", json!({"init_lora_weights": "loftq"})),
        ("lora-llama", json!({"init_lora_weights": 3})),
        (
            "lora-llama",
            json!({"use_rslora": 1, "use_dora": "yes", "r": 4.7, "lora_alpha": true, "rank_pattern": [], "modules_to_save": "norm"}),
        ),
        (
            "lora-llama",
            json!({"r": null, "lora_alpha": null, "modules_to_save": [1, 2], "bias": true, "alpha_pattern": {"q_proj": "x"}}),
        ),
        (
            "lora-llama",
            json!({"modules_to_save": [""], "rank_pattern": {"q_proj": 4.5}}),
        ),
        (
            "lora-llama",
            json!({"target_modules": "(", "init_lora_weights": "pissa"}),
        ),
        (
            "lora-llama",
            json!({"target_modules": ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"], "layers_pattern": "(a)|b", "layers_to_transform": 1}),
        ),
        ("dual-llama", json!({"scaling": "2.0"})),
        ("lora-gpt2", json!({"bias": "lora_only"})),
        ("lora-gpt2", json!({"bias": "all"})),
    ];
    let mut messages = String::new();
    for (golden, keys) in cases {
        let (bundle, out) = compiled(golden, &keys, |_| ());
        let error = bundle.map(|_| ()).expect_err(&keys.to_string());
        messages += &format!("{keys}\n{}\n", shown(&error, &out));
    }
    insta::assert_snapshot!(messages);
}

type Edit = fn(&mut Tensors);

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn tensors_that_dlc_can_not_place_are_refused() {
    let q = "model.layers.0.self_attn.q_proj";
    let cases: [(&str, &str, Value, Edit); 9] = [
        (
            "an embedding that the head shares",
            "lora-gpt2",
            json!({"modules_to_save": ["wte"]}),
            |t| {
                t.insert(
                    "transformer.wte.weight".into(),
                    (vec![99, 48], vec![0.5; 99 * 48]),
                );
            },
        ),
        (
            "a head that is tied",
            "lora-gpt2",
            json!({"modules_to_save": ["lm_head"]}),
            |t| {
                t.insert("lm_head.weight".into(), (vec![99, 48], vec![0.5; 99 * 48]));
            },
        ),
        (
            "a weight that isn't there",
            "lora-llama",
            json!({"modules_to_save": ["pooler"]}),
            |t| {
                t.insert("model.pooler.weight".into(), (vec![2], vec![0.5; 2]));
            },
        ),
        (
            "another shape",
            "lora-llama",
            json!({"modules_to_save": ["norm"]}),
            |t| {
                t.insert("model.norm.weight".into(), (vec![2], vec![0.5; 2]));
            },
        ),
        (
            "the base of a module that isn't adapted",
            "lora-llama",
            json!({}),
            |t| {
                t.insert(
                    "model.layers.0.self_attn.o_proj.base_layer.weight".into(),
                    (vec![1], vec![1.0]),
                );
            },
        ),
        ("a matrix under two names", "lora-llama", json!({}), |t| {
            let b = t["model.layers.0.self_attn.q_proj.lora_B.weight"].clone();
            t.insert(
                "model.layers.0.self_attn.q_proj.lora_B.default.weight".into(),
                b,
            );
        }),
        (
            "two weights for one place",
            "lora-llama",
            json!({"modules_to_save": ["model.norm"]}),
            |t| {
                let width = t["model.layers.0.self_attn.q_proj.lora_A.weight"].0[1];
                t.insert("model.norm.weight".into(), (vec![width], vec![1.0; width]));
                t.insert(
                    "model.norm.modules_to_save.weight".into(),
                    (vec![width], vec![2.0; width]),
                );
            },
        ),
        (
            "tensors in a module that was trained as a whole",
            "lora-llama",
            json!({"modules_to_save": ["self_attn"]}),
            |_| (),
        ),
        (
            "DoRA of an embedding",
            "dora-llama",
            json!({"target_modules": null}),
            |t| {
                t.insert(
                    "model.embed_tokens.lora_embedding_A".into(),
                    (vec![4, 99], vec![0.5; 4 * 99]),
                );
                t.insert(
                    "model.embed_tokens.lora_embedding_B".into(),
                    (vec![48, 4], vec![0.5; 4 * 48]),
                );
            },
        ),
    ];
    let mut messages = String::new();
    for (case, golden, keys, edit) in cases {
        let (bundle, out) = compiled(golden, &keys, edit);
        let error = bundle.map(|_| ()).expect_err(case);
        messages += &format!("{case}\n{}\n", shown(&error, &out));
    }
    insta::assert_snapshot!(messages);
    // The same numbers twice are no question.
    let (bundle, _out) = compiled(
        "lora-llama",
        &json!({"modules_to_save": ["model.norm"]}),
        |t| {
            let width = t[&format!("{q}.lora_A.weight")].0[1];
            t.insert("model.norm.weight".into(), (vec![width], vec![2.0; width]));
            t.insert(
                "model.norm.modules_to_save.weight".into(),
                (vec![width], vec![2.0; width]),
            );
        },
    );
    let module = module_of_bundle(&bundle.unwrap()).unwrap();
    let norm = &module.weights[module.weights.find("model.norm.weight").unwrap()];
    assert!(
        norm.to_f32()
            .unwrap()
            .iter()
            .all(|x| (x - 2.0).abs() < 1e-6)
    );
}

#[test]
fn parts_that_the_task_leaves_out_are_merged_and_not_compiled() {
    let shell = Shell::new();
    let modules = ["encoder.layer.1.attention.self.query", "pooler.dense"];
    let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": modules});
    shell.write("tuned/adapter_config.json", config.to_string());
    let ones: Vec<u8> = [1f32; 32].iter().flat_map(|x| x.to_le_bytes()).collect();
    let view = |shape: [usize; 2]| TensorView::new(Dtype::F32, shape.to_vec(), &ones).unwrap();
    let matrices = |module: &&str| {
        [("A", [1, 32]), ("B", [32, 1])]
            .map(|(part, shape)| (format!("{PREFIX}{module}.lora_{part}.weight"), view(shape)))
    };
    serialize_to_file(
        modules.iter().flat_map(matrices),
        None,
        &shell.path("tuned/adapter_model.safetensors"),
    )
    .unwrap();
    let base = "fixtures/goldens/bert-encoder";
    shell.ok(&["merge", base, "--adapter", "tuned", "-o", "merged"]);
    let floats = |folder: &str, name: &str| -> Vec<f32> {
        let bytes = std::fs::read(shell.path(folder).join("model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        tensors
            .tensor(name)
            .unwrap()
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    };
    for name in modules.map(|module| format!("{module}.weight")) {
        let moved = floats(base, &name)
            .iter()
            .zip(floats("merged", &name))
            .all(|(a, b)| (b - a - 2.0).abs() < 1e-5);
        assert!(moved, "{name}");
    }
    let report = shell
        .ok(&[
            "compile",
            base,
            "--adapter",
            "tuned",
            "-o",
            "at-once",
            "--json",
        ])
        .json();
    let changes = report["passes"][0]["report"]["changes"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(
        (
            changes,
            &report["passes"][0]["report"]["weights that only adapter tuned uses"]
        ),
        (1, &json!("pooler.dense.weight"))
    );
    shell.ok(&["compile", "merged", "-o", "in-two-steps"]);
    let weights = |bundle: &str| std::fs::read(shell.path(bundle).join("weights.bin")).unwrap();
    assert!(weights("at-once") == weights("in-two-steps"));
}
