//! Flags that would have no effect are refused: of another task, of what a bundle lacks, against
//! each other.

use safetensors::serialize;
use safetensors::tensor::TensorView;

use crate::command::{Shell, bundles};

/// Fails unless every command is refused with these words.
fn refused(shell: &Shell, cases: &[(&[&str], &str)]) {
    for (args, expected) in cases {
        let outcome = shell.dlc(args);
        assert!(
            outcome.code == Some(2) && outcome.stderr.contains(expected),
            "expected: {expected}\n{}",
            outcome.transcript()
        );
    }
}

#[test]
fn flags_of_decoders_need_what_they_are_about() {
    let run = |bundle: &str, flags: &str, expected: &str| {
        let args = format!("run {bundle} --prompt x {flags}");
        let args: Vec<&str> = args.split(' ').collect();
        refused(&bundles(), &[(&args, expected)]);
    };
    run(
        "plain",
        "--draft-cache own",
        "--draft-cache is for drafts, and none is used here",
    );
    run(
        "plain",
        "--draft-confidence 0.5",
        "--draft-confidence is for drafts",
    );
    run(
        "portable",
        "--no-draft --draft-cache own",
        "--draft-cache is for drafts",
    );
    run(
        "plain",
        "--draft-tokens 3 --no-lookup",
        "--draft-tokens is for proposed tokens, and neither",
    );
    run(
        "plain",
        "--min-tokens 9 --max-tokens 8",
        "--min-tokens 9 is more than the 8 tokens",
    );
    run(
        "plain",
        "--min-tokens 1000",
        "--min-tokens 1000 is more than the 256 tokens",
    );
    run("plain", "--device 1", "--device has no effect on the CPU");
    run("plain", "--truncate", "--truncate is for encoders");
    let bench = |flags: &str, expected: &str| {
        let args = format!("bench plain {flags}");
        let args: Vec<&str> = args.split(' ').collect();
        refused(&bundles(), &[(&args, expected)]);
    };
    bench("--draft-cache own", "--draft-cache is for drafts");
    bench("--calibrate --max-tokens 3", "cannot be used with");
    bench("--calibrate --repeats 3", "cannot be used with");
    bench("--steps 3", "--steps is for models that make images");
}

#[test]
fn flags_of_checkpoints_need_what_they_are_about() {
    let model = "fixtures/tiny-llama";
    let keys = "--ignore-key is for a checkpoint's config.json";
    refused(
        &bundles(),
        &[
            (&["verify", "plain", "--ignore-key", "x"], keys),
            (&["inspect", "plain", "--ignore-key", "x"], keys),
            (
                &["compile", model, "--ignore-key", "hiden_size", "-o", "out"],
                "`hiden_size` is to be ignored, and isn't there",
            ),
            (
                &[
                    "compile",
                    model,
                    "--adapter-names",
                    "names.yaml",
                    "-o",
                    "out",
                ],
                "the name map names.yaml has no effect without an adapter",
            ),
        ],
    );
}

#[test]
fn flags_of_encoders_and_of_models_that_make_images_need_what_they_are_about() {
    let shell = Shell::new();
    for (model, bundle) in [
        ("fixtures/goldens/bert", "encoder"),
        ("fixtures/goldens/bert-encoder", "vectors"),
        ("fixtures/digits-dit", "digits"),
    ] {
        shell.ok(&["compile", model, "-o", bundle]);
    }
    let none: [(String, TensorView<'_>); 0] = [];
    shell.write("texts.safetensors", serialize(none, None).unwrap());
    let texts = "texts.safetensors";
    refused(
        &shell,
        &[
            (
                &["run", "encoder", "--prompt", "x"],
                "--prompt is for models that continue texts, and has no effect on a bert for fill-mask: give it --text TEXT",
            ),
            (
                &["run", "encoder", "--chat"],
                "--chat is for models that continue texts",
            ),
            (
                &["run", "vectors", "--text", "x", "--top", "3"],
                "--top is for models that choose among classes, words or answers",
            ),
            (
                &["bench", "encoder", "--prompts", "fixtures/prompts.txt"],
                "--prompts is for comparing a pruned encoder",
            ),
            (
                &["bench", "encoder", "--lengths", "9999"],
                "all --lengths are longer",
            ),
            (
                &["sample", "digits", "--embeddings", texts, "-o", "x.png"],
                "is conditioned on nothing but a class, so --embeddings has no effect",
            ),
            (
                &["bench", "digits", "--prompts", "fixtures/prompts.txt"],
                "--prompts is for models that read texts",
            ),
        ],
    );
}
