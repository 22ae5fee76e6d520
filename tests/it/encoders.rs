//! Encoders at work on tract: `run --text`, `bench`, and fit-prune on them.

use std::collections::BTreeMap;

use dlc_eval::Array;
use dlc_ir::DType;
use serde_json::{Value, json};

use crate::command::{Outcome, Shell};
use crate::common::fixture;
use crate::common::golden::module;

/// The vocabulary of the goldens: special tokens, then words `w5`, `w6` ...
const VOCAB: usize = 99;
const SPECIAL: [(&str, usize); 5] = [
    ("[PAD]", 0),
    ("[UNK]", 1),
    ("[CLS]", 2),
    ("[SEP]", 3),
    ("[MASK]", 4),
];

/// A tokenizer that looks up words, and puts `[CLS]` and `[SEP]` around them.
fn tokenizer() -> String {
    let words = (SPECIAL.len()..VOCAB).map(|id| (format!("w{id}"), json!(id)));
    let vocab: serde_json::Map<String, Value> = SPECIAL
        .iter()
        .map(|(name, id)| ((*name).to_owned(), json!(id)))
        .chain(words)
        .collect();
    let added = SPECIAL.map(
        |(name, id)| json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}),
    );
    let special = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let id = |name: &str, id: usize| json!({"id": name, "ids": [id], "tokens": [name]});
    let processor = json!({
        "type": "TemplateProcessing",
        "single": [special("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, special("[SEP]")],
        "pair": [special("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, special("[SEP]"), {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"[CLS]": id("[CLS]", 2), "[SEP]": id("[SEP]", 3)},
    });
    let model = json!({"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": processor, "decoder": null, "model": model,
    })
    .to_string()
}

/// A shell with the golden as a checkpoint that has a tokenizer, compiled to `bundle`.
pub fn shell(golden: &str, flags: &[&str]) -> Shell {
    let shell = Shell::new();
    shell.copy(&fixture(&format!("goldens/{golden}")), "model");
    std::fs::remove_file(shell.path("model/golden.safetensors")).unwrap();
    shell.write("model/tokenizer.json", tokenizer());
    shell.ok(&[&["compile", "model", "-o", "bundle"], flags].concat());
    shell
}

pub fn run(shell: &Shell, args: &[&str]) -> Outcome {
    shell.ok(&[&["run", "bundle", "--backend", "tract"], args].concat())
}

/// What the evaluator says of the words with these numbers, between `[CLS]` and `[SEP]`.
pub fn evaluated(golden: &str, words: &[i64]) -> Vec<Vec<f32>> {
    let module = module(golden, DType::F32);
    let graph = module.graph("target").unwrap();
    let ids = [&[2], words, &[3]].concat();
    let n = ids.len();
    let feeds = [
        ("input_ids", ids),
        ("attention_mask", vec![1; n]),
        ("token_type_ids", vec![0; n]),
    ];
    let feeds: BTreeMap<String, Array> = feeds
        .into_iter()
        .filter(|(name, _)| graph.find_input(name).is_some())
        .map(|(name, data)| (name.to_owned(), Array::i64([1, n], data).unwrap()))
        .collect();
    let outputs = dlc_eval::run(graph, &module.weights, &feeds).unwrap();
    let output = &outputs[module.model.task.output()];
    output
        .as_f32()
        .unwrap()
        .chunks(*output.shape().last().unwrap())
        .map(<[f32]>::to_vec)
        .collect()
}

fn softmax(row: &[f32]) -> Vec<f64> {
    let total: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
    row.iter().map(|x| f64::from(*x).exp() / total).collect()
}

pub fn near(found: &Value, expected: f64) -> bool {
    (found.as_f64().unwrap() - expected).abs() < 1e-4
}

#[test]
fn a_classifier_says_how_likely_each_class_is() {
    let shell = shell("bert-classifier", &[]);
    let found = run(&shell, &["--text", "w7 w21 w50", "--json"]).json();
    let expected = softmax(&evaluated("bert-classifier", &[7, 21, 50])[0]);
    let classes = found[0]["classes"].as_array().unwrap();
    assert_eq!(classes.len(), 3);
    for class in classes {
        let index = class["index"].as_u64().unwrap() as usize;
        assert_eq!(class["label"], ["sad", "so-so", "glad"][index]);
        assert!(near(&class["probability"], expected[index]), "{class}");
    }
    insta::assert_snapshot!(run(&shell, &["--text", "w7 w21 w50", "--text", "w9"]).stdout);
}

#[test]
fn texts_read_together_get_what_they_get_alone() {
    let shell = shell("bert-classifier", &[]);
    shell.write(
        "texts.jsonl",
        "{\"text\": \"w7\"}\n{\"text\": \"w9 w9 w30 w31 w32 w33\"}\n{\"text\": \"w80 w5\"}\n",
    );
    let together = run(&shell, &["--texts", "texts.jsonl", "--json"]).json();
    for (found, text) in
        together
            .as_array()
            .unwrap()
            .iter()
            .zip(["w7", "w9 w9 w30 w31 w32 w33", "w80 w5"])
    {
        let alone = run(&shell, &["--text", text, "--json"]).json();
        for (a, b) in found["classes"]
            .as_array()
            .unwrap()
            .iter()
            .zip(alone[0]["classes"].as_array().unwrap())
        {
            assert_eq!(a["label"], b["label"]);
            assert!(
                near(&a["probability"], b["probability"].as_f64().unwrap()),
                "{text}"
            );
        }
    }
}

#[test]
fn a_masked_language_model_fills_every_mask() {
    let shell = shell("bert", &[]);
    let found = run(
        &shell,
        &["--text", "w7 [MASK] w50 [MASK]", "--top", "3", "--json"],
    )
    .json();
    let rows = evaluated("bert", &[7, 4, 50, 4]);
    let masks = found[0]["masks"].as_array().unwrap();
    assert_eq!(
        masks
            .iter()
            .map(|m| m["position"].as_u64().unwrap())
            .collect::<Vec<_>>(),
        [2, 4]
    );
    for mask in masks {
        let expected = softmax(&rows[mask["position"].as_u64().unwrap() as usize]);
        let mut order: Vec<usize> = (0..VOCAB).collect();
        order.sort_by(|a, b| expected[*b].total_cmp(&expected[*a]));
        let fillings = mask["fillings"].as_array().unwrap();
        assert_eq!(fillings.len(), 3);
        for (filling, id) in fillings.iter().zip(order) {
            assert_eq!(filling["index"], id);
            assert!(near(&filling["probability"], expected[id]), "{filling}");
        }
    }
}

#[test]
fn a_tagger_says_a_class_for_each_word() {
    let shell = shell("bert-tokens", &[]);
    let found = run(&shell, &["--text", "w7 w21", "--json"]).json();
    let rows = evaluated("bert-tokens", &[7, 21]);
    let tokens = found[0]["tokens"].as_array().unwrap();
    assert_eq!(
        tokens
            .iter()
            .map(|t| t["token"].as_str().unwrap())
            .collect::<Vec<_>>(),
        ["w7", "w21"]
    );
    for (token, row) in tokens.iter().zip(&rows[1..3]) {
        let expected = softmax(row);
        let best = (0..expected.len())
            .max_by(|a, b| expected[*a].total_cmp(&expected[*b]))
            .unwrap();
        assert_eq!(token["label"], format!("LABEL_{best}"));
        assert!(near(&token["probability"], expected[best]), "{token}");
    }
}

#[test]
fn a_bare_encoder_gives_vectors_and_says_how_near_they_are() {
    let shell = shell("bert-encoder", &[]);
    let texts = ["--text", "w7 w21", "--text", "w21 w7", "--text", "w90"];
    let found = run(&shell, &[&texts[..], &["--json"]].concat()).json();
    let rows = evaluated("bert-encoder", &[7, 21]);
    let mut mean: Vec<f64> = (0..rows[0].len())
        .map(|i| rows.iter().map(|row| f64::from(row[i])).sum::<f64>())
        .collect();
    let norm = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
    for x in &mut mean {
        *x /= norm;
    }
    let vector = found[0]["embedding"].as_array().unwrap();
    assert!(vector.len() == mean.len() && vector.iter().zip(&mean).all(|(a, b)| near(a, *b)));
    insta::assert_snapshot!(run(&shell, &texts).stdout);
}

/// A shell with the golden as a checkpoint whose configuration has these keys.
pub fn configured(golden: &str, keys: &Value) -> Shell {
    let shell = Shell::new();
    shell.copy(&fixture(&format!("goldens/{golden}")), "model");
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(shell.path("model/config.json")).unwrap()).unwrap();
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    shell.write("model/config.json", config.to_string());
    std::fs::remove_file(shell.path("model/golden.safetensors")).unwrap();
    shell.write("model/tokenizer.json", tokenizer());
    shell
}

#[test]
fn scores_mean_what_the_problem_type_says() {
    let row = &evaluated("bert-classifier", &[7, 21, 50])[0];
    for (problem, key, expected) in [
        (Value::Null, "probability", softmax(row)),
        (
            json!("single_label_classification"),
            "probability",
            softmax(row),
        ),
        (
            json!("multi_label_classification"),
            "probability",
            row.iter()
                .map(|x| 1.0 / (1.0 + f64::from(-x).exp()))
                .collect(),
        ),
        (
            json!("regression"),
            "score",
            row.iter().map(|x| f64::from(*x)).collect(),
        ),
    ] {
        let shell = configured("bert-classifier", &json!({"problem_type": problem}));
        shell.ok(&["compile", "model", "-o", "bundle"]);
        let found = run(&shell, &["--text", "w7 w21 w50", "--json"]).json();
        let scores = found[0][if key == "score" { "scores" } else { "classes" }]
            .as_array()
            .unwrap();
        assert_eq!(scores.len(), 3);
        assert!(
            scores
                .iter()
                .all(|s| near(&s[key], expected[s["index"].as_u64().unwrap() as usize])),
            "{problem}: {scores:?}"
        );
        let pruned = shell.dlc(&[
            "compile",
            "model",
            "--pass",
            "fit-prune:drop=1,calibration=fixtures/calibration-tokens.jsonl",
            "-o",
            "small",
        ]);
        let refused = key == "score" || problem == "multi_label_classification";
        assert_eq!(
            pruned.code,
            Some(if refused { 3 } else { 0 }),
            "{}",
            pruned.transcript()
        );
        assert_eq!(shell.path("small").exists(), !refused);
    }
}

/// The tensors of `model` in the shell, with the classifier cut to its first class.
fn cut_to_one_class(shell: &Shell) {
    let path = shell.path("model/model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let views = tensors.iter().map(|(name, view)| {
        let mut shape = view.shape().to_vec();
        if name.starts_with("classifier.") {
            shape[0] = 1;
        }
        let size = shape.iter().product::<usize>() * 4;
        (
            name.to_owned(),
            safetensors::tensor::TensorView::new(view.dtype(), shape, &view.data()[..size])
                .unwrap(),
        )
    });
    let views: Vec<_> = views.collect();
    safetensors::tensor::serialize_to_file(views, None, &shell.path("model/one.safetensors"))
        .unwrap();
    std::fs::rename(shell.path("model/one.safetensors"), path).unwrap();
}

#[test]
fn a_model_of_one_class_gives_its_score() {
    let shell = configured(
        "bert-classifier",
        &json!({"id2label": {"0": "relevance"}, "label2id": {"relevance": 0}}),
    );
    cut_to_one_class(&shell);
    shell.ok(&["compile", "model", "-o", "bundle"]);
    let found = run(&shell, &["--text", "w7 w21 w50", "--json"]).json();
    assert_eq!(found[0]["scores"][0]["label"], "relevance");
    assert!(near(
        &found[0]["scores"][0]["score"],
        f64::from(evaluated("bert-classifier", &[7, 21, 50])[0][0])
    ));
    insta::assert_snapshot!(run(&shell, &["--text", "w7 w21 w50"]).stdout);
}

#[test]
fn many_texts_are_read_in_batches_and_not_compared_all_with_all() {
    let shell = shell("bert-encoder", &[]);
    let texts: Vec<String> = (0..200)
        .map(|i| ["w7"].repeat(1 + i * 7 % 60).join(" "))
        .collect();
    shell.write("texts.txt", texts.join("\n"));
    let together = run(&shell, &["--texts", "texts.txt", "--json"]).json();
    for i in [0, 8, 57, 199] {
        let alone = run(&shell, &["--text", &texts[i], "--json"]).json();
        assert_eq!(together[i]["text"], texts[i]);
        let pairs = together[i]["embedding"]
            .as_array()
            .unwrap()
            .iter()
            .zip(alone[0]["embedding"].as_array().unwrap());
        assert!(
            pairs.into_iter().all(|(a, b)| near(a, b.as_f64().unwrap())),
            "{i}"
        );
    }
    assert!(
        !run(&shell, &["--texts", "texts.txt"])
            .stdout
            .contains("cosine")
    );
}

#[test]
fn a_pruned_encoder_runs_beside_the_whole_one() {
    let shell = shell(
        "bert-classifier",
        &[
            "--pass",
            "fit-prune:drop=1,calibration=fixtures/calibration-tokens.jsonl",
        ],
    );
    let manifest: serde_yaml::Value =
        serde_yaml::from_str(&std::fs::read_to_string(shell.path("bundle/dlc.yaml")).unwrap())
            .unwrap();
    let report = &manifest["passes"][0]["report"];
    assert!(
        report["agreement"]
            .as_str()
            .unwrap()
            .contains("answers on the calibration samples"),
        "{report:?}"
    );
    assert_eq!(manifest["graphs"][1]["name"], "pruned");
    let all = |flags: &[&str]| {
        run(
            &shell,
            &[&["--text", "w7 w21 w50", "--json"], flags].concat(),
        )
        .stdout
    };
    assert_ne!(all(&[]), all(&["--pruned"]));
    let bench = shell
        .ok(&[
            "bench",
            "bundle",
            "--backend",
            "tract",
            "--lengths",
            "8,16,4096",
            "--repeats",
            "1",
            "--json",
        ])
        .json();
    let lengths = bench["lengths"].as_array().unwrap();
    assert_eq!(
        lengths
            .iter()
            .map(|l| l["tokens"].as_u64().unwrap())
            .collect::<Vec<_>>(),
        [8, 16]
    );
    assert!(
        lengths
            .iter()
            .all(|l| l["pruned_seconds"].as_f64().unwrap() > 0.0)
    );
    for length in lengths {
        for side in ["target", "pruned"] {
            let (median, range) = (
                length[format!("{side}_seconds")].as_f64().unwrap(),
                &length[format!("{side}_range")],
            );
            assert!(
                range[0].as_f64().unwrap() <= median && median <= range[1].as_f64().unwrap(),
                "{length}"
            );
        }
    }
    // Eight built-in texts, an answer each.
    assert_eq!(
        (&bench["agreement"]["texts"], &bench["agreement"]["answers"]),
        (&json!(8), &json!(8))
    );
    assert_eq!(
        shell
            .ok(&["verify", "bundle", "--backend", "tract"])
            .stdout
            .matches("  ok")
            .count(),
        4
    );
}

#[test]
fn what_an_encoder_can_not_do_is_refused() {
    let encoder = shell("bert", &[]);
    encoder.ok(&["compile", "fixtures/tiny-llama", "-o", "decoder"]);
    encoder.ok(&["compile", "fixtures/goldens/bert", "-o", "speechless"]);
    let long = vec!["w7"; 80].join(" ");
    let mut messages = String::new();
    for args in [
        &["run", "bundle", "--text", "w7 w8"][..],
        &["run", "bundle", "--text", &long],
        &["run", "bundle", "--text", "[MASK]", "--pruned"],
        &["run", "bundle", "--text", "[MASK]", "--top", "0"],
        &["run", "bundle", "--text", "[MASK]", "--prompt", "w7"],
        &["run", "bundle", "--prompt", "w7"],
        &["run", "bundle", "--texts", "missing.txt"],
        &["run", "decoder", "--text", "w7"],
        &["run", "speechless", "--text", "w7"],
        &["run", "bundle"],
        &[
            "compile",
            "fixtures/goldens/bert-encoder",
            "--pass",
            "fit-prune:drop=1,calibration=fixtures/calibration-tokens.jsonl",
            "-o",
            "out",
        ],
    ] {
        let outcome = encoder.dlc(args);
        assert!(
            matches!(outcome.code, Some(2 | 3)),
            "{}",
            outcome.transcript()
        );
        messages += &outcome.transcript().replace(&long, "w7 w7 ...");
    }
    insta::assert_snapshot!(messages);
    let cut = run(
        &encoder,
        &["--text", &format!("[MASK] {long}"), "--truncate"],
    );
    assert!(
        cut.stderr.contains("is cut from 83 tokens to 64"),
        "{}",
        cut.transcript()
    );
}
