//! `dlc compile --deploy`: bundles whose graphs lie where another runtime looks for them are
//! bundles like others, and what doesn't fit a target is refused before any work.

use std::fs;

use dlc_exporters::TARGETS;

use crate::command::{PRUNE_TINY, Shell, assert_same_files};
use crate::documents::Document;

const SENTENCES: &str = "fixtures/cases/sentence-not-normalized";

#[test]
fn a_bundle_in_another_layout_is_opened_by_its_manifest() {
    let shell = Shell::new();
    let prune = ["--pass", PRUNE_TINY, "--no-cache"];
    let compile = ["compile", "fixtures/tiny-llama"];
    shell.ok(&[&compile[..], &["-o", "flat"], &prune].concat());
    shell.ok(&[
        &compile[..],
        &["--deploy", "transformers.js", "-o", "js"],
        &prune,
    ]
    .concat());
    let same = |args: &[&str]| {
        let [flat, js] = ["flat", "js"].map(|bundle| shell.ok(&[args, &[bundle]].concat()).stdout);
        assert_eq!(flat, js, "{args:?}");
    };
    same(&["verify"]);
    same(&["diff"]);
    same(&["run", "--max-tokens", "8", "--prompt", "And God said"]);
    shell.ok(&["diff", "flat", "js", "--exit-code"]);
    let listed = shell.ok(&["inspect", "js"]).stdout;
    for file in ["onnx/model.onnx", "onnx/draft.onnx"] {
        assert!(listed.contains(file), "{listed}");
    }
    let [flat, js] = ["flat/weights.bin", "js/onnx/model.onnx_data"].map(|f| shell.path(f));
    assert!(fs::read(flat).unwrap() == fs::read(js).unwrap());
    // The configuration of onnxruntime-genai names the files where they are.
    let genai = fs::read_to_string(shell.path("js/genai_config.json")).unwrap();
    assert!(
        genai.contains("\"filename\": \"onnx/draft.onnx\""),
        "{genai}"
    );
    // The folder is replaced like that of any bundle.
    shell.ok(&[
        &compile[..],
        &["--deploy", "transformers.js", "-o", "js", "--force"],
        &prune,
    ]
    .concat());
    let mut weights = fs::read(shell.path("js/onnx/model.onnx_data")).unwrap();
    weights[100] ^= 1;
    shell.write("js/onnx/model.onnx_data", weights);
    let changed = shell.dlc(&["verify", "js"]);
    assert!(
        changed.stderr.contains("onnx/model.onnx_data"),
        "{}",
        changed.transcript()
    );
}

#[test]
fn an_image_is_made_of_the_bundles_own_folder() {
    let shell = Shell::new();
    shell.ok(&[
        "compile",
        "fixtures/tiny-llama",
        "--deploy",
        "docker",
        "-o",
        "out",
    ]);
    let dockerfile = fs::read_to_string(shell.path("out/Dockerfile")).unwrap();
    insta::assert_snapshot!(dockerfile);
    // The server's own image has the entry point that the bundle's goes on from.
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let server = fs::read_to_string(root.join("examples/serving/Dockerfile")).unwrap();
    assert!(server.contains("\nENTRYPOINT [\"/usr/local/bin/dlc\", \"serve\", "));
    let manifest = shell.ok(&["inspect", "out"]).stdout;
    assert!(manifest.contains("Dockerfile"), "{manifest}");
}

#[test]
fn sentence_encoders_keep_their_vectors() {
    let shell = Shell::new();
    let text = ["--text", "w0 w1 w2 w3 w4", "--json"];
    for (out, flags) in [
        ("flat", [].as_slice()),
        (
            "sentences",
            ["--deploy", "sentence-transformers"].as_slice(),
        ),
        ("triton", ["--deploy", "triton"].as_slice()),
    ] {
        shell.ok(&[["compile", SENTENCES, "-o", out].as_slice(), flags].concat());
    }
    let [flat, others @ ..] = ["flat", "sentences", "triton"]
        .map(|bundle| shell.ok(&[&["run", bundle][..], &text].concat()).stdout);
    assert!(others.iter().all(|other| *other == flat));
}

#[test]
fn what_does_not_fit_a_target_is_refused_at_once() {
    let shell = Shell::new();
    let mut told = String::new();
    for (model, flags) in [
        ("fixtures/tiny-llama", "sentence-transformers"),
        ("fixtures/tiny-llama", "triton"),
        ("fixtures/goldens/bert-encoder", "sentence-transformers"),
        ("fixtures/digits-dit", "optimum"),
        ("fixtures/digits-dit", "transformers.js"),
        ("fixtures/pipelines/pixart-alpha", "optimum"),
        ("fixtures/pipelines/dit", "optimum"),
        ("fixtures/pipelines/ldm", "optimum"),
        ("fixtures/pipelines/sd15/unet", "optimum"),
        ("fixtures/pipelines/sd15", "optimum --dtype bf16"),
        ("fixtures/tiny-llama", "transformers.js --dtype bf16"),
        ("fixtures/digits-dit", "docker"),
        ("fixtures/goldens/bert-classifier", "docker"),
    ] {
        let mut args = vec!["compile", model, "-o", "out", "--deploy"];
        args.extend(flags.split(' '));
        // Before a pass that would fail.
        args.extend(["--pass", "fit-prune:drop=99"]);
        let real = shell.dlc(&args);
        args.push("--dry-run");
        let dry = shell.dlc(&args);
        assert_eq!((real.code, dry.code), (Some(3), Some(3)));
        let [real, dry] = [real, dry].map(|outcome| {
            let at = outcome.stderr.find("error: ").unwrap();
            outcome.stderr[at..].to_owned()
        });
        assert_eq!(real, dry);
        told += &format!("{model} {flags}\n  {real}");
    }
    assert!(shell.listing().is_empty());
    insta::assert_snapshot!(told);
}

#[test]
fn a_pipeline_file_names_a_target_with_a_layout() {
    let shell = Shell::new();
    shell.write(
        "pipeline.yaml",
        format!("model: {SENTENCES}\ndeploy: sentence-transformers\noutput: a\n"),
    );
    shell.ok(&["compile", "--config", "pipeline.yaml"]);
    shell.ok(&[
        "compile",
        SENTENCES,
        "--deploy",
        "sentence-transformers",
        "-o",
        "b",
    ]);
    assert_same_files(&shell.path("a"), &shell.path("b"));
}

#[test]
fn the_documents_name_every_target() {
    let [page, readme] = ["docs/deployment.md", "README.md"].map(Document::read);
    for target in TARGETS {
        let row = format!("| `{}` | `{}` |", target.name, target.profile.name());
        assert!(page.text.contains(&row), "docs/deployment.md: {row}");
        let name = format!("`{}`", target.name);
        let listed = readme
            .text
            .lines()
            .find(|l| l.contains("deployment targets"));
        assert!(
            listed.is_some_and(|l| l.contains(&name)),
            "README.md: {name}"
        );
    }
}
