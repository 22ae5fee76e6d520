//! Adapters of other trainers, and those that bring more than changes: what says the same makes the
//! same weights, what can't be merged is named.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};
use serde_json::{Value, json};

use crate::command::Shell;
use crate::common::fixture;

pub type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

pub fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .map(|(name, view)| {
            (
                name.to_owned(),
                (view.dtype(), view.shape().to_vec(), view.data().to_vec()),
            )
        })
        .collect()
}

pub fn write(path: &Path, tensors: &Tensors, metadata: Option<HashMap<String, String>>) {
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (
            name.clone(),
            TensorView::new(*dtype, shape.clone(), data).unwrap(),
        )
    });
    serialize_to_file(views, metadata, path).unwrap();
}

/// A shell with the base and the adapter of a case, the adapter's configuration changed and its
/// tensors edited.
fn case(name: &str, patch: &Value, edit: impl FnOnce(&mut Tensors)) -> Shell {
    let shell = Shell::new();
    let from = fixture(&format!("cases/{name}"));
    shell.copy(&from.join("base"), "base");
    let mut config: Value =
        serde_json::from_slice(&fs::read(from.join("adapter/adapter_config.json")).unwrap())
            .unwrap();
    for (key, value) in patch.as_object().unwrap() {
        config[key] = value.clone();
    }
    shell.write("adapter/adapter_config.json", config.to_string());
    let mut tensors = read(&from.join("adapter/adapter_model.safetensors"));
    edit(&mut tensors);
    write(
        &shell.path("adapter/adapter_model.safetensors"),
        &tensors,
        None,
    );
    shell
}

fn compiled(shell: &Shell, weight: &str) -> Vec<u8> {
    shell.ok(&[
        "compile",
        "base",
        "--adapter",
        &format!("adapter{weight}"),
        "-o",
        "out",
    ]);
    fs::read(shell.path("out/weights.bin")).unwrap()
}

fn refused(shell: &Shell, command: &str, part: &str) {
    let outcome = shell.dlc(&[command, "base", "--adapter", "adapter", "-o", "out"]);
    assert!(
        outcome.code != Some(0) && outcome.stderr.contains(part),
        "{}",
        outcome.transcript()
    );
}

/// `out`, compiled with the adapter, has the weights and the configuration of what is compiled of
/// the merged checkpoint.
fn merges_as_it_compiles(shell: &Shell) {
    shell.ok(&["merge", "base", "--adapter", "adapter", "-o", "merged"]);
    shell.ok(&["compile", "merged", "-o", "of-merged"]);
    for file in ["weights.bin", "config.json", "model.onnx"] {
        let [a, b] = ["out", "of-merged"]
            .map(|folder| fs::read(shell.path(&format!("{folder}/{file}"))).unwrap());
        assert!(a == b, "{file}");
    }
}

const TOKENS: &str = "adapter-trainable-tokens";
const ROWS: &str = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta";

#[test]
fn trained_tokens_are_told_in_any_order_and_form() {
    let expected = compiled(&case(TOKENS, &json!({}), |_| ()), "");
    assert!(
        compiled(
            &case(
                TOKENS,
                &json!({"trainable_token_indices": {"embed_tokens": [5, 6, 7]}}),
                |_| ()
            ),
            ""
        ) == expected
    );
    let backwards = case(
        TOKENS,
        &json!({"trainable_token_indices": [7, 6, 5]}),
        |tensors| {
            let rows = &mut tensors.get_mut(ROWS).unwrap().2;
            *rows = rows
                .chunks(rows.len() / 3)
                .rev()
                .collect::<Vec<_>>()
                .concat();
        },
    );
    assert!(compiled(&backwards, "") == expected);
    assert!(compiled(&case(TOKENS, &json!({}), |_| ()), "=0.5") != expected);
    let merged = case(TOKENS, &json!({}), |_| ());
    merged.ok(&["merge", "base", "--adapter", "adapter", "-o", "merged"]);
    merged.ok(&["compile", "merged", "-o", "of-merged"]);
    assert!(fs::read(merged.path("of-merged/weights.bin")).unwrap() == expected);
}

#[test]
fn trained_tokens_that_do_not_fit_are_refused() {
    let cases: [(Value, &str); 4] = [
        (json!([5, 6]), "doesn't fit 2 tokens"),
        (
            json!([5, 6, 96]),
            "is of token 96, of a vocabulary of 96: the adapter was trained with 1 more; resize the base first",
        ),
        (json!([5, 6, 6]), "is of one token twice"),
        (json!(null), "trainable_token_indices doesn't name"),
    ];
    for (tokens, part) in cases {
        refused(
            &case(TOKENS, &json!({"trainable_token_indices": tokens}), |_| ()),
            "compile",
            part,
        );
    }
    refused(
        &case(TOKENS, &json!({}), |tensors| _ = tensors.remove(ROWS)),
        "compile",
        "holds no rows for them",
    );
}

