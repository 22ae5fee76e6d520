//! Bundles that aren't what they say, and files that are made to keep a parser busy: each is
//! refused by name, at once.

use std::fs;
use std::time::{Duration, Instant};

use dlc_bundle::Manifest;

use crate::command::{Shell, bundles};

/// A shell with a bundle that tests may damage.
fn shell() -> Shell {
    let shell = Shell::new();
    shell.copy(&bundles().path("plain"), "bundle");
    shell
}

/// Fails unless `dlc` refuses to do this soon, with exit code 2 and every one of `reasons`.
fn refused(shell: &Shell, args: &[&str], reasons: &[&str]) {
    let start = Instant::now();
    let outcome = shell.dlc(args);
    let told =
        reasons.iter().all(|reason| outcome.stderr.contains(reason)) && outcome.stderr.len() < 4000;
    assert!(
        outcome.code == Some(2) && told,
        "{reasons:?}\n{}",
        outcome.transcript()
    );
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}\n{}",
        start.elapsed(),
        outcome.transcript()
    );
}

const RUN: [&str; 8] = [
    "run",
    "bundle",
    "--backend",
    "tract",
    "--prompt",
    "In",
    "--max-tokens",
    "2",
];

fn edit_manifest(shell: &Shell, edit: impl FnOnce(&str) -> String) {
    let manifest = fs::read_to_string(shell.path("bundle/dlc.yaml")).unwrap();
    let edited = edit(&manifest);
    assert_ne!(manifest, edited);
    shell.write("bundle/dlc.yaml", edited);
}

#[test]
fn weights_of_another_content_are_never_run() {
    let shell = shell();
    let mut bytes = fs::read(shell.path("bundle/weights.bin")).unwrap();
    bytes[..5_000_000].fill(0);
    shell.write("bundle/weights.bin", bytes);
    for args in [
        &RUN[..],
        &["bench", "bundle", "--backend", "tract"],
        &["inspect", "bundle"],
        &["diff", "bundle", "bundle"],
        &["verify", "bundle"],
    ] {
        refused(&shell, args, &["changed since it was written: weights.bin"]);
    }
}

#[cfg(unix)]
#[test]
fn weights_that_were_hashed_once_are_hashed_again_when_they_change() {
    let shell = shell();
    let (weights, hashes) = (
        shell.path("bundle/weights.bin"),
        shell.path(".env/cache/dlc/hashes"),
    );
    std::thread::sleep(Duration::from_secs(4));
    shell.ok(&RUN);
    assert_eq!(fs::read_dir(&hashes).unwrap().count(), 1);
    shell.ok(&RUN);
    let modified = fs::metadata(&weights).unwrap().modified().unwrap();
    let mut bytes = fs::read(&weights).unwrap();
    bytes[4096] ^= 1;
    fs::write(&weights, bytes).unwrap();
    fs::File::options()
        .append(true)
        .open(&weights)
        .unwrap()
        .set_modified(modified)
        .unwrap();
    refused(&shell, &RUN, &["changed since it was written: weights.bin"]);
}

#[test]
fn files_that_the_manifest_does_not_list_are_not_read_and_verify_names_them() {
    let shell = shell();
    let verify = || shell.dlc(&["verify", "bundle", "--backend", "tract"]);
    shell.write("bundle/README.md", "A model.");
    let outcome = verify();
    assert!(
        outcome.code == Some(0)
            && outcome
                .stderr
                .contains("not of the bundle, and not checked: README.md"),
        "{}",
        outcome.transcript()
    );
    shell.write("bundle/chat_template.jinja", "injected");
    let chat = shell.dlc(&[
        "run",
        "bundle",
        "--backend",
        "tract",
        "--chat",
        "--prompt",
        "hi",
        "--json",
    ]);
    assert!(
        chat.code == Some(3) && chat.stderr.contains("no chat template"),
        "{}",
        chat.transcript()
    );
    let outcome = verify();
    assert!(
        outcome.code == Some(1)
            && outcome
                .stdout
                .contains("chat_template.jinja is no file of the bundle"),
        "{}",
        outcome.transcript()
    );
    fs::remove_file(shell.path("bundle/chat_template.jinja")).unwrap();
    fs::create_dir_all(shell.path("bundle/1_Pooling")).unwrap();
    assert!(
        verify()
            .stdout
            .contains("1_Pooling/ is no file of the bundle")
    );
}

