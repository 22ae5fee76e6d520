//! Errors about the content of a file name the file, whichever file it is.

use dlc_bundle::MANIFEST_FILE;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};

use crate::command::{Shell, bundles};
use crate::common::fixture;

/// Runs a command that must be refused, and returns what is wrong unless the error names `file`.
fn unnamed(shell: &Shell, file: &str, args: &[&str]) -> Option<String> {
    let outcome = shell.dlc(args);
    let at = outcome.stderr.find("error: ").unwrap_or(0);
    let named = outcome.stderr[at..].contains(file) && matches!(outcome.code, Some(2 | 3));
    (!named).then(|| format!("{file} isn't named:\n{}", outcome.transcript()))
}

#[test]
fn pipeline_files_are_named() {
    let shell = Shell::new();
    let mut wrong = String::new();
    for text in [
        "model: [",
        "frobnicate: 1",
        "dtype: f64",
        "passes: [fit-pruned]",
        "passes: [fit-prune: {drop: x}]",
        "passes: [fit-prune: {dorp: 1}]",
        "passes: [fit-prune: {drop: 99, calibration: fixtures/calibration-tokens.jsonl}]",
        "passes: [fit-prune: {keep: 7}]",
        "passes: [{a: 1, b: 2}]",
        "adapters: [tuned=strong]",
        "threads: 1000",
        "threads: 1\nthreads: 2",
    ] {
        shell.write("pipeline.yaml", text);
        let args = [
            "compile",
            "fixtures/goldens/llama",
            "--config",
            "pipeline.yaml",
            "-o",
            "out",
        ];
        wrong.extend(unnamed(&shell, "pipeline.yaml", &args));
        wrong.extend(unnamed(
            &shell,
            "pipeline.yaml",
            &[&args[..], &["--dry-run"]].concat(),
        ));
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn files_of_adapters_are_named() {
    let shell = Shell::new();
    let (config, weights) = (
        "tuned/adapter_config.json",
        "tuned/adapter_model.safetensors",
    );
    let mut wrong = String::new();
    let cases = [
        (config, "{"),
        (config, "[]"),
        (config, r#"{"peft_type": "FROB"}"#),
        (
            config,
            r#"{"peft_type": "LORA", "r": "x", "lora_alpha": 8, "target_modules": ["q_proj"]}"#,
        ),
        (weights, "no safetensors"),
    ];
    for (file, text) in cases {
        shell.copy(&fixture("adapters/lora-llama/adapter"), "tuned");
        shell.write(file, text);
        for command in ["compile", "merge"] {
            let args = [
                command,
                "fixtures/goldens/llama",
                "--adapter",
                "tuned",
                "-o",
                "out",
            ];
            wrong.extend(unnamed(&shell, file, &args));
        }
    }
    shell.copy(&fixture("adapters/lora-llama/adapter"), "tuned");
    let text = std::fs::read_to_string(shell.path(config)).unwrap();
    shell.write(config, text.replacen('{', "{\"bias\": \"all\",", 1));
    let base = "fixtures/adapters/lora-llama";
    let outcome = shell.ok(&["compile", base, "--adapter", "tuned", "-o", "out"]);
    assert!(
        outcome.stderr.contains("adapter tuned: adapter_config.json: keys that stand there more than once, of which the last counts: `bias`"),
        "{}",
        outcome.transcript()
    );
    std::fs::remove_dir_all(shell.path("out")).unwrap();
    shell.copy(&fixture("adapters/lora-gpt2/adapter"), "tuned");
    let args = [
        "compile",
        "fixtures/goldens/llama",
        "--adapter",
        "tuned",
        "-o",
        "out",
    ];
    wrong.extend(unnamed(&shell, "tuned/adapter_", &args));
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn files_of_prompts_and_texts_are_named_with_the_line() {
    let (shell, own) = (bundles(), Shell::new());
    own.ok(&[
        "compile",
        "fixtures/cases/sentence-max-seq-length",
        "-o",
        "encoder",
    ]);
    own.write("long.txt", format!("short\n\n{}\n", "word ".repeat(3000)));
    own.write("bad.jsonl", "{\"prompt\": \"a\"}\n{\"frob\": 1}\n");
    own.write("empty.txt", "\n\n");
    let path = |name: &str| own.path(name).to_str().unwrap().to_owned();
    let mut wrong = String::new();
    for (file, place) in [
        ("long.txt", "long.txt, line 3"),
        ("bad.jsonl", "bad.jsonl, line 2"),
        ("empty.txt", "empty.txt"),
    ] {
        let path = path(file);
        for args in [
            [
                "run",
                "portable",
                "--backend",
                "tract",
                "--max-tokens",
                "1",
                "--prompts",
                &path,
            ],
            [
                "bench",
                "portable",
                "--backend",
                "tract",
                "--max-tokens",
                "1",
                "--prompts",
                &path,
            ],
        ] {
            wrong.extend(unnamed(&shell, place, &args));
        }
    }
    let long = path("long.txt");
    let args = [
        "run",
        "portable",
        "--backend",
        "tract",
        "--prompt-file",
        &long,
    ];
    wrong.extend(unnamed(&shell, "long.txt", &args));
    for file in ["bad.jsonl", "empty.txt"] {
        let args = ["run", "encoder", "--backend", "tract", "--texts", file];
        wrong.extend(unnamed(&own, file, &args));
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn files_of_embeddings_are_named() {
    let shell = Shell::new();
    shell.copy(&fixture("goldens/pixart"), "pipeline/transformer");
    shell.write(
        "pipeline/scheduler/scheduler_config.json",
        r#"{"_class_name": "DDIMScheduler", "num_train_timesteps": 1000}"#,
    );
    shell.ok(&["compile", "pipeline", "-o", "out"]);
    let file = |shape: &[usize], names: &[&str]| {
        let bytes = vec![0; shape.iter().product::<usize>() * 4];
        let view = || TensorView::new(Dtype::F32, shape.to_vec(), &bytes).unwrap();
        serialize(names.iter().map(|name| (*name, view())), None).unwrap()
    };
    let text = "encoder_hidden_states";
    let mut wrong = String::new();
    let both = [text, "negative_encoder_hidden_states"];
    // Seven texts are no fault where there are no images yet.
    for (bytes, learns_from) in [
        (b"no safetensors".to_vec(), false),
        (file(&[1, 3, 24], &["frob"]), false),
        (file(&[1, 3, 24], &[text]), false),
        (file(&[7, 3, 24], &both), true),
        (file(&[1, 3], &both), false),
        (file(&[1, 3, 23], &both), false),
    ] {
        shell.write("texts.safetensors", bytes);
        let flags = ["--backend", "tract", "--steps", "1", "--count", "2"];
        let embeddings = ["--embeddings", "texts.safetensors"];
        for args in [&["sample", "out", "-o", "out.png"][..], &["bench", "out"]] {
            let args = [args, &flags, &embeddings].concat();
            wrong.extend(unnamed(&shell, "texts.safetensors", &args));
        }
        let learning = "dip-go:steps=2,embeddings=texts.safetensors";
        let args = [
            "compile",
            "pipeline",
            "--pass",
            learning,
            "-o",
            "other",
            "--dry-run",
        ];
        if learns_from {
            shell.ok(&args);
        } else {
            wrong.extend(unnamed(&shell, "texts.safetensors", &args));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn side_files_of_checkpoints_and_bundles_are_named() {
    let shell = Shell::new();
    let mut wrong = String::new();
    for (file, text) in [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("generation_config.json", "{"),
        ("generation_config.json", r#"{"top_p": "x"}"#),
    ] {
        shell.copy(&fixture("tiny-llama"), "model");
        shell.write(&format!("model/{file}"), text);
        wrong.extend(unnamed(&shell, file, &["compile", "model", "-o", "out"]));
    }
    shell.ok(&["compile", "fixtures/digits-dit", "-o", "digits-dlc"]);
    for (file, flag) in [
        ("classes.safetensors", "--classifier"),
        ("mean.safetensors", "--statistics"),
    ] {
        for bytes in [
            &b"no safetensors"[..],
            &serialize(None::<(String, TensorView<'_>)>, None).unwrap(),
        ] {
            shell.write(file, bytes);
            let args = [
                "bench",
                "digits-dlc",
                "--backend",
                "tract",
                "--count",
                "1",
                flag,
                file,
            ];
            wrong.extend(unnamed(&shell, file, &args));
        }
    }
    for (file, text) in [("costs.yaml", "a: 1"), ("costs.yaml", "[")] {
        shell.write(file, text);
        let pass = "auto-draft:costs=costs.yaml,samples=2,length=12";
        let args = [
            "compile",
            "fixtures/tiny-llama",
            "--profile",
            "onnx",
            "--pass",
            pass,
            "-o",
            "out",
        ];
        wrong.extend(unnamed(&shell, file, &args));
    }
    for text in ["a: 1", "["] {
        shell.write("plan.yaml", text);
        let pass = "skip:schedule=plan.yaml";
        wrong.extend(unnamed(
            &shell,
            "plan.yaml",
            &[
                "compile",
                "fixtures/digits-dit",
                "--pass",
                pass,
                "-o",
                "out",
            ],
        ));
    }
    for text in ["version: [", "frob: 1"] {
        shell.write(&format!("digits-dlc/{MANIFEST_FILE}"), text);
        wrong.extend(unnamed(&shell, MANIFEST_FILE, &["verify", "digits-dlc"]));
    }
    assert!(wrong.is_empty(), "{wrong}");
}
