//! Bad usage and bad input: exit codes and messages, as transcripts. None may panic, and none may
//! leave anything at the output.

use std::fs;

use crate::command::{PRUNE_GOLDEN, Shell, bundles, contents, snapshot};
use crate::common::decoding::HALF_AT_8_BITS;
use crate::common::fixture;

/// Runs every command, fails if one succeeds, panics, prints a result or writes something, and
/// returns what all of them said.
fn refused(shell: &Shell, commands: &[&[&str]]) -> String {
    let (mut text, mut wrong) = (String::new(), String::new());
    for args in commands {
        let before = shell.listing();
        let outcome = shell.dlc(args);
        let refused = matches!(outcome.code, Some(2 | 3))
            && outcome.stdout.is_empty()
            && !outcome.stderr.contains("panicked");
        let transcript = outcome.transcript() + "\n";
        if !refused || before != shell.listing() {
            wrong += &transcript;
        }
        text += &transcript;
    }
    assert!(wrong.is_empty(), "not refused, or not cleanly:\n{wrong}");
    text
}

#[test]
fn bad_usage_is_refused_with_a_way_out() {
    let shell = Shell::new();
    let commands: [&[&str]; 14] = [
        &[],
        &["compil"],
        &["compile"],
        &["compile", "--frobnicate"],
        &["compile", "fixtures/tiny-llama", "--profil", "ort"],
        &["compile", "fixtures/tiny-llama", "--profile", "trt"],
        &[
            "compile",
            "fixtures/tiny-llama",
            "--profile",
            "ort",
            "--deploy",
            "tract",
        ],
        &["compile", "fixtures/tiny-llama", "--dtype", "f64"],
        &["compile", "fixtures/tiny-llama", "--threads", "0"],
        &["run"],
        &["run", "out", "--prompt", "a", "--prompts", "b"],
        &["run", "out", "--prompt", "a", "--system", "b"],
        &["bench", "out", "--draft-tokens", "0"],
        &["completions", "tcsh"],
    ];
    snapshot!("usage", refused(&shell, &commands));
}

#[test]
fn paths_that_hold_no_checkpoint_are_refused() {
    let shell = Shell::new();
    shell.write("empty/readme.txt", "nothing");
    shell.write(
        "alone/model.safetensors",
        fs::read(fixture("goldens/llama/model.safetensors")).unwrap(),
    );
    shell.write(
        "pickled/config.json",
        fs::read(fixture("goldens/llama/config.json")).unwrap(),
    );
    shell.write("pickled/pytorch_model.bin", "PK");
    shell.write(
        "strange/config.json",
        r#"{"architectures": ["MambaForCausalLM"], "model_type": "mamba"}"#,
    );
    shell.write(
        "strange/model.safetensors",
        fs::read(fixture("goldens/llama/model.safetensors")).unwrap(),
    );
    shell.write("broken/config.json", "{\"model_type\": ");
    shell.write(
        "broken/model.safetensors",
        fs::read(fixture("goldens/llama/model.safetensors")).unwrap(),
    );
    shell.write("model.gguf", "GGUF");
    let commands: [&[&str]; 10] = [
        &["compile", "nowhere"],
        &["compile", "nowhere/model.safetensors"],
        &["compile", "empty"],
        &["compile", "alone"],
        &["compile", "alone/model.safetensors"],
        &["compile", "pickled"],
        &["compile", "strange"],
        &["compile", "broken"],
        &["compile", "model.gguf"],
        &["inspect", "empty"],
    ];
    snapshot!("no_checkpoint", refused(&shell, &commands));
}

/// A golden whose `model.safetensors` is changed.
fn damaged(shell: &Shell, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
    shell.copy(&fixture("goldens/llama"), name);
    let path = shell.path(&format!("{name}/model.safetensors"));
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Changes the JSON header and keeps the data.
fn with_header(
    bytes: &mut Vec<u8>,
    change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
) {
    let end = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..end]).unwrap();
    change(header.as_object_mut().unwrap());
    let header = serde_json::to_vec(&header).unwrap();
    let mut whole = (header.len() as u64).to_le_bytes().to_vec();
    whole.extend(header);
    whole.extend(&bytes[end..]);
    *bytes = whole;
}