#[test]
fn a_side_file_that_is_listed_and_changed_is_refused() {
    let shell = shell();
    let mut tokenizer = fs::read_to_string(shell.path("bundle/tokenizer.json")).unwrap();
    tokenizer.pop();
    shell.write("bundle/tokenizer.json", tokenizer + " ");
    refused(
        &shell,
        &RUN,
        &["changed since it was written: tokenizer.json"],
    );
}

#[test]
fn what_the_manifest_says_of_the_model_is_compared_with_its_graphs() {
    let absurd = "vocab_size: 268435456";
    let shell = shell();
    let manifest = fs::read_to_string(shell.path("bundle/dlc.yaml")).unwrap();
    edit_manifest(&shell, |text| text.replace("vocab_size: 2048", absurd));
    refused(
        &shell,
        &RUN,
        &["a vocabulary of 268435456 doesn't fit `logits`, which has 2048"],
    );
    // Its own record of the graph may say the same.
    edit_manifest(&shell, |text| text.replace("- '2048'", "- '268435456'"));
    refused(
        &shell,
        &RUN,
        &[
            "model.onnx",
            "it isn't what the manifest says of it",
            "output `logits` is f32[",
            "268435456]",
        ],
    );
    shell.write("bundle/dlc.yaml", &manifest);
    edit_manifest(&shell, |text| text.replacen("head_dim: ", "head_dim: 9", 1));
    refused(&shell, &RUN, &["a width of heads of 9"]);
}

#[test]
fn weights_that_lie_elsewhere_than_the_graph_has_them_are_refused() {
    let shell = shell();
    edit_manifest(&shell, |text| {
        let mut manifest: Manifest = serde_yaml::from_str(text).unwrap();
        let weights = &mut manifest.weights;
        let same = |i: usize, j: usize| weights[i].shape == weights[j].shape;
        let (i, j) = (1..weights.len())
            .find_map(|i| (0..i).find(|&j| same(i, j)).map(|j| (i, j)))
            .unwrap();
        (weights[i].offset, weights[j].offset) = (weights[j].offset, weights[i].offset);
        serde_yaml::to_string(&manifest).unwrap()
    });
    for args in [&RUN[..], &["inspect", "bundle"]] {
        refused(&shell, args, &["model.onnx", "lies elsewhere than at"]);
    }
}

#[test]
fn experts_that_do_not_make_up_their_tensor_are_refused() {
    let shell = Shell::new();
    let model = "fixtures/goldens/mixtral";
    shell.ok(&["compile", model, "--profile", "portable", "-o", "bundle"]);
    let manifest = fs::read_to_string(shell.path("bundle/dlc.yaml")).unwrap();
    for (from, to) in [
        ("    turns: 1\n", "    turns: 0\n"),
        ("    turns: 1\n", "    turns: 3\n"),
        ("    shape:\n    - 32\n", "    shape:\n    - 33\n"),
        (
            "    shape:\n    - 32\n",
            "    shape:\n    - 18446744073709551615\n",
        ),
    ] {
        shell.write("bundle/dlc.yaml", &manifest);
        edit_manifest(&shell, |manifest| {
            assert!(manifest.contains(from), "{from}");
            manifest.replacen(from, to, 1)
        });
        refused(&shell, &["diff", "bundle"], &["doesn't hold weight"]);
    }
}

#[test]
fn yaml_that_takes_long_to_parse_is_refused_at_once() {
    let shell = shell();
    shell.copy(&crate::common::fixture("cases/attack-yaml-deep"), "case");
    refused(
        &shell,
        &["compile", "--config", "case/p.yaml", "-o", "out"],
        &["p.yaml", "nests too deeply"],
    );
    for (text, reason) in [
        (
            format!("format: {}", "{a: ".repeat(1 << 17)),
            "nests too deeply",
        ),
        (
            format!("format: [{}]", "1,".repeat(8 << 20)),
            "more entries",
        ),
        (
            format!(
                "a: &a [{}]\nb: [{}]\n",
                "x,".repeat(50_000),
                "*a,".repeat(50_000)
            ),
            "aliases",
        ),
        (
            "format: 2\nformat: 2\n".to_owned(),
            "the key `format` stands twice",
        ),
    ] {
        shell.write("bundle/dlc.yaml", text);
        refused(&shell, &RUN, &["dlc.yaml", reason]);
    }
}

/// A field of bytes of a protobuf message.
fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let (mut field, mut length) = (vec![tag << 3 | 2], bytes.len());
    while length > 127 {
        field.push(length as u8 | 128);
        length >>= 7;
    }
    field.push(length as u8);
    field.extend(bytes);
    field
}

