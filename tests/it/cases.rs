//! Inputs as people have them, each on its own in `fixtures/cases/NAME`: the command, and what the
//! reference or common sense says of it.
//!
//! A case stands for its kind. Numbers come from transformers, peft, diffusers and
//! sentence-transformers, see `fixtures/README.md`.

use std::fs;
use std::path::Path;

use dlc_eval::Array;
use dlc_runtime::{BackendKind, BackendSearch, Bundle, HostTensor, Session, SessionOptions, start};
use serde_json::Value;

use crate::command::{Outcome, Shell};
use crate::common::fixture;
use crate::common::golden::{TOLERANCE, recorded};

/// A shell in which the case's files lie in `model`.
fn shell(case: &str) -> Shell {
    let shell = Shell::new();
    copy_tree(&fixture(&format!("cases/{case}")), &shell.path("model"));
    shell
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// The numbers of a recorded JSON value.
fn numbers(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap_or_else(|| panic!("{value} is no list"))
        .iter()
        .map(|x| x.as_f64().unwrap())
        .collect()
}

fn assert_near(found: &[f64], expected: &[f64], outcome: &str) {
    let far = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max);
    assert!(
        found.len() == expected.len() && far <= f64::from(TOLERANCE),
        "off by {far:e}, {} and {} numbers\n{outcome}",
        found.len(),
        expected.len()
    );
}

/// `compile` succeeds, and the target says on tract what `golden.safetensors` recorded.
fn compiles(case: &str, model: &str, flags: &[&str]) -> Outcome {
    let shell = shell(case);
    let outcome = shell.ok(&[&["compile", model, "-o", "out"], flags].concat());
    let mut golden = recorded(&fixture(&format!("cases/{case}/golden.safetensors")));
    let (output, expected) = ["logits", "out_sample"]
        .iter()
        .find_map(|name| Some((*name, golden.remove(*name)?)))
        .unwrap();
    let bundle = Bundle::open(&shell.path("out")).unwrap();
    let backend = start(&BackendSearch {
        force: Some(BackendKind::Tract),
        ..BackendSearch::default()
    })
    .unwrap();
    let mut session = Session::load(
        &backend,
        &bundle,
        "target",
        None,
        &SessionOptions::default(),
    )
    .unwrap();
    let ports = &bundle.graph("target").unwrap().inputs;
    let feeds: Vec<(&str, HostTensor)> = ports
        .iter()
        .map(|port| (port.name.as_str(), feed(&golden, &port.name, &port.shape)))
        .collect();
    let outputs = session.run_host(&feeds).unwrap();
    let found = outputs
        .iter()
        .find(|(name, _)| name == output)
        .unwrap()
        .1
        .to_f32()
        .unwrap();
    let wide = |numbers: &[f32]| numbers.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    assert_near(
        &wide(&found),
        &wide(expected.as_f32().unwrap()),
        &outcome.transcript(),
    );
    outcome
}

/// What the golden recorded for an input; a mask of ones, positions from 0, one segment, and empty
/// caches where it recorded none.
fn feed(
    golden: &std::collections::BTreeMap<String, Array>,
    name: &str,
    shape: &[String],
) -> HostTensor {
    if let Some(array) = golden.get(name) {
        return match array.as_i64() {
            Some(data) => HostTensor::i64(array.shape(), data.to_vec()),
            None => HostTensor::f32(array.shape(), array.as_f32().unwrap().to_vec()),
        };
    }
    let [batch, n] = golden["input_ids"].shape()[..] else {
        panic!("the tokens are no matrix")
    };
    match name {
        "attention_mask" => HostTensor::i64([batch, n], vec![1; batch * n]),
        "position_ids" => {
            HostTensor::i64([batch, n], (0..batch).flat_map(|_| 0..n as i64).collect())
        }
        "token_type_ids" => HostTensor::i64([batch, n], vec![0; batch * n]),
        _ => HostTensor::f32(
            [
                batch,
                shape[1].parse().unwrap(),
                0,
                shape[3].parse().unwrap(),
            ],
            vec![],
        ),
    }
}

/// `compile` and `run` succeed, and the first result of `run` has under `key` what `golden.json`
/// recorded.
fn runs(case: &str, key: &str, flags: &[&str]) {
    let shell = shell(case);
    shell.ok(&["compile", "model", "-o", "out"]);
    let outcome = shell.ok(&[&["run", "out", "--backend", "tract", "--json"], flags].concat());
    let golden: Value =
        serde_json::from_slice(&fs::read(fixture(&format!("cases/{case}/golden.json"))).unwrap())
            .unwrap();
    assert_near(
        &numbers(&outcome.json()[0][key]),
        &numbers(&golden[key]),
        &outcome.transcript(),
    );
}

