//! Encoders that find answers in texts: `dlc run --question`.

use serde_json::{Value, json};

use crate::command::Shell;
use crate::common::fixture;
use crate::encoders::{configured, near, run};

/// What transformers 4's pipeline says of the golden, see `fixtures/make_answers.py`.
fn recorded() -> Vec<Value> {
    let text = std::fs::read(fixture("cases/answers/golden.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// The golden with the tokenizer of the recorded answers, compiled.
fn reader() -> Shell {
    let shell = configured("bert-answers", &json!({}));
    let tokenizer = std::fs::read_to_string(fixture("cases/answers/tokenizer.json")).unwrap();
    shell.write("model/tokenizer.json", tokenizer);
    shell.ok(&["compile", "model", "-o", "bundle"]);
    shell
}

#[test]
fn answers_are_those_of_the_pipeline_of_transformers() {
    let shell = reader();
    for case in recorded() {
        let [question, text] = ["question", "text"].map(|key| case[key].as_str().unwrap());
        let args = [
            "--question",
            question,
            "--text",
            text,
            "--top",
            "4",
            "--json",
        ];
        let found = run(&shell, &args).json();
        let (found, expected) = (&found[0]["answers"], case["answers"].as_array().unwrap());
        assert_eq!(found.as_array().unwrap().len(), expected.len());
        for (found, expected) in found.as_array().unwrap().iter().zip(expected) {
            for key in ["answer", "start", "end"] {
                assert_eq!(found[key], expected[key], "{question}: {found}");
            }
            assert!(
                near(&found["probability"], expected["score"].as_f64().unwrap()),
                "{question}: {found} is not {expected}"
            );
        }
    }
}

#[test]
fn answers_are_shown_and_long_texts_are_cut_where_that_is_asked_for() {
    let shell = reader();
    let long = "the old bridge ".repeat(40);
    let ask = |text: &str, more: &[&str]| {
        let args = [
            "run",
            "bundle",
            "--backend",
            "tract",
            "--question",
            "who was in the city?",
            "--text",
            text,
        ];
        shell.dlc(&[&args[..], more].concat())
    };
    let mut messages = ask("The king was in the stone city.", &[]).transcript();
    messages += &ask(&long, &[]).transcript();
    messages += &ask(&long, &["--truncate", "--top", "1"]).transcript();
    insta::assert_snapshot!(messages.replace(&long, "the old bridge ... "));
}

#[test]
fn a_question_and_a_model_that_answers_belong_together() {
    let shell = reader();
    shell.ok(&[
        "compile",
        "fixtures/goldens/bert-classifier",
        "-o",
        "classifier",
    ]);
    let prune = "fit-prune:drop=1,calibration=fixtures/calibration-tokens.jsonl";
    let mut messages = String::new();
    for args in [
        &["run", "bundle", "--text", "the king"][..],
        &["run", "bundle", "--prompt", "the king"],
        &["run", "classifier", "--question", "who?", "--text", "w7"],
        &["run", "bundle", "--question", "who?", "--text", ""],
        &[
            "run",
            "bundle",
            "--question",
            "who?",
            "--text",
            "the king",
            "--pruned",
        ],
        &["compile", "model", "--pass", prune, "-o", "small"],
    ] {
        let outcome = shell.dlc(args);
        assert!(
            matches!(outcome.code, Some(2 | 3)),
            "{}",
            outcome.transcript()
        );
        messages += &outcome.transcript();
    }
    insta::assert_snapshot!(messages);
    let checks = shell.ok(&["verify", "bundle", "--backend", "tract"]).stdout;
    assert_eq!(checks.matches("  ok").count(), 2, "{checks}");
}