#[test]
fn a_larger_vocabulary_is_taken_whole_or_refused_with_the_way() {
    const RESIZED: &str = "adapter-resized-vocabulary";
    let whole = case(RESIZED, &json!({}), |_| ());
    whole.write("adapter/tokenizer_config.json", "{}");
    let outcome = whole.ok(&["compile", "base", "--adapter", "adapter", "-o", "out"]);
    assert!(
        outcome.stderr.contains("read with 98 tokens instead of 96"),
        "{}",
        outcome.transcript()
    );
    let config: Value =
        serde_json::from_slice(&fs::read(whole.path("out/config.json")).unwrap()).unwrap();
    assert_eq!(
        (
            &config["vocab_size"],
            whole.path("out/tokenizer_config.json").exists()
        ),
        (&json!(98), true)
    );
    whole.ok(&["verify", "out"]);
    merges_as_it_compiles(&whole);
    let half = case(
        RESIZED,
        &json!({"modules_to_save": ["embed_tokens"]}),
        |tensors| tensors.retain(|name, _| !name.contains("lm_head")),
    );
    refused(
        &half,
        "compile",
        "has 2 rows more than the model's 96: the adapter was trained with 2 more; resize the base first",
    );
}

#[test]
fn a_tied_head_that_was_trained_beside_its_embedding_is_untied() {
    let shell = case(
        "adapter-eva",
        &json!({"modules_to_save": ["embed_tokens", "lm_head"]}),
        |tensors| {
            for (name, byte) in [("model.embed_tokens", 63), ("lm_head", 62)] {
                tensors.insert(
                    format!("base_model.model.{name}.weight"),
                    (Dtype::F32, vec![96, 32], [0, 0, 128, byte].repeat(96 * 32)),
                );
            }
        },
    );
    let config = fs::read_to_string(shell.path("base/config.json")).unwrap();
    shell.write(
        "base/config.json",
        config.replace(
            "\"tie_word_embeddings\": false",
            "\"tie_word_embeddings\": true",
        ),
    );
    let mut base = read(&shell.path("base/model.safetensors"));
    base.remove("lm_head.weight").unwrap();
    write(&shell.path("base/model.safetensors"), &base, None);
    let outcome = shell.ok(&["compile", "base", "--adapter", "adapter", "-o", "out"]);
    assert!(
        outcome.stderr.contains("read with a head of its own"),
        "{}",
        outcome.transcript()
    );
    let config: Value =
        serde_json::from_slice(&fs::read(shell.path("out/config.json")).unwrap()).unwrap();
    assert_eq!(config["tie_word_embeddings"], json!(false));
    merges_as_it_compiles(&shell);
}

#[test]
fn a_head_for_classes_comes_with_its_labels() {
    const CLASSIFIER: &str = "adapter-seqcls-on-masked-lm";
    let shell = case(CLASSIFIER, &json!({}), |_| ());
    let outcome = shell.ok(&["compile", "base", "--adapter", "adapter", "-o", "out"]);
    let notes = [
        "read as BertForSequenceClassification of 3 labels",
        "left out: cls.predictions.bias",
    ];
    assert!(
        notes.iter().all(|note| outcome.stderr.contains(note)),
        "{}",
        outcome.transcript()
    );
    let config: Value =
        serde_json::from_slice(&fs::read(shell.path("out/config.json")).unwrap()).unwrap();
    assert_eq!(
        (&config["architectures"], &config["num_labels"]),
        (&json!(["BertForSequenceClassification"]), &json!(3))
    );
    merges_as_it_compiles(&shell);
    let tokens = case(CLASSIFIER, &json!({"task_type": "TOKEN_CLS"}), |_| ());
    let outcome = tokens.ok(&["compile", "base", "--adapter", "adapter", "-o", "out"]);
    assert!(
        outcome
            .stderr
            .contains("read as BertForTokenClassification of 3 labels"),
        "{}",
        outcome.transcript()
    );
}

#[test]
fn ways_to_begin_that_leave_the_base_alone_change_nothing() {
    let expected = compiled(
        &case(
            "adapter-eva",
            &json!({"init_lora_weights": true, "eva_config": null}),
            |_| (),
        ),
        "",
    );
    let begin = |patch: Value| compiled(&case("adapter-eva", &patch, |_| ()), "");
    assert!(begin(json!({})) == expected);
    assert!(
        begin(
            json!({"init_lora_weights": "mica", "corda_config": {"cache_file": "x"}, "lora_ga_config": {"scale": "stable"}})
        ) == expected
    );
    for start in [
        "pissa",
        "pissa_niter_4",
        "olora",
        "corda",
        "lora_ga",
        "loftq",
    ] {
        refused(
            &case("adapter-eva", &json!({"init_lora_weights": start}), |_| ()),
            "compile",
            &format!("init_lora_weights = \"{start}\" changes the base"),
        );
    }
}