#[test]
fn damaged_weights_are_refused_with_file_and_tensor() {
    let shell = Shell::new();
    let norm = "model.norm.weight";
    damaged(&shell, "truncated", |b| b.truncate(b.len() - 100));
    damaged(&shell, "tiny", |b| b.truncate(5));
    damaged(&shell, "header-too-long", |b| {
        b[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    });
    damaged(&shell, "header-past-end", |b| {
        let past = b.len() as u64;
        b[..8].copy_from_slice(&past.to_le_bytes());
    });
    damaged(&shell, "no-json", |b| b[8..12].copy_from_slice(b"!!!!"));
    damaged(&shell, "out-of-range", |b| {
        with_header(b, |h| {
            h[norm]["data_offsets"] = [1_000_000_000u64, 1_000_000_192].into();
        });
    });
    damaged(&shell, "overlapping", |b| {
        with_header(b, |h| h[norm]["data_offsets"] = [0, 192].into());
    });
    damaged(&shell, "backwards", |b| {
        with_header(b, |h| h[norm]["data_offsets"] = [192, 0].into());
    });
    damaged(&shell, "wrong-dtype", |b| {
        with_header(b, |h| h[norm]["dtype"] = "F64".into());
    });
    damaged(&shell, "unknown-dtype", |b| {
        with_header(b, |h| h[norm]["dtype"] = "Q4_K".into());
    });
    damaged(&shell, "integers", |b| {
        with_header(b, |h| h[norm]["dtype"] = "I32".into());
    });
    damaged(&shell, "absurd-shape", |b| {
        with_header(b, |h| h[norm]["shape"] = [u64::MAX, u64::MAX].into());
    });
    damaged(&shell, "wrong-shape", |b| {
        with_header(b, |h| h[norm]["shape"] = [24, 2].into());
    });
    damaged(&shell, "missing", |b| {
        with_header(b, |h| {
            let tensor = h.remove(norm).unwrap();
            h.insert("model.norm.wait".into(), tensor);
        });
    });
    let names = shell.listing();
    let commands: Vec<[&str; 4]> = names
        .iter()
        .map(|n| ["compile", n.as_str(), "-o", "out"])
        .collect();
    let commands: Vec<&[&str]> = commands.iter().map(<[&str; 4]>::as_slice).collect();
    snapshot!("damaged_weights", refused(&shell, &commands));
}

#[test]
fn configs_that_contradict_themselves_or_the_weights_are_refused() {
    let shell = Shell::new();
    for (name, key, value) in [
        (
            "absurd-layers",
            "num_hidden_layers",
            serde_json::json!(1_000_000_000_000u64),
        ),
        ("absurd-hidden", "hidden_size", serde_json::json!(u64::MAX)),
        ("negative", "num_attention_heads", serde_json::json!(-4)),
        ("zero-heads", "num_attention_heads", serde_json::json!(0)),
        ("words", "vocab_size", serde_json::json!("many")),
        ("other-vocabulary", "vocab_size", serde_json::json!(100)),
        ("odd-heads", "num_key_value_heads", serde_json::json!(3)),
        (
            "strange-rope",
            "rope_scaling",
            serde_json::json!({"rope_type": "spiral", "factor": 2.0}),
        ),
        (
            "strange-activation",
            "hidden_act",
            serde_json::json!("xielu"),
        ),
    ] {
        shell.copy(&fixture("goldens/llama"), name);
        let path = shell.path(&format!("{name}/config.json"));
        let mut config: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(path, config.to_string()).unwrap();
    }
    let names = shell.listing();
    let commands: Vec<[&str; 4]> = names
        .iter()
        .map(|n| ["compile", n.as_str(), "-o", "out"])
        .collect();
    let commands: Vec<&[&str]> = commands.iter().map(<[&str; 4]>::as_slice).collect();
    snapshot!("bad_configs", refused(&shell, &commands));
}

#[test]
fn shard_indexes_stay_in_their_folder() {
    let shell = Shell::new();
    for (name, shard) in [
        ("escaping", "../x.safetensors"),
        ("absolute", "/etc/passwd"),
        ("absent", "model-00001-of-00002.safetensors"),
    ] {
        shell.write(
            &format!("{name}/config.json"),
            fs::read(fixture("goldens/llama/config.json")).unwrap(),
        );
        let index = serde_json::json!({"weight_map": {"model.norm.weight": shard}});
        shell.write(
            &format!("{name}/model.safetensors.index.json"),
            index.to_string(),
        );
    }
    shell.write(
        "x.safetensors",
        fs::read(fixture("goldens/llama/model.safetensors")).unwrap(),
    );
    let commands: [&[&str]; 3] = [
        &["compile", "escaping"],
        &["compile", "absolute"],
        &["compile", "absent"],
    ];
    snapshot!("shards", refused(&shell, &commands));
}

#[test]
fn weights_that_are_not_numbers_are_refused_unless_allowed() {
    let shell = Shell::new();
    damaged(&shell, "nan", |b| {
        let end = b.len() - 4;
        b[end..].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let mut text = refused(&shell, &[&["compile", "nan", "-o", "out"]]);
    text += &shell.ok(&["inspect", "nan"]).transcript();
    snapshot!("not_a_number", text);
    shell.ok(&["compile", "nan", "--allow-nan", "-o", "out"]);
    // What such weights score is no number either.
    snapshot!(
        "not_a_number_scored",
        refused(
            &shell,
            &[&[
                "compile",
                "nan",
                "--allow-nan",
                "--pass",
                PRUNE_GOLDEN,
                "-o",
                "pruned"
            ]]
        )
    );
}

#[test]
fn passes_that_cannot_be_run_are_refused() {
    let shell = Shell::new();
    shell.write("empty.txt", "");
    shell.write("one-token.jsonl", "{\"tokens\": [1]}\n");
    shell.write("not-json.jsonl", "{\"tokens\": [1, 2]}\nIn the beginning\n");
    shell.write("neither.jsonl", "{\"prompt\": \"In the beginning\"}\n");
    shell.write("outside.jsonl", "{\"tokens\": [1, 99]}\n");
    shell.write("text.jsonl", "{\"text\": \"In the beginning\"}\n");
    shell.write("bytes.txt", [0xff, 0xfe, 0x00]);
    shell.write(
        "negative.yaml",
        HALF_AT_8_BITS.replace("fixed: ", "fixed: -"),
    );
    shell.write(
        "other-model.yaml",
        HALF_AT_8_BITS.replace("attn: {", "parallel: {"),
    );
    let golden = |pass: &str| {
        vec![
            "compile".to_owned(),
            "fixtures/goldens/llama".into(),
            "--pass".into(),
            pass.into(),
        ]
    };
    let tiny = |pass: &str| {
        vec![
            "compile".to_owned(),
            "fixtures/tiny-llama".into(),
            "--pass".into(),
            pass.into(),
        ]
    };
    let tokens = "calibration=fixtures/calibration-tokens.jsonl";
    let mut commands: Vec<Vec<String>> = [
        "fit-prun",
        "wanda",
        "fit-prune:dorp=2",
        "fit-prune:zzz=2",
        "fit-prune:drop",
        "fit-prune:drop=two",
        "fit-prune:drop=-1",
        "fit-prune:drop=1,drop=2",
        "fit-prune:drop=99",
        "fit-prune:drop=12",
        "fit-prune:granularity=neuron",
        "fit-prune:keep=0",
        "fit-prune:keep=1.5",
        "fit-prune:score=fitt",
        "fit-prune:samples=0",
        "fit-prune:protect_first=6,protect_last=6,drop=1",
        "fit-prune:calibration=empty.txt",
        "fit-prune:calibration=nowhere.txt",
        "fit-prune:calibration=fixtures",
        "fit-prune:calibration=one-token.jsonl",
        "fit-prune:calibration=not-json.jsonl",
        "fit-prune:calibration=neither.jsonl",
        "fit-prune:calibration=bytes.txt",
        "fit-prune:calibration=/dev/zero",
        "auto-draft:samples=1",
        "auto-draft:memory=1",
        "auto-draft:costs=nowhere.yaml",
        "auto-draft:costs=empty.txt",
        "auto-draft:costs=negative.yaml",
        "auto-draft:costs=other-model.yaml",
        "remove-unused:all=true",
        "",
    ]
    .map(tiny)
    .to_vec();
    commands.extend(
        [
            "fit-prune",
            "fit-prune:calibration=text.jsonl",
            "fit-prune:calibration=outside.jsonl",
        ]
        .map(golden),
    );
    commands.push(golden(&format!(
        "fit-prune:granularity=branch,drop=8,score=cosine,{tokens}"
    )));
    let mut twice = golden(PRUNE_GOLDEN);
    twice.extend(["--pass".into(), PRUNE_GOLDEN.into()]);
    commands.push(twice);
    let commands: Vec<Vec<&str>> = commands
        .iter()
        .map(|c| c.iter().map(String::as_str).collect())
        .collect();
    let commands: Vec<&[&str]> = commands.iter().map(Vec::as_slice).collect();
    snapshot!("passes", refused(&shell, &commands));
}

#[test]
fn pipeline_files_are_checked() {
    let shell = Shell::new();
    for (name, text) in [
        ("unknown-key", "model: fixtures/tiny-llama\nprofil: ort\n"),
        ("strange-key", "model: fixtures/tiny-llama\nxyzzy: 1\n"),
        ("not-a-mapping", "- fit-prune\n"),
        ("a-word", "fit-prune\n"),
        ("broken", "model: [fixtures/tiny-llama\n"),
        (
            "wrong-profile",
            "model: fixtures/tiny-llama\nprofile: trt\n",
        ),
        (
            "wrong-dtype",
            "model: fixtures/tiny-llama\ndtype: float32\n",
        ),
        (
            "passes-no-list",
            "model: fixtures/tiny-llama\npasses: fit-prune\n",
        ),
        (
            "passes-mapping",
            "model: fixtures/tiny-llama\npasses: {fit-prune: {drop: 4}}\n",
        ),
        (
            "pass-two-names",
            "model: fixtures/tiny-llama\npasses:\n- {fit-prune: {}, remove-unused: {}}\n",
        ),
        (
            "pass-options",
            "model: fixtures/tiny-llama\npasses:\n- fit-prune: 4\n",
        ),
        (
            "pass-unknown-option",
            "model: fixtures/tiny-llama\npasses:\n- fit-prune: {dorp: 4}\n",
        ),
        (
            "pass-unknown",
            "model: fixtures/tiny-llama\npasses: [fit-prun]\n",
        ),
        ("threads-word", "model: fixtures/tiny-llama\nthreads: all\n"),
        ("threads-none", "model: fixtures/tiny-llama\nthreads: 0\n"),
        ("no-model", "profile: ort\n"),
        ("twice", "model: a\nmodel: b\n"),
        ("empty", ""),
    ] {
        shell.write(&format!("{name}.yaml"), text);
    }
    let names = shell.listing();
    let mut commands: Vec<Vec<&str>> = names
        .iter()
        .map(|n| vec!["compile", "--config", n])
        .collect();
    commands.push(vec!["compile", "--config", "nowhere.yaml"]);
    commands.push(vec!["compile", "--config", "/dev/zero"]);
    let commands: Vec<&[&str]> = commands.iter().map(Vec::as_slice).collect();
    snapshot!("pipeline_files", refused(&shell, &commands));
}

#[test]
fn outputs_that_stand_in_the_way_are_left_alone() {
    let shell = Shell::new();
    shell.ok(&["compile", "fixtures/goldens/llama", "-o", "bundle"]);
    shell.ok(&["compile", "fixtures/goldens/llama", "-o", "mixed"]);
    shell.write("mixed/notes.txt", "mine");
    shell.write("folder/notes.txt", "mine");
    shell.write("file", "mine");
    let model = "fixtures/goldens/qwen3";
    let slow = "fit-prune:samples=100000,calibration=fixtures/calibration-tokens.jsonl";
    let commands: [&[&str]; 11] = [
        &["compile", model, "-o", "bundle"],
        &["compile", model, "-o", "folder"],
        &["compile", model, "-o", "folder", "--force"],
        &["compile", model, "-o", "folder", "--force", "--pass", slow],
        &["compile", model, "-o", "mixed", "--force"],
        &["compile", model, "-o", "file"],
        &["compile", model, "-o", "file", "--force"],
        &["compile", model, "-o", "file/below"],
        &["compile", model, "-o", "/proc/nope"],
        &["compile", model, "-o", ".."],
        &["compile", model, "-o", ""],
    ];
    let before = contents(&shell.path("bundle"));
    snapshot!("outputs", refused(&shell, &commands));
    assert_eq!(before, contents(&shell.path("bundle")));
    assert_eq!(fs::read(shell.path("file")).unwrap(), b"mine");

    fs::create_dir(shell.path("empty")).unwrap();
    shell.ok(&["compile", model, "-o", "empty"]);
    shell.ok(&["compile", model, "-o", "bundle", "--force"]);
    assert_ne!(before, contents(&shell.path("bundle")));
}

#[test]
fn damaged_bundles_are_refused() {
    let shell = Shell::new();
    let shared = bundles();
    let good = shared.path("plain");
    let manifest = fs::read_to_string(good.join("dlc.yaml")).unwrap();
    for name in [
        "flipped",
        "short",
        "missing",
        "damaged-manifest",
        "later-format",
        "escaping",
        "no-bundle",
        "onnx-damaged",
    ] {
        shell.copy(&good, name);
    }
    let flip = |name: &str, at: usize| {
        let mut bytes = fs::read(shell.path(name)).unwrap();
        bytes[at] ^= 1;
        shell.write(name, bytes);
    };
    flip("flipped/weights.bin", 100);
    flip("onnx-damaged/model.onnx", 0);
    shell.write("short/weights.bin", "short");
    fs::remove_file(shell.path("missing/model.onnx")).unwrap();
    shell.write(
        "damaged-manifest/dlc.yaml",
        manifest.split_once("offset:").unwrap().0,
    );
    shell.write(
        "later-format/dlc.yaml",
        manifest.replacen("format: 3", "format: 99", 1),
    );
    shell.write(
        "escaping/dlc.yaml",
        manifest.replace("model.onnx", "../model.onnx"),
    );
    fs::remove_file(shell.path("no-bundle/dlc.yaml")).unwrap();
    let verify = |name: &'static str| ["verify", name, "--backend", "tract"];
    let run = |name: &'static str| {
        [
            "run",
            name,
            "--backend",
            "tract",
            "--prompt",
            "In the beginning",
        ]
    };
    let verified = [
        "flipped",
        "short",
        "missing",
        "damaged-manifest",
        "later-format",
        "escaping",
        "no-bundle",
        "nowhere",
        "onnx-damaged",
    ]
    .map(verify);
    let ran = [
        "short",
        "missing",
        "damaged-manifest",
        "later-format",
        "no-bundle",
        "nowhere",
        "onnx-damaged",
    ]
    .map(run);
    let mut commands: Vec<&[&str]> = verified.iter().map(<[&str; 4]>::as_slice).collect();
    commands.extend(ran.iter().map(<[&str; 6]>::as_slice));
    commands.extend([
        &["inspect", "missing"][..],
        &["inspect", "onnx-damaged/model.onnx"],
        &["diff", "no-bundle"],
        &["diff", "later-format"],
    ]);
    snapshot!("damaged_bundles", refused(&shell, &commands));
}

#[test]
fn bundles_that_cannot_run_say_why() {
    let shell = bundles();
    let long = "word ".repeat(600);
    let commands: [&[&str]; 18] = [
        &["run", "portable"],
        &["run", "portable", "--prompts", "nowhere.txt"],
        &[
            "run",
            "portable",
            "--prompts",
            "fixtures/calibration-tokens.jsonl",
        ],
        &[
            "run",
            "portable",
            "--chat",
            "--prompt",
            "hello",
            "--backend",
            "tract",
        ],
        &["run", "fixtures/tiny-llama", "--prompt", "a"],
        &["run", "portable/model.onnx", "--prompt", "a"],
        &[
            "run",
            "portable",
            "--prompt",
            "a",
            "--temperature",
            "-1",
            "--backend",
            "tract",
        ],
        &["verify", "portable", "--tolerance", "-1"],
        &[
            "run",
            "portable",
            "--prompt",
            "a",
            "--top-p",
            "2",
            "--backend",
            "tract",
        ],
        &["run", "ort", "--prompt", "a", "--backend", "tract"],
        &["verify", "ort", "--backend", "tract"],
        &["run", "golden", "--prompt", "a", "--backend", "tract"],
        &["bench", "plain", "--backend", "tract", "--no-lookup"],
        &["diff", "plain"],
        &[
            "run",
            "portable",
            "--prompt",
            "a",
            "--ort-lib",
            "nowhere.so",
        ],
        &[
            "run",
            "portable",
            "--prompt",
            "a",
            "--backend",
            "onnxruntime",
        ],
        &[
            "run",
            "portable",
            "--prompt",
            "a",
            "--backend",
            "tract",
            "--provider",
            "cuda",
        ],
        &["run", "portable", "--backend", "tract", "--prompt", &long],
    ];
    snapshot!(
        "bundles_that_cannot_run",
        refused(&shell, &commands).replace(&long, "[600 words]")
    );
}
