//! `--task`: a checkpoint compiled for another task than it was saved for.

use std::fs;

use serde_json::{Value, json};

use crate::command::{Shell, assert_same_files, snapshot};
use crate::common::fixture;

/// A BERT with a head for masked words, and the same saved as if it had none.
fn shell() -> Shell {
    let shell = Shell::new();
    for name in ["masked", "bare"] {
        shell.copy(&fixture("goldens/bert"), name);
    }
    let path = shell.path("bare/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(config["architectures"], json!(["BertForMaskedLM"]));
    config["architectures"] = json!(["BertModel"]);
    shell.write("bare/config.json", config.to_string());
    shell
}

#[test]
fn the_body_of_a_masked_language_model_is_compiled() {
    let shell = shell();
    let task = ["--task", "feature-extraction"];
    let transcripts = [
        shell.ok(&[&["compile", "masked", "-o", "asked"][..], &task].concat()),
        shell.ok(&[&["inspect", "masked"][..], &task].concat()),
    ]
    .map(|outcome| outcome.transcript());
    // How large errors are depends on the processor.
    let verified = shell.ok(&["verify", "asked", "--source", "masked"]);
    let same = "graph and weights are those of the checkpoint";
    assert!(verified.stdout.contains(same), "{}", verified.transcript());
    shell.ok(&["compile", "bare", "-o", "declared"]);
    for name in ["model.onnx", "weights.bin"] {
        let [asked, declared] =
            ["asked", "declared"].map(|bundle| fs::read(shell.path(bundle).join(name)).unwrap());
        assert_eq!(asked, declared, "{name}");
    }
    let config = fs::read(shell.path("asked/config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["architectures"], json!(["BertModel"]));
    snapshot!("task", transcripts.join("\n"));
}

#[test]
fn a_pipeline_file_names_the_task_and_flags_decide_over_it() {
    let shell = shell();
    shell.write("pipeline.yaml", "model: masked\ntask: feature-extraction\n");
    let compile = |flags: &[&str], to: &str| {
        let flags = [
            &["compile", "--config", "pipeline.yaml", "-o", to][..],
            flags,
        ]
        .concat();
        shell.ok(&flags);
    };
    compile(&[], "file");
    shell.ok(&[
        "compile",
        "masked",
        "-o",
        "flag",
        "--task",
        "feature-extraction",
    ]);
    assert_same_files(&shell.path("file"), &shell.path("flag"));
    compile(&["--task", "fill-mask"], "own");
    shell.ok(&["compile", "masked", "-o", "plain"]);
    assert_same_files(&shell.path("own"), &shell.path("plain"));
}

#[test]
fn tasks_that_a_checkpoint_has_no_head_for_are_refused() {
    let shell = shell();
    shell.write("images.yaml", "model: masked\ntask: image-generation\n");
    shell.write("strange.yaml", "model: masked\ntask: summarization\n");
    shell.ok(&["compile", "bare", "-o", "bundle"]);
    let transcripts: Vec<String> = [
        &[
            "compile",
            "masked",
            "--task",
            "token-classification",
            "-o",
            "out",
        ][..],
        &[
            "compile",
            "bare",
            "--task",
            "question-answering",
            "-o",
            "out",
            "--dry-run",
        ],
        &[
            "compile",
            "masked",
            "--task",
            "text-generation",
            "-o",
            "out",
        ],
        &[
            "compile",
            "fixtures/goldens/llama",
            "--task",
            "fill-mask",
            "-o",
            "out",
        ],
        &[
            "compile",
            "fixtures/digits-dit",
            "--task",
            "feature-extraction",
            "-o",
            "out",
        ],
        &["compile", "masked", "--task", "summarization", "-o", "out"],
        &["compile", "--config", "images.yaml", "-o", "out"],
        &["compile", "--config", "strange.yaml", "-o", "out"],
        &["inspect", "bundle", "--task", "fill-mask"],
    ]
    .map(|args| {
        let outcome = shell.dlc(args);
        assert_ne!(outcome.code, Some(0), "{}", outcome.transcript());
        outcome.transcript()
    })
    .into();
    assert!(!shell.path("out").exists());
    snapshot!("task_refused", transcripts.join("\n"));
}
