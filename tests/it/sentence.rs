//! Sentence Transformers: the files beside the model that say how the vector of a text is made,
//! each heeded or named.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::command::{Outcome, Shell};
use crate::encoders::{configured, evaluated, near, run};

const GOLDEN: &str = "bert-encoder";

/// `modules.json` with these steps, each in a folder of its own but the first.
fn modules(kinds: &[&str]) -> Value {
    let step = |(i, kind): (usize, &&str)| {
        let path = if i == 0 {
            String::new()
        } else {
            format!("{i}_{kind}")
        };
        json!({"idx": i, "name": i.to_string(), "path": path, "type": format!("sentence_transformers.models.{kind}")})
    };
    Value::Array(kinds.iter().enumerate().map(step).collect())
}

const USUAL: [&str; 3] = ["Transformer", "Pooling", "Normalize"];

/// A shell with a checkpoint that has these files.
fn shell(kinds: &[&str], files: &[(&str, Value)]) -> Shell {
    let shell = configured(GOLDEN, &json!({}));
    shell.write("model/modules.json", modules(kinds).to_string());
    shell.write(
        "model/1_Pooling/config.json",
        json!({"pooling_mode_mean_tokens": true}).to_string(),
    );
    for (name, content) in files {
        shell.write(&format!("model/{name}"), content.to_string());
    }
    shell
}

fn compiled(kinds: &[&str], files: &[(&str, Value)]) -> Shell {
    let shell = shell(kinds, files);
    shell.ok(&["compile", "model", "-o", "bundle"]);
    shell
}

/// What the model says of each token, in double precision.
fn rows(words: &[i64]) -> Vec<Vec<f64>> {
    evaluated(GOLDEN, words)
        .into_iter()
        .map(|row| row.into_iter().map(f64::from).collect())
        .collect()
}

fn mean(rows: &[Vec<f64>]) -> Vec<f64> {
    (0..rows[0].len())
        .map(|i| rows.iter().map(|row| row[i]).sum::<f64>() / rows.len() as f64)
        .collect()
}

fn scaled(vector: &[f64]) -> Vec<f64> {
    let norm = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    vector.iter().map(|x| x / norm).collect()
}

fn assert_vector(found: &Value, expected: &[f64], case: &str) {
    let vector = found["embedding"].as_array().unwrap();
    assert_eq!(vector.len(), expected.len(), "{case}");
    assert!(
        vector.iter().zip(expected).all(|(a, b)| near(a, *b)),
        "{case}: {found}"
    );
}

#[test]
fn vectors_are_pooled_as_the_checkpoint_says() {
    let rows = rows(&[7, 21]);
    let fold = |of: fn(f64, f64) -> f64| {
        rows.iter()
            .cloned()
            .reduce(|a, b| a.iter().zip(b).map(|(x, y)| of(*x, y)).collect())
            .unwrap()
    };
    let (mean, first, last, max) = (
        mean(&rows),
        rows[0].clone(),
        rows[3].clone(),
        fold(f64::max),
    );
    let weighted = (0..mean.len())
        .map(|i| {
            rows.iter()
                .enumerate()
                .map(|(t, row)| (t + 1) as f64 * row[i])
                .sum::<f64>()
                / 10.0
        })
        .collect::<Vec<_>>();
    let root: Vec<f64> = mean.iter().map(|x| 2.0 * x).collect();
    let both = [first.clone(), mean.clone()].concat();
    let off = |on: &str| json!({"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": false, "word_embedding_dimension": 32, on: true});
    for (pooling, name, expected) in [
        (off("pooling_mode_cls_token"), json!("cls"), &first),
        (off("pooling_mode_max_tokens"), json!("max"), &max),
        (off("pooling_mode_mean_tokens"), json!("mean"), &mean),
        (
            off("pooling_mode_mean_sqrt_len_tokens"),
            json!("mean_sqrt_len_tokens"),
            &root,
        ),
        (
            off("pooling_mode_weightedmean_tokens"),
            json!("weightedmean"),
            &weighted,
        ),
        (off("pooling_mode_lasttoken"), json!("lasttoken"), &last),
        (
            json!({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}),
            json!(["cls", "mean"]),
            &both,
        ),
        (json!({"pooling_mode": "cls"}), json!("cls"), &first),
        (
            json!({"pooling_mode": ["cls", "mean"]}),
            json!(["cls", "mean"]),
            &both,
        ),
        (json!({}), json!("mean"), &mean),
    ] {
        let shell = compiled(&USUAL, &[("1_Pooling/config.json", pooling.clone())]);
        let found = run(&shell, &["--text", "w7 w21", "--json"]).json();
        assert_eq!(
            (&found[0]["pooling"], &found[0]["normalized"]),
            (&name, &json!(true))
        );
        assert_vector(&found[0], &scaled(expected), &pooling.to_string());
    }
}

