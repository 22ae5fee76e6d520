//! Adapters merged by dlc say what PEFT's merged model says.

use std::path::Path;

use dlc::checkpoint::Checkpoint;
use dlc::import::{ImportOptions, import};
use dlc::pipeline::{module_of_bundle, parse_pass_flag};
use dlc_bundle::Profile;
use dlc_ir::Module;
use dlc_runtime::{BackendKind, BackendSearch, Bundle, start};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};

use crate::command::{Shell, assert_same_files};
use crate::common::adapters::{
    adapter, adapters, all_adapters, check_adapter, compile_with, folder, inputs, largest_error,
    logits,
};
use crate::common::decoding::{compile_quietly, compile_request};
use crate::common::golden::TOLERANCE;

/// Compiles the golden with its adapter, and reads the merged module back from the bundle.
fn merged(golden: &str, adapters: &[String], out: &Path) -> Result<(Bundle, Module), String> {
    let bundle =
        compile_with(golden, adapters, Profile::Portable, out).map_err(|e| e.to_string())?;
    let module = module_of_bundle(&bundle).unwrap();
    Ok((bundle, module))
}

fn evaluated(golden: &str, module: &Module) -> Vec<f32> {
    let graph = module.graph("target").unwrap();
    dlc_eval::run(graph, &module.weights, &inputs(golden, graph)).unwrap()["logits"]
        .as_f32()
        .unwrap()
        .to_vec()
}

#[test]
fn merged_logits_are_those_of_the_reference() {
    for golden in all_adapters() {
        let out = tempfile::tempdir().unwrap();
        let (_, module) = merged(golden, &adapters(golden), out.path()).unwrap();
        let error = largest_error(
            &evaluated(golden, &module),
            &logits(golden, "output_merged.logits"),
        );
        assert!(error <= TOLERANCE, "{golden}: {error:e}");
        let untouched = largest_error(
            &logits(golden, "output.logits"),
            &logits(golden, "output_merged.logits"),
        );
        assert!(
            untouched > 100.0 * TOLERANCE,
            "{golden}: the adapter changes nothing, so merging it proves nothing"
        );
    }
}

#[test]
fn merged_bundles_run_on_tract() {
    let backend = start(&BackendSearch {
        force: Some(BackendKind::Tract),
        ..BackendSearch::default()
    })
    .unwrap();
    for golden in all_adapters() {
        for profile in [Profile::Portable, Profile::Onnx] {
            check_adapter(&backend, golden, profile).unwrap();
        }
    }
}