/// One test for each case, named after its folder.
macro_rules! cases {
    ($($name:ident => $check:ident($($argument:expr),*);)*) => {
        $(#[test] fn $name() { $check(&stringify!($name).replace('_', "-"), $($argument),*); })*
    };
}

const CHAT: &[&str] = &["--chat", "--prompt", "Hello", "--max-tokens", "1"];
const WRITE: &[&str] = &["--prompt", "Hello there", "--max-tokens", "16"];
const SHORT: &[&str] = &["--text", "w0 w1 w2 w3 w4"];
const LONG: &str = "w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15 w16 w17 w18 w19 w20 w21 w22 w23 w24 w25 w26 w27 w28 w29";

/// `compile` warns of numbers that f16 doesn't hold, and `verify` fails with the node, whatever the
/// backend computes in.
fn overflows(case: &str) {
    let shell = shell(case);
    for profile in ["portable", "onnx"] {
        let compiled = shell.ok(&[
            "compile",
            "model",
            "--dtype",
            "f16",
            "--profile",
            profile,
            "-o",
            "out",
            "--force",
        ]);
        assert!(
            compiled.stderr.contains("65504") && compiled.stderr.contains("layers."),
            "{}",
            compiled.transcript()
        );
        let verified = shell.dlc(&["verify", "out", "--backend", "tract"]);
        let row = verified
            .stdout
            .lines()
            .find(|line| line.contains("largest activation"))
            .unwrap_or_default();
        assert!(
            verified.code == Some(1)
                && row.contains("layers.")
                && row.trim_end().ends_with("FAILED"),
            "{}",
            verified.transcript()
        );
    }
    let sound = shell.ok(&["compile", "model", "--dtype", "f32", "-o", "sound"]);
    assert!(!sound.stderr.contains("65504"), "{}", sound.transcript());
}

cases! {
    f16_overflow_verified_ok => overflows();
    adapter_diffusers_and_kohya => compiles("model/base", &["--adapter", "model/diffusers"]);
    adapter_eva => compiles("model/base", &["--adapter", "model/adapter"]);
    adapter_resized_vocabulary => compiles("model/base", &["--adapter", "model/adapter"]);
    adapter_seqcls_on_masked_lm => compiles("model/base", &["--adapter", "model/adapter"]);
    adapter_trainable_tokens => compiles("model/base", &["--adapter", "model/adapter"]);
    bert_pooler_keys => compiles("model", &[]);
    chat_generation_tag => runs("prompt_tokens", CHAT);
    chat_other_special_tokens => runs("prompt_tokens", CHAT);
    chat_percent_format => runs("prompt_tokens", CHAT);
    chat_special_tokens_map => runs("prompt_tokens", CHAT);
    chat_tools_is_none => runs("prompt_tokens", CHAT);
    distilgpt2_keys => compiles("model", &[]);
    gemma2_cache_implementation => compiles("model", &[]);
    generation_min_new_tokens => runs("tokens", WRITE);
    generation_repetition_penalty => runs("tokens", WRITE);
    index_with_stale_key => compiles("model", &[]);
    llama_dynamic_ntk => compiles("model", &[]);
    phi3_auto_map => compiles("model", &[]);
    phi4_mini_keys => compiles("model", &[]);
    sentence_default_prompt => runs("embedding", SHORT);
    sentence_last_token => runs("embedding", SHORT);
    sentence_max_seq_length => runs("embedding", &["--text", LONG]);
    sentence_not_normalized => runs("embedding", SHORT);
    unet_no_mid_block => compiles("model", &[]);
    unet2d_head_dim_absent => compiles("model", &[]);
    value_head_beside => compiles("model", &[]);
}

#[test]
fn sentence_in_hub_cache() {
    let shell = shell("sentence-in-hub-cache");
    let link = std::process::Command::new("sh")
        .arg("link.sh")
        .current_dir(shell.path("model"))
        .status()
        .unwrap();
    assert!(link.success());
    shell.ok(&[
        "merge",
        "model/cache/snapshots/abc",
        "--adapter",
        "model/adapter",
        "-o",
        "merged",
    ]);
    shell.ok(&["compile", "model/cache/snapshots/abc", "-o", "out"]);
    for folder in ["merged", "out"] {
        assert!(
            shell.path(folder).join("1_Pooling/config.json").is_file(),
            "{folder}"
        );
    }
}

#[test]
fn adapter_in_kohyas_format() {
    compiles(
        "adapter-diffusers-and-kohya",
        "model/base",
        &["--adapter", "model/kohya/style.safetensors"],
    );
}