#[test]
fn vectors_keep_their_length_where_no_step_normalizes_them() {
    let expected = mean(&rows(&[7, 21]));
    for (kinds, normalized) in [
        (&["Transformer", "Pooling"][..], false),
        (&USUAL, true),
        (&["Transformer", "Pooling", "Dropout", "Normalize"], true),
    ] {
        let shell = compiled(kinds, &[]);
        let found = run(&shell, &["--text", "w7 w21", "--json"]).json();
        assert_eq!(found[0]["normalized"], normalized);
        assert_vector(
            &found[0],
            &if normalized {
                scaled(&expected)
            } else {
                expected.clone()
            },
            &format!("{kinds:?}"),
        );
        let shown = run(&shell, &["--text", "w7 w21"]).stdout;
        assert_eq!(
            shown.contains("not scaled to length 1"),
            !normalized,
            "{shown}"
        );
    }
    // Nothing is known of a bare encoder: its vectors have length 1, and the JSON says so.
    let shell = configured(GOLDEN, &json!({}));
    shell.ok(&["compile", "model", "-o", "bundle"]);
    let found = run(&shell, &["--text", "w7 w21", "--json"]).json();
    assert_eq!(
        (&found[0]["normalized"], &found[0]["pooling"]),
        (&json!(true), &json!("mean"))
    );
    assert_vector(&found[0], &scaled(&expected), "bare");
}

#[test]
fn prompts_stand_before_texts_by_default_by_name_or_not_at_all() {
    let settings = json!({"prompts": {"query": "w50 w51 ", "passage": "w52 ", "plain": null}, "default_prompt_name": "query"});
    let shell = compiled(&USUAL, &[("config_sentence_transformers.json", settings)]);
    for (flags, name, words) in [
        (&[][..], json!("query"), &[50, 51, 7, 21][..]),
        (
            &["--prompt-name", "passage"],
            json!("passage"),
            &[52, 7, 21],
        ),
        (&["--prompt-name", "plain"], json!("plain"), &[7, 21]),
        (&["--prompt-name", ""], json!(null), &[7, 21]),
    ] {
        let found = run(&shell, &[&["--text", "w7 w21", "--json"], flags].concat()).json();
        assert_eq!(found[0]["prompt"], name);
        assert_vector(
            &found[0],
            &scaled(&mean(&rows(words))),
            &format!("{flags:?}"),
        );
    }
    let outcome = shell.dlc(&[
        "run",
        "bundle",
        "--backend",
        "tract",
        "--text",
        "w7",
        "--prompt-name",
        "document",
    ]);
    assert_eq!(outcome.code, Some(2));
    assert!(
        outcome.stderr.contains("no prompt `document`")
            && outcome.stderr.contains("passage, plain, query"),
        "{}",
        outcome.transcript()
    );
}

#[test]
fn pooling_leaves_the_prompt_out_where_the_checkpoint_says_so() {
    let settings = json!({"prompts": {"query": "w50 w51 "}, "default_prompt_name": "query"});
    let all = rows(&[50, 51, 7, 21]);
    for (mode, expected) in [
        ("mean", mean(&all[3..])),
        ("cls", all[3].clone()),
        ("lasttoken", all[5].clone()),
    ] {
        let pooling = json!({"pooling_mode": mode, "include_prompt": false});
        let shell = compiled(
            &USUAL,
            &[
                ("config_sentence_transformers.json", settings.clone()),
                ("1_Pooling/config.json", pooling),
            ],
        );
        let found = run(&shell, &["--text", "w7 w21", "--json"]).json();
        assert_vector(&found[0], &scaled(&expected), mode);
        let found = run(&shell, &["--text", "w7 w21", "--prompt-name", "", "--json"]).json();
        let without = rows(&[7, 21]);
        let expected = if mode == "mean" {
            mean(&without)
        } else {
            without[if mode == "cls" { 0 } else { 3 }].clone()
        };
        assert_vector(&found[0], &scaled(&expected), mode);
    }
}