#[test]
fn the_scores_of_fit_prune_are_those_of_the_merged_model() {
    let out = tempfile::tempdir().unwrap();
    let samples = out.path().join("samples.jsonl");
    std::fs::write(
        &samples,
        "{\"tokens\": [5, 17, 80, 33, 9, 41, 2, 66]}\n{\"tokens\": [90, 3, 3, 28, 54]}\n",
    )
    .unwrap();
    let prune = parse_pass_flag(&format!(
        "fit-prune:drop=1,calibration={}",
        samples.display()
    ))
    .unwrap();
    let scores = |model: &Path, adapters: &[String], name: &str| {
        let mut request =
            compile_request(model.to_owned(), Profile::Portable, out.path().join(name));
        request.adapters = adapters
            .iter()
            .map(|a| dlc::pipeline::parse_adapter_flag(a).unwrap())
            .collect();
        request.passes = vec![prune.clone()];
        let outcome = compile_quietly(&request).unwrap();
        outcome
            .runs
            .iter()
            .find_map(|r| r.report.scores.clone())
            .unwrap()
            .columns[0]
            .values
            .clone()
    };
    let together = scores(&folder("dual-llama"), &[adapter("dual-llama")], "together");
    let base = scores(&folder("dual-llama"), &[], "base");
    // The merged weights as a checkpoint of their own.
    let (_, module) = merged(
        "dual-llama",
        &[adapter("dual-llama")],
        &out.path().join("merge"),
    )
    .unwrap();
    let checkpoint = out.path().join("checkpoint");
    std::fs::create_dir(&checkpoint).unwrap();
    std::fs::copy(
        folder("dual-llama").join("config.json"),
        checkpoint.join("config.json"),
    )
    .unwrap();
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = module
        .weights
        .entries()
        .map(|(_, w)| {
            (
                w.name.clone(),
                w.shape.clone(),
                w.to_f32()
                    .unwrap()
                    .iter()
                    .flat_map(|x| x.to_le_bytes())
                    .collect(),
            )
        })
        .collect();
    let views = data.iter().map(|(n, shape, bytes)| {
        (
            n.clone(),
            TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    serialize_to_file(views, None, &checkpoint.join("model.safetensors")).unwrap();
    assert_eq!(together, scores(&checkpoint, &[], "apart"));
    assert_ne!(together, base);
}

#[test]
fn a_strength_of_zero_or_two_opposite_adapters_leave_the_model_as_it_was() {
    for golden in ["lora-llama", "dual-llama"] {
        for adapters in [
            vec![format!("{}=0", adapter(golden))],
            vec![adapter(golden), format!("{}=-1", adapter(golden))],
        ] {
            let out = tempfile::tempdir().unwrap();
            let (_, module) = merged(golden, &adapters, out.path()).unwrap();
            let error = largest_error(
                &evaluated(golden, &module),
                &logits(golden, "output.logits"),
            );
            assert!(error <= TOLERANCE, "{golden} {adapters:?}: {error:e}");
        }
    }
}

#[test]
fn exactly_the_weights_that_the_adapter_names_change_and_the_report_lists_them() {
    let out = tempfile::tempdir().unwrap();
    let (bundle, module) = merged("dual-llama", &[adapter("dual-llama")], out.path()).unwrap();
    let base = import(
        &Checkpoint::open(&folder("dual-llama")).unwrap(),
        &ImportOptions::default(),
    )
    .unwrap();
    let differs = |name: &str| {
        let [a, b] =
            [&base, &module].map(|m| m.weights[m.weights.find(name).unwrap()].to_f32().unwrap());
        a != b
    };
    let changed: Vec<String> = base
        .weights
        .entries()
        .map(|(_, w)| w.name.clone())
        .filter(|n| differs(n))
        .collect();
    let report = &bundle.manifest().passes[0].report["changes"];
    let mut listed: Vec<String> = report
        .as_sequence()
        .unwrap()
        .iter()
        .map(|c| c["weight"].as_str().unwrap().to_owned())
        .collect();
    listed.sort();
    let mut sorted = changed.clone();
    sorted.sort();
    assert_eq!(listed, sorted);
    assert_eq!(changed.len(), 3 * 5);
    let frozen = report[0]["frozen"].as_f64().unwrap();
    assert!(
        (0.3..0.7).contains(&frozen),
        "relu keeps {frozen} of random entries at rest"
    );
}

type Edit = fn(&str) -> String;

#[test]
fn adapters_that_do_not_fit_are_refused_with_all_that_is_wrong() {
    let edits: &[(&str, Edit)] = &[
        ("lora-llama", |c| c.replace("\"LORA\"", "\"VERA\"")),
        ("lora-llama", |c| c.replace("\"r\": 4", "\"r\": 8")),
        ("lora-llama", |c| {
            c.replace("\"lora_alpha\": 10", "\"lora_alpha\": \"ten\"")
        }),
        ("lora-llama", |c| {
            c.replace(
                "\"modules_to_save\": null",
                "\"modules_to_save\": [\"lm_head\"]",
            )
        }),
        ("lora-llama", |c| {
            c.replace("\"bias\": \"none\"", "\"bias\": \"some\"")
        }),
        ("lora-llama", |c| {
            c.replace("\"alpha_pattern\": {}", "\"alpha_pattern\": {\"(\": 1}")
        }),
        ("lora-llama", |c| c.replace("\"k_proj\"", "\"key_proj\"")),
        ("lora-llama", |c| c.replace("\"k_proj\"", "\"o_proj\"")),
        ("layers-llama", |c| {
            c.replace(
                "\"layers_to_transform\": [\n    0,",
                "\"layers_to_transform\": [\n    1,",
            )
        }),
        ("patterns-llama", |c| {
            c.replace("(self_attn", "(?=self_attn")
        }),
        ("lora-llama", |c| {
            c.replace(
                "\"target_parameters\": null",
                "\"target_parameters\": [\"experts\"]",
            )
        }),
        ("bias-gpt2", |c| {
            c.replace("\"bias\": \"all\"", "\"bias\": \"none\"")
        }),
        ("dora-llama", |c| {
            c.replace("\"use_dora\": true", "\"use_dora\": false")
        }),
        ("dual-llama", |c| {
            c.replace("{\n", "{\n  \"new_trick\": 3,\n")
        }),
    ];
    let mut messages = Vec::new();
    for &(golden, edit) in edits {
        let out = tempfile::tempdir().unwrap();
        let copy = out.path().join("adapter");
        std::fs::create_dir(&copy).unwrap();
        std::fs::copy(
            folder(golden).join("adapter/adapter_model.safetensors"),
            copy.join("adapter_model.safetensors"),
        )
        .unwrap();
        let config =
            std::fs::read_to_string(folder(golden).join("adapter/adapter_config.json")).unwrap();
        let edited = edit(&config);
        assert_ne!(edited, config);
        std::fs::write(copy.join("adapter_config.json"), edited).unwrap();
        let error = merged(golden, &[copy.display().to_string()], out.path())
            .map(|_| ())
            .unwrap_err();
        messages.push(error.replace(&out.path().display().to_string(), "[TMP]"));
        assert!(!out.path().join("bundle").exists());
    }
    insta::assert_snapshot!(messages.join("\n"));
}

/// An adapter as another trainer would have written it, and the map that says so.
const OTHER_NAMES: [(&str, &str); 4] = [
    ("lora_magnitude_A", "mag_in"),
    ("lora_magnitude_B", "mag_out"),
    ("lora_direction_A", "dir_in"),
    ("lora_direction_B", "dir_out"),
];
const NAME_MAP: &str = r"
set: {peft_type: DUAL_LORA, fan_in_fan_out: false}
config: {rank: [r_magnitude, r_direction], alpha: lora_alpha, modules: target_modules}
tensors:
  '(.+):mag_in': 'base_model.model.${1}.lora_magnitude_A.weight'
  '(.+):mag_out': 'base_model.model.${1}.lora_magnitude_B.weight'
  '(.+):dir_in': 'base_model.model.${1}.lora_direction_A.weight'
  '(.+):dir_out': 'base_model.model.${1}.lora_direction_B.weight'
";

/// A shell with the folder `foreign`, the adapter of `dual-llama` under other names, and
/// `names.yaml`.
fn foreign() -> Shell {
    let shell = Shell::new();
    let bytes =
        std::fs::read(folder("dual-llama").join("adapter/adapter_model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let renamed = tensors.iter().map(|(name, view)| {
        let bare = name
            .strip_prefix("base_model.model.")
            .unwrap()
            .strip_suffix(".weight")
            .unwrap();
        let name = OTHER_NAMES
            .iter()
            .fold(bare.to_owned(), |name, (ours, theirs)| {
                name.replace(&format!(".{ours}"), &format!(":{theirs}"))
            });
        (name, view)
    });
    shell.write("foreign/adapter_config.json", r#"{"rank": 4, "alpha": 2.0, "modules": ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]}"#);
    serialize_to_file(
        renamed,
        None,
        &shell.path("foreign/adapter_model.safetensors"),
    )
    .unwrap();
    shell.write("names.yaml", NAME_MAP);
    shell
}

#[test]
fn a_name_map_reads_adapters_of_another_trainer() {
    let shell = foreign();
    let merge = |adapter: &str, more: &[&str], out: &str| {
        shell.ok(&[
            &[
                "merge",
                "fixtures/adapters/dual-llama",
                "--adapter",
                adapter,
                "-o",
                out,
            ][..],
            more,
        ]
        .concat());
    };
    merge("fixtures/adapters/dual-llama/adapter", &[], "ours");
    merge("foreign", &["--adapter-names", "names.yaml"], "theirs");
    assert_same_files(&shell.path("ours"), &shell.path("theirs"));
    // A pipeline file says the same.
    shell.write("pipeline.yaml", "model: fixtures/adapters/dual-llama\nadapters: [foreign]\nadapter-names: names.yaml\noutput: bundle\n");
    shell.ok(&["compile", "--config", "pipeline.yaml"]);
    shell.ok(&["compile", "ours", "-o", "merged"]);
    let weights = |bundle: &str| std::fs::read(shell.path(bundle).join("weights.bin")).unwrap();
    assert!(weights("bundle") == weights("merged"));
}

#[test]
fn name_maps_that_do_not_fit_are_refused() {
    let shell = foreign();
    let mut messages = String::new();
    let twice = NAME_MAP.replace("lora_direction_A", "lora_direction_B");
    let maps = [
        &NAME_MAP.replace(":dir_out", ":dir_off"),
        &twice,
        "tensors: {'(': a}",
        "tensors: [a]",
        "config: {rank: 4}",
        "names: {}",
        "set: 3",
    ];
    for map in maps {
        shell.write("names.yaml", map);
        let args = [
            "merge",
            "fixtures/adapters/dual-llama",
            "--adapter",
            "foreign",
            "--adapter-names",
            "names.yaml",
            "-o",
            "out",
        ];
        let outcome = shell.dlc(&args);
        assert_eq!(outcome.code, Some(2), "{}", outcome.transcript());
        messages += &outcome.stderr;
    }
    insta::assert_snapshot!(messages);
    assert_eq!(shell.listing(), ["foreign", "names.yaml"]);
}

fn names_of_files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(Result::unwrap)
        .filter(|e| e.path().is_file());
    let mut names: Vec<String> = entries
        .map(|e| e.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn merge_writes_a_checkpoint_that_compiles_to_what_the_adapter_compiles_to() {
    for golden in all_adapters() {
        let shell = Shell::new();
        let base = format!("fixtures/adapters/{golden}");
        let flags: Vec<String> = adapters(golden)
            .into_iter()
            .flat_map(|a| ["--adapter".to_owned(), a])
            .collect();
        let with_adapters = |command: &str, out: &str| {
            let args: Vec<&str> = [command, &base]
                .into_iter()
                .chain(flags.iter().map(String::as_str))
                .chain(["-o", out])
                .collect();
            shell.ok(&args);
        };
        with_adapters("merge", "merged");
        with_adapters("compile", "at-once");
        shell.ok(&["compile", "merged", "-o", "in-two-steps"]);
        let weights = |bundle: &str| std::fs::read(shell.path(bundle).join("weights.bin")).unwrap();
        assert!(weights("at-once") == weights("in-two-steps"), "{golden}");

        // The same files but for the golden, which is weights to nobody's model; and again to the
        // byte.
        let files = |folder: &Path| {
            names_of_files(folder)
                .into_iter()
                .filter(|name| name != "golden.safetensors")
                .collect::<Vec<_>>()
        };
        assert_eq!(
            files(&shell.path("merged")),
            files(&folder(golden)),
            "{golden}"
        );
        with_adapters("merge", "again");
        assert_same_files(&shell.path("merged"), &shell.path("again"));
    }
}

#[test]
fn merge_keeps_the_folders_of_sentence_transformers_and_follows_links_to_files() {
    let shell = Shell::new();
    for name in ["config.json", "model.safetensors"] {
        shell.write(
            &format!("base/{name}"),
            std::fs::read(folder("lora-bert").join(name)).unwrap(),
        );
    }
    shell.write(
        "base/modules.json",
        r#"[{"path": "", "type": "m.Transformer"}, {"path": "1_Pooling", "type": "m.Pooling"}, {"path": "2_Gone", "type": "m.Normalize"}]"#,
    );
    shell.write(
        "base/1_Pooling/config.json",
        r#"{"pooling_mode_cls_token": true}"#,
    );
    shell.write("base/other/secret.json", "{}");
    let merge = |out: &str| {
        shell.dlc(&[
            "merge",
            "base",
            "--adapter",
            "fixtures/adapters/lora-bert/adapter",
            "-o",
            out,
        ])
    };
    assert_eq!(merge("merged").code, Some(0));
    assert_same_files(
        &shell.path("merged/1_Pooling"),
        &shell.path("base/1_Pooling"),
    );
    assert!(!shell.path("merged/other").exists() && !shell.path("merged/2_Gone").exists());
    // As in the hub's cache, where every file is a link.
    let blob = shell.path("blob");
    std::fs::rename(shell.path("base/1_Pooling/config.json"), &blob).unwrap();
    std::os::unix::fs::symlink(&blob, shell.path("base/1_Pooling/config.json")).unwrap();
    assert_eq!(merge("linked").code, Some(0));
    assert_same_files(
        &shell.path("linked/1_Pooling"),
        &shell.path("merged/1_Pooling"),
    );
    assert!(!shell.path("linked/1_Pooling/config.json").is_symlink());
}

#[test]
fn a_folder_whose_name_looks_like_a_weight_is_a_folder() {
    let shell = Shell::new();
    shell.copy(&folder("lora-llama").join("adapter"), "lr=1e-4");
    for (flag, out) in [("lr=1e-4", "plain"), ("lr=1e-4=0.5", "half")] {
        shell.ok(&[
            "merge",
            "fixtures/adapters/lora-llama",
            "--adapter",
            flag,
            "-o",
            out,
        ]);
    }
    let bytes = |out: &str| std::fs::read(shell.path(out).join("model.safetensors")).unwrap();
    assert!(bytes("plain") != bytes("half"));
}

#[test]
fn diff_of_base_and_merged_shows_exactly_the_weights_that_the_adapter_names() {
    let shell = Shell::new();
    let base = "fixtures/adapters/lora-gpt2";
    shell.ok(&[
        "merge",
        base,
        "--adapter",
        "fixtures/adapters/lora-gpt2/adapter",
        "-o",
        "merged",
    ]);
    let outcome = shell.dlc(&["diff", base, "merged", "--exit-code"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.transcript());
    insta::assert_snapshot!(outcome.stdout);
    let report = shell.dlc(&["diff", base, "merged", "--json"]).json();
    let names: Vec<&str> = report["weights"]
        .as_array()
        .unwrap()
        .iter()
        .map(|w| w["weight"].as_str().unwrap())
        .collect();
    assert!(
        names.len() == 9
            && names
                .iter()
                .all(|n| n.ends_with("c_attn.weight") || n.ends_with("c_proj.weight")),
        "{names:?}"
    );
    assert_eq!(
        shell
            .dlc(&["diff", base, "merged", "--exit-code", "--graphs-only"])
            .code,
        Some(0)
    );
    assert_eq!(
        shell.dlc(&["diff", base, base, "--exit-code"]).code,
        Some(0)
    );
}

#[test]
fn merge_keeps_shards_companions_and_types() {
    let shell = Shell::new();
    // The base in two shards of half precision, with files beside that nobody reads.
    let bytes = std::fs::read(folder("lora-llama").join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let half = |view: &TensorView<'_>| -> Vec<u8> {
        let numbers = view
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        numbers
            .flat_map(|x| half::f16::from_f32(x).to_le_bytes())
            .collect()
    };
    let halves: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(n, v)| (n.to_owned(), v.shape().to_vec(), half(&v)))
        .collect();
    let mut index = serde_json::Map::new();
    std::fs::create_dir(shell.path("base")).unwrap();
    for (i, part) in halves.chunks(halves.len().div_ceil(2)).enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", i + 1);
        let views = part.iter().map(|(n, shape, bytes)| {
            (
                n.clone(),
                TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap(),
            )
        });
        serialize_to_file(views, None, &shell.path("base").join(&file)).unwrap();
        index.extend(part.iter().map(|(n, ..)| (n.clone(), file.clone().into())));
    }
    shell.write(
        "base/model.safetensors.index.json",
        serde_json::json!({"metadata": {}, "weight_map": index}).to_string(),
    );
    shell.write(
        "base/config.json",
        std::fs::read(folder("lora-llama").join("config.json")).unwrap(),
    );
    for (name, text) in [
        ("base/README.md", "a card"),
        ("base/vocab.txt", "a\nb\n"),
        ("base/pytorch_model.bin", "old"),
        ("base/.cache", "hidden"),
    ] {
        shell.write(name, text);
    }
    shell.ok(&[
        "merge",
        "base",
        "--adapter",
        "fixtures/adapters/lora-llama/adapter",
        "-o",
        "merged",
    ]);
    let names = names_of_files(&shell.path("merged"));
    let kept = [
        "README.md",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "vocab.txt",
    ];
    assert_eq!(names, kept);
    let differences = shell.dlc(&["diff", "base", "merged", "--json"]).json();
    assert_eq!(differences["weights"].as_array().unwrap().len(), 15);

    // Values that half precision can't hold, an output that stands there, and no adapter at all.
    let mut messages = String::new();
    for (args, out) in [
        (
            &[
                "--adapter",
                "fixtures/adapters/lora-llama/adapter",
                "--scale",
                "1e6",
            ][..],
            "huge",
        ),
        (
            &["--adapter", "fixtures/adapters/lora-llama/adapter"],
            "merged",
        ),
        (&["--adapter", "missing"], "none"),
        (&[], "none"),
    ] {
        let outcome = shell.dlc(&[&["merge", "base"][..], args, &["-o", out]].concat());
        assert_eq!(outcome.code, Some(2), "{}", outcome.transcript());
        messages += &outcome.transcript();
    }
    insta::assert_snapshot!(messages);
    assert_eq!(shell.listing(), ["base", "merged"]);
}
