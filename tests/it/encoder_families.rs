//! What holds of each family of encoders: sentence vectors, and what passes make of it.

use serde_json::json;

use crate::command::Shell;
use crate::encoders::{configured, evaluated, near, run};

/// Every family beside BERT, by its goldens.
const FAMILIES: [&str; 7] = [
    "roberta",
    "distilbert",
    "xlm-roberta",
    "mpnet",
    "electra",
    "modernbert",
    "deberta-v3",
];

/// The golden with a tokenizer, compiled with these flags.
fn compiled(golden: &str, flags: &[&str]) -> Shell {
    let shell = configured(golden, &json!({}));
    shell.ok(&[&["compile", "model", "-o", "bundle"], flags].concat());
    shell
}

#[test]
fn checkpoints_of_sentence_transformers_pool_as_they_say() {
    for family in FAMILIES {
        let golden = format!("{family}-encoder");
        let shell = configured(&golden, &json!({}));
        let step = |i: usize, path: &str, kind: &str| json!({"idx": i, "name": i.to_string(), "path": path, "type": format!("sentence_transformers.models.{kind}")});
        let modules = json!([step(0, "", "Transformer"), step(1, "1_Pooling", "Pooling")]);
        shell.write("model/modules.json", modules.to_string());
        let pooling = json!({"pooling_mode_mean_tokens": true, "word_embedding_dimension": 32});
        shell.write("model/1_Pooling/config.json", pooling.to_string());
        shell.ok(&["compile", "model", "-o", "bundle"]);
        let found = run(&shell, &["--text", "w7 w21", "--text", "w9", "--json"]).json();
        let rows = evaluated(&golden, &[7, 21]);
        let vector = found[0]["embedding"].as_array().unwrap();
        for (i, x) in vector.iter().enumerate() {
            let mean = rows.iter().map(|row| f64::from(row[i])).sum::<f64>() / 4.0;
            assert!(near(x, mean), "{family}: {x} is not {mean}");
        }
    }
}

#[test]
fn a_pruned_model_of_each_family_runs_and_verifies() {
    let prune = "fit-prune:drop=1,calibration=fixtures/calibration-tokens.jsonl";
    for family in FAMILIES.into_iter().filter(|f| *f != "deberta-v3") {
        let shell = compiled(&format!("{family}-classifier"), &["--pass", prune]);
        let answers = |flags: &[&str]| {
            let text = ["--text", "w7 w21 w50", "--json"];
            run(&shell, &[&text[..], flags].concat()).stdout
        };
        assert_ne!(answers(&[]), answers(&["--pruned"]), "{family}");
        let checks = shell.ok(&["verify", "bundle", "--backend", "tract"]).stdout;
        assert_eq!(checks.matches("  ok").count(), 4, "{family}: {checks}");
    }
}

#[test]
fn a_bundle_with_folded_constants_verifies_against_its_checkpoint() {
    let shell = compiled("deberta-v3-encoder", &[]);
    let source = &["--source", "model"];
    let verified = shell.ok(&[&["verify", "bundle", "--backend", "tract"], &source[..]].concat());
    assert!(verified.stdout.contains("ok"), "{}", verified.stdout);
    let manifest = std::fs::read_to_string(shell.path("bundle/dlc.yaml")).unwrap();
    assert!(manifest.contains("key_proj.weight.of."), "{manifest}");
}

#[test]
fn a_discriminator_says_how_likely_each_token_was_replaced() {
    let shell = compiled("electra-discriminator", &[]);
    let found = run(&shell, &["--text", "w7 w21", "--json"]).json();
    let rows = evaluated("electra-discriminator", &[7, 21]);
    let tokens = found[0]["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), 2);
    for (token, row) in tokens.iter().zip(&rows[1..3]) {
        assert_eq!(token["label"], "replaced");
        let likely = 1.0 / (1.0 + f64::from(-row[0]).exp());
        assert!(near(&token["probability"], likely), "{token}");
    }
    let prune = "fit-prune:drop=1,calibration=fixtures/calibration-tokens.jsonl";
    let pruned = shell.dlc(&["compile", "model", "--pass", prune, "-o", "small"]);
    assert_eq!(pruned.code, Some(3), "{}", pruned.transcript());
    assert!(
        pruned.stderr.contains("several classes"),
        "{}",
        pruned.stderr
    );
}