#[test]
fn texts_are_cut_at_the_limit_of_the_checkpoint() {
    let long: Vec<i64> = (7..37).collect();
    let text = long
        .iter()
        .map(|id| format!("w{id}"))
        .collect::<Vec<_>>()
        .join(" ");
    let left = || ("tokenizer_config.json", json!({"truncation_side": "left"}));
    for (files, words) in [
        (
            vec![(
                "sentence_bert_config.json",
                json!({"max_seq_length": 8, "do_lower_case": false}),
            )],
            &long[..6],
        ),
        (
            vec![(
                "sentence_xlm-roberta_config.json",
                json!({"max_seq_length": 8}),
            )],
            &long[..6],
        ),
        (
            vec![
                ("sentence_bert_config.json", json!({"max_seq_length": 8})),
                left(),
            ],
            &long[24..],
        ),
        (
            vec![
                ("sentence_bert_config.json", json!({"max_seq_length": 8})),
                ("tokenizer_config.json", json!({"model_max_length": 12})),
            ],
            &long[..6],
        ),
        (
            vec![
                ("sentence_bert_config.json", json!({"max_seq_length": null})),
                ("tokenizer_config.json", json!({"model_max_length": 12})),
            ],
            &long[..10],
        ),
        (
            vec![("tokenizer_config.json", json!({"model_max_length": 12}))],
            &long[..10],
        ),
        (
            vec![("tokenizer_config.json", json!({"model_max_length": 1e30}))],
            &long[..],
        ),
    ] {
        let shell = compiled(&USUAL, &files);
        let outcome = run(&shell, &["--text", &text, "--text", "w7", "--json"]);
        let (found, cut) = (outcome.json(), words.len() < long.len());
        assert_eq!(
            (&found[0]["truncated"], &found[1]["truncated"]),
            (&json!(cut), &json!(false)),
            "{files:?}"
        );
        assert_eq!(
            outcome.stderr.contains(&format!(
                "text 1 is cut from 32 tokens to {}",
                words.len() + 2
            )),
            cut,
            "{}",
            outcome.stderr
        );
        assert_vector(
            &found[0],
            &scaled(&mean(&rows(words))),
            &format!("{files:?}"),
        );
    }
}

#[test]
fn texts_beyond_the_positions_are_cut_where_sentence_transformers_cuts_them() {
    let text = (0..80)
        .map(|i| format!("w{}", 7 + i))
        .collect::<Vec<_>>()
        .join(" ");
    let shell = compiled(
        &USUAL,
        &[("sentence_bert_config.json", json!({"max_seq_length": 512}))],
    );
    assert!(
        run(&shell, &["--text", &text])
            .stderr
            .contains("text 1 is cut from 82 tokens to 64")
    );
    let bare = configured(GOLDEN, &json!({}));
    bare.ok(&["compile", "model", "-o", "bundle"]);
    assert_eq!(
        bare.dlc(&["run", "bundle", "--backend", "tract", "--text", &text])
            .code,
        Some(2)
    );
    assert_eq!(
        run(&bare, &["--text", &text, "--truncate", "--json"]).json()[0]["truncated"],
        true
    );
}

#[test]
fn texts_are_read_in_lower_case_where_the_checkpoint_says_so() {
    for lower in [true, false] {
        let shell = compiled(
            &USUAL,
            &[("sentence_bert_config.json", json!({"do_lower_case": lower}))],
        );
        let found = run(&shell, &["--text", "W7 w21 [MASK]", "--json"]).json();
        assert_vector(
            &found[0],
            &scaled(&mean(&rows(&[if lower { 7 } else { 1 }, 21, 4]))),
            &lower.to_string(),
        );
    }
}

#[test]
fn vectors_are_cut_and_compared_as_the_checkpoint_says() {
    let [a, b] = [&[7, 21][..], &[50]].map(|words| mean(&rows(words)));
    let sum = |of: fn(f64, f64) -> f64| a.iter().zip(&b).map(|(x, y)| of(*x, *y)).sum::<f64>();
    for (name, expected) in [
        ("dot", sum(|x, y| x * y)),
        ("euclidean", -sum(|x, y| (x - y).powi(2)).sqrt()),
        ("manhattan", -sum(|x, y| (x - y).abs())),
    ] {
        let shell = compiled(
            &["Transformer", "Pooling"],
            &[(
                "config_sentence_transformers.json",
                json!({"similarity_fn_name": name}),
            )],
        );
        let shown = run(&shell, &["--text", "w7 w21", "--text", "w50"]).stdout;
        assert!(
            shown.contains(name) && shown.contains(&format!("{expected:.3}")),
            "{expected}\n{shown}"
        );
    }
    let shell = compiled(
        &USUAL,
        &[(
            "config_sentence_transformers.json",
            json!({"truncate_dim": 8}),
        )],
    );
    let found = run(&shell, &["--text", "w7 w21", "--json"]).json();
    assert_eq!(found[0]["normalized"], false);
    assert_vector(&found[0], &scaled(&a)[..8], "truncate_dim");
}

