//! `dlc compare` on tract and the evaluator: what equal, rounded and cheaper models are told apart
//! by, what it refuses, and its exit codes.

use serde_json::Value;

use crate::command::{Outcome, PRUNE_TINY, Shell, bundles};
use crate::encoders;

/// `dlc compare` with these words; few tokens are enough.
fn compare(shell: &Shell, args: &[&str]) -> Outcome {
    shell.dlc(
        &[
            &["compare"],
            args,
            &["--backend", "tract", "--max-tokens", "200"],
        ]
        .concat(),
    )
}

/// What it found.
fn found(shell: &Shell, args: &[&str]) -> Value {
    let outcome = compare(shell, &[args, &["--json"]].concat());
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    serde_json::from_str(&outcome.stdout).unwrap()
}

fn number(value: &Value, path: &str) -> f64 {
    let at = value.pointer(path).and_then(Value::as_f64);
    at.unwrap_or_else(|| panic!("{path} of {value}"))
}

#[test]
fn a_bundle_is_its_checkpoint_and_itself() {
    let shell = bundles();
    let itself = found(&shell, &["plain", "plain"]);
    for (path, expected) in [("/kl/largest", 0.0), ("/agreement", 1.0)] {
        assert!((number(&itself, path) - expected).abs() < 1e-15, "{itself}");
    }
    assert_eq!(itself["a"]["perplexity"], itself["b"]["perplexity"]);
    let checkpoint = found(&shell, &["fixtures/tiny-llama", "plain"]);
    assert!(number(&checkpoint, "/kl/largest") < 1e-7, "{checkpoint}");
    let by = ["a", "b"].map(|side| checkpoint[side]["computed_by"].clone());
    assert_eq!(by, ["evaluator", "tract"]);
    // bf16 in the checkpoint's file; the bundle computes in f32 and says what that takes.
    let bits = ["/a/bits_per_weight", "/b/bits_per_weight"].map(|path| number(&checkpoint, path));
    assert!((bits[0] - 16.0).abs() < 0.1 && bits[1] >= 16.0, "{bits:?}");
    for side in ["/a", "/b"] {
        let ours = number(&checkpoint, &format!("{side}/perplexity"));
        assert!((ours / number(&itself, "/a/perplexity") - 1.0).abs() < 1e-4);
    }
}

#[test]
fn a_draft_differs_from_its_target_and_the_limit_decides_the_exit_code() {
    let shell = Shell::new();
    let passes = ["--pass", PRUNE_TINY, "--pass", "quantize-draft"];
    shell.ok(&[
        &["compile", "fixtures/tiny-llama", "-o", "out"],
        &passes[..],
    ]
    .concat());
    let draft = ["out", "out", "--graph", "draft"];
    let differs = found(&shell, &draft);
    let [mean, p99, largest] =
        ["mean", "p99", "largest"].map(|f| number(&differs, &format!("/kl/{f}")));
    assert!(0.0 < mean && mean < p99 && p99 < largest, "{differs}");
    assert!(number(&differs, "/agreement") < 1.0);
    assert!(number(&differs, "/b/bits_per_weight") < number(&differs, "/a/bits_per_weight"));
    for (limit, code) in [("0", 1), ("1000", 0)] {
        let outcome = compare(&shell, &[&draft[..], &["--max-kl", limit]].concat());
        assert_eq!(outcome.code, Some(code), "{}", outcome.transcript());
        assert!(outcome.stdout.contains("KL(A || B) mean"));
    }
}

#[test]
fn encoders_and_denoisers_are_compared_by_what_they_answer() {
    for (golden, zero) in [
        ("bert", "/kl/largest"),
        ("bert-classifier", "/kl/largest"),
        ("bert-tokens", "/kl/largest"),
        ("bert-answers", "/kl/largest"),
        ("bert-encoder", "/largest_difference"),
    ] {
        let shell = encoders::shell(golden, &[]);
        shell.write("texts.txt", "w5 w6 w7 w8\nw9 w10 w11\n");
        let same = found(&shell, &["model", "bundle", "--text", "texts.txt"]);
        assert!(number(&same, zero) < 1e-4, "{golden}: {same}");
        assert!(number(&same, "/tokens") > 7.0, "{golden}: {same}");
    }
    let shell = Shell::new();
    shell.ok(&["compile", "fixtures/goldens/dit", "-o", "dit"]);
    let same = found(&shell, &["fixtures/goldens/dit", "dit"]);
    assert!(number(&same, "/relative_squared_error") < 1e-8, "{same}");
}

#[test]
fn models_that_cannot_be_compared_are_refused_by_name() {
    let shell = bundles();
    let dit = "fixtures/goldens/dit";
    for (args, reasons) in [
        (
            &["plain", "fixtures/goldens/bert"][..],
            &[
                "plain and fixtures/goldens/bert",
                "text-generation",
                "fill-mask",
            ][..],
        ),
        (
            &["plain", "fixtures/goldens/llama"],
            &["plain and fixtures/goldens/llama", "vocabulary of 2048"],
        ),
        (
            &["plain", "plain", "--graph", "draft"],
            &["no graph `draft`", "target"],
        ),
        (
            &["plain", "fixtures/tiny-llama", "--graph", "draft"],
            &["--graph is for a bundle"],
        ),
        (
            &["plain", "plain/model.onnx"],
            &["plain/model.onnx is an ONNX file"],
        ),
        (
            &[dit, dit, "--max-kl", "1"],
            &["--max-kl is for models that choose"],
        ),
        (
            &[dit, dit, "--text", "x.txt"],
            &["--text is for models that read texts"],
        ),
        (&["plain", "plain", "--ignore-key", "x"], &["--ignore-key"]),
        (
            &["fixtures/goldens/llama", "fixtures/goldens/llama"],
            &["has no tokenizer", "tokenizer.json"],
        ),
    ] {
        let outcome = compare(&shell, args);
        assert_eq!(outcome.code, Some(2), "{}", outcome.transcript());
        for reason in reasons {
            assert!(
                outcome.stderr.contains(reason),
                "{reason}\n{}",
                outcome.transcript()
            );
        }
    }
}

#[test]
fn other_tokens_of_the_same_text_are_refused_by_place() {
    let shell = Shell::new();
    shell.copy(&crate::common::fixture("tiny-llama"), "other");
    let path = shell.path("other/tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    tokenizer["model"]["merges"]
        .as_array_mut()
        .unwrap()
        .truncate(900);
    shell.write("other/tokenizer.json", tokenizer.to_string());
    let outcome = compare(&shell, &["fixtures/tiny-llama", "other"]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.transcript());
    assert!(
        outcome
            .stderr
            .contains("makes other tokens of the same text than other: token")
    );
}