#[test]
fn graph_text_that_takes_long_to_parse_is_refused_at_once() {
    let shell = shell();
    let model = fs::read(shell.path("bundle/model.onnx")).unwrap();
    let sum = (0..100_000)
        .map(|i| format!("s{i}"))
        .collect::<Vec<_>>()
        .join("+");
    let inputs = (0..300_000).fold(String::new(), |text, i| {
        text + &format!("input x{i}: i64[a]\n")
    });
    for (lines, reason) in [
        (
            format!("input attention_mask: i64[batch, {sum}]\n"),
            "more than 64 terms",
        ),
        (inputs + "output y = %z\n", "%z isn't defined"),
    ] {
        let entry = [
            field(1, b"dlc.graph"),
            field(2, format!("graph target {{\n{lines}}}\n").as_bytes()),
        ]
        .concat();
        shell.write("x.onnx", [model.as_slice(), &field(14, &entry)].concat());
        refused(&shell, &["inspect", "x.onnx"], &["x.onnx", reason]);
    }
}

#[test]
fn a_node_of_many_small_parts_is_refused_before_they_are_made() {
    let shell = Shell::new();
    let node = field(5, b"").repeat(16_000_000);
    shell.write("x.onnx", [vec![8, 8], field(7, &field(1, &node))].concat());
    refused(
        &shell,
        &["inspect", "x.onnx"],
        &["x.onnx", "more than 10000 attributes"],
    );
}

#[test]
fn prompts_far_beyond_the_context_are_refused_before_they_are_tokenized() {
    let shell = shell();
    shell.write("long.txt", "word ".repeat(6_000_000));
    refused(
        &shell,
        &[
            "run",
            "bundle",
            "--backend",
            "tract",
            "--prompts",
            "long.txt",
        ],
        &["the model's context 512: shorten the text"],
    );
}

#[test]
fn patterns_of_an_adapter_that_take_long_are_refused() {
    let shell = Shell::new();
    shell.copy(
        &crate::common::fixture("adapters/patterns-llama/adapter"),
        "adapter",
    );
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(shell.path("adapter/adapter_config.json")).unwrap())
            .unwrap();
    let many = |pattern: fn(usize) -> String, n: usize| {
        (0..n)
            .map(|i| (pattern(i), serde_json::json!(8)))
            .collect::<serde_json::Map<_, _>>()
    };
    for (key, value, reason) in [
        (
            "rank_pattern",
            serde_json::Value::Object(many(|i| format!("[a]{i}"), 5000)),
            "rank_pattern has 5000 patterns",
        ),
        (
            "alpha_pattern",
            serde_json::Value::Object(many(|i| format!("a{i}"), 50_000)),
            "alpha_pattern has 50000 entries",
        ),
        (
            "alpha_pattern",
            serde_json::Value::Object(many(|_| "(.|.)*\\1!".to_owned(), 1)),
            "takes too long to match",
        ),
        (
            "target_modules",
            serde_json::json!(vec!["q_proj"; 100_000]),
            "target_modules must be a list of names",
        ),
        (
            "layers_pattern",
            serde_json::json!(vec!["layers"; 1000]),
            "layers_pattern has 1000 entries",
        ),
    ] {
        let mut config = config.clone();
        config[key] = value;
        shell.write("adapter/adapter_config.json", config.to_string());
        refused(
            &shell,
            &[
                "compile",
                "fixtures/adapters/patterns-llama",
                "--adapter",
                "adapter",
                "-o",
                "out",
            ],
            &[reason],
        );
    }
}

#[test]
fn a_name_map_of_too_many_or_too_large_patterns_is_refused() {
    let shell = Shell::new();
    let compile = [
        "compile",
        "fixtures/adapters/lora-llama",
        "--adapter",
        "fixtures/adapters/lora-llama/adapter",
        "--adapter-names",
        "names.yaml",
    ];
    let many = (0..2000).fold(String::new(), |text, i| text + &format!("  'a{i}': b\n"));
    for (tensors, reason) in [
        (many, "2000 patterns are more than"),
        ("  '(a{500}){500}': b\n".to_owned(), "is no pattern"),
    ] {
        shell.write("names.yaml", format!("tensors:\n{tensors}"));
        refused(
            &shell,
            &[&compile[..], &["-o", "out"]].concat(),
            &["names.yaml", reason],
        );
    }
}