#[test]
fn a_model_of_sentence_transformers_is_run_without_its_head() {
    for golden in ["bert", "roberta"] {
        let shell = configured(golden, &json!({}));
        shell.write("model/modules.json", modules(&USUAL).to_string());
        shell.write(
            "model/1_Pooling/config.json",
            json!({"pooling_mode": "mean"}).to_string(),
        );
        shell.ok(&["compile", "model", "-o", "bundle"]);
        let found = run(&shell, &["--text", "w7 w21", "--json"]).json();
        let config: Value =
            serde_json::from_slice(&std::fs::read(shell.path("model/config.json")).unwrap())
                .unwrap();
        let width = found[0]["embedding"].as_array().unwrap().len();
        assert_eq!(json!(width), config["hidden_size"], "{golden}");
    }
}

#[test]
fn keys_of_modules_that_nobody_heeds_are_named() {
    let mut list = modules(&USUAL);
    list[1]["kwargs"] = json!(["task"]);
    list[2]["frob"] = json!(1);
    let shell = shell(&USUAL, &[("modules.json", list)]);
    let outcome = shell.ok(&["compile", "model", "-o", "bundle"]);
    for expected in [
        "modules.json, module 2: not heeded: `kwargs`",
        "modules.json, module 3: not heeded: `frob`",
    ] {
        assert!(
            outcome.stderr.contains(expected),
            "{}",
            outcome.transcript()
        );
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn steps_that_dlc_can_not_do_are_refused_by_name() {
    let mut messages = String::new();
    for (kinds, files) in [
        (
            &["Transformer", "Pooling", "Dense", "Normalize"][..],
            vec![],
        ),
        (
            &["Transformer", "Normalize", "Pooling"],
            vec![("2_Pooling/config.json", json!({}))],
        ),
        (&["Transformer"], vec![]),
        (&["CLIPModel"], vec![]),
        (
            &USUAL,
            vec![("1_Pooling/config.json", json!({"pooling_mode": "median"}))],
        ),
        (
            &USUAL,
            vec![(
                "1_Pooling/config.json",
                json!({"pooling_mode_median_tokens": true}),
            )],
        ),
        (
            &USUAL,
            vec![(
                "2_Normalize/config.json",
                json!({"module_input_name": "token_embeddings"}),
            )],
        ),
        (
            &USUAL,
            vec![(
                "config_sentence_transformers.json",
                json!({"model_type": "SparseEncoder"}),
            )],
        ),
        (
            &USUAL,
            vec![(
                "config_sentence_transformers.json",
                json!({"prompts": {"a": "b"}, "default_prompt_name": "c"}),
            )],
        ),
        (
            &USUAL,
            vec![(
                "config_sentence_transformers.json",
                json!({"prompts": {"a": 7}}),
            )],
        ),
        (
            &USUAL,
            vec![(
                "config_sentence_transformers.json",
                json!({"truncate_dim": 0}),
            )],
        ),
        (
            &USUAL,
            vec![(
                "sentence_bert_config.json",
                json!({"max_seq_length": "long"}),
            )],
        ),
        (
            &USUAL,
            vec![("sentence_bert_config.json", json!({"do_lower_case": 1}))],
        ),
        (&USUAL, vec![("1_Pooling/config.json", json!([]))]),
        (&USUAL, vec![("modules.json", json!({}))]),
        (
            &USUAL,
            vec![(
                "modules.json",
                json!([{"path": "../outside", "type": "sentence_transformers.models.Pooling"}]),
            )],
        ),
        (
            &USUAL,
            vec![(
                "modules.json",
                json!([{"path": "a/b", "type": "sentence_transformers.models.Pooling"}]),
            )],
        ),
        (
            &USUAL,
            vec![(
                "modules.json",
                json!([{"path": "/etc", "type": "sentence_transformers.models.Pooling"}]),
            )],
        ),
    ] {
        let shell = shell(kinds, &files);
        let compiled = shell.dlc(&["compile", "model", "-o", "bundle"]);
        let compiles = compiled.code == Some(0);
        assert!(
            !compiles || compiled.stderr.contains("`dlc run` won't make vectors"),
            "{}",
            compiled.transcript()
        );
        let outcome = if compiles {
            shell.dlc(&["run", "bundle", "--text", "w7"])
        } else {
            compiled
        };
        assert!(
            matches!(outcome.code, Some(2 | 3)),
            "{}",
            outcome.transcript()
        );
        messages += &outcome.transcript();
    }
    insta::assert_snapshot!(messages);
}

fn warnings(outcome: &Outcome) -> Vec<&str> {
    outcome
        .stderr
        .lines()
        .filter(|line| line.contains("not heeded"))
        .collect()
}

#[test]
fn keys_that_are_not_heeded_are_named_when_compiling() {
    let files = [
        (
            "1_Pooling/config.json",
            json!({"pooling_mode": "mean", "word_embedding_dimension": 32, "whitening": true}),
        ),
        (
            "sentence_bert_config.json",
            json!({"max_seq_length": 8, "model_args": {"attn": 1}, "tokenizer_args": {}, "query_length": 4}),
        ),
        (
            "config_sentence_transformers.json",
            json!({"__version__": {}, "similarity_fn_name": "maxsim", "chunks": 3}),
        ),
    ];
    let outcome = shell(&USUAL, &files).ok(&["compile", "model", "-o", "bundle"]);
    let found = warnings(&outcome);
    let has = |parts: &[&str]| {
        found
            .iter()
            .any(|line| parts.iter().all(|part| line.contains(part)))
    };
    assert!(
        has(&["1_Pooling/config.json", "`whitening`"])
            && has(&[
                "sentence_bert_config.json",
                "`model_args`",
                "`query_length`"
            ]),
        "{found:?}"
    );
    assert!(
        has(&["config_sentence_transformers.json", "`chunks`"])
            && has(&["`similarity_fn_name` \"maxsim\""]),
        "{found:?}"
    );
    assert_eq!(found.len(), 4);
    assert!(warnings(&shell(&USUAL, &[]).ok(&["compile", "model", "-o", "bundle"])).is_empty());
    // A classifier makes no vectors.
    let classifier = configured("bert-classifier", &json!({}));
    classifier.write(
        "model/sentence_bert_config.json",
        json!({"max_seq_length": 8}).to_string(),
    );
    assert_eq!(
        warnings(&classifier.ok(&["compile", "model", "-o", "bundle"])).len(),
        1
    );
}

#[test]
fn a_bundle_holds_what_sentence_transformers_reads() {
    let files = [
        ("sentence_bert_config.json", json!({"max_seq_length": 8})),
        ("config_sentence_transformers.json", json!({"prompts": {}})),
        ("2_Normalize/config.json", json!({})),
        ("vocab.txt", json!("")),
        ("sentencepiece.bpe.model", json!("")),
    ];
    let shell = shell(&USUAL, &files);
    shell.write("model/other/secret.json", "{}");
    shell.write("model/1_Pooling/.hidden", "");
    shell.ok(&["compile", "model", "-o", "bundle"]);
    let manifest: Value =
        serde_yaml::from_str(&std::fs::read_to_string(shell.path("bundle/dlc.yaml")).unwrap())
            .unwrap();
    let listed: BTreeSet<&str> = manifest["files"]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    for name in files.iter().map(|(name, _)| *name).chain([
        "modules.json",
        "1_Pooling/config.json",
        "tokenizer.json",
    ]) {
        assert!(listed.contains(name), "{name} is not in {listed:?}");
        let bytes = |folder: &str| std::fs::read(shell.path(folder).join(name)).unwrap();
        assert_eq!(bytes("bundle"), bytes("model"), "{name}");
    }
    assert!(
        !shell.path("bundle/other").exists() && !shell.path("bundle/1_Pooling/.hidden").exists()
    );
    assert!(
        shell
            .ok(&["verify", "bundle", "--backend", "tract"])
            .stdout
            .contains("ok")
    );
    // A bundle with folders is replaced like any other, unless something else is in them.
    shell.ok(&["compile", "model", "-o", "bundle", "--force"]);
    shell.write("bundle/1_Pooling/mine.txt", "");
    let outcome = shell.dlc(&["compile", "model", "-o", "bundle", "--force"]);
    assert_eq!(outcome.code, Some(2));
    assert!(
        outcome.stderr.contains("1_Pooling/mine.txt"),
        "{}",
        outcome.transcript()
    );
}
