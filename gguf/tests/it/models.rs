//! Checkpoints laid out as llama.cpp lays them out become what they were.

use std::collections::BTreeMap;
use std::fs;

use dlc_gguf::{Gguf, Model};
use safetensors::SafeTensors;
use serde_json::{Map, Value, json};

use crate::builder::{Builder, Meta, fixture};

const GOLDENS: [&str; 5] = ["llama", "llama3", "qwen2", "qwen3", "gemma2"];
const GEMMA3: &str = "gemma3_text";

fn model(name: &str) -> Model {
    Model::of(&Gguf::open(&fixture(&format!("gguf/{name}.gguf"))).unwrap()).unwrap()
}

fn golden(name: &str, file: &str) -> Vec<u8> {
    fs::read(fixture(&format!("goldens/{name}/{file}"))).unwrap()
}

#[test]
fn tensors_are_those_of_the_checkpoint() {
    for name in GOLDENS.into_iter().chain([GEMMA3]) {
        let bytes = golden(name, "model.safetensors");
        let stored = SafeTensors::deserialize(&bytes).unwrap();
        let model = model(name);
        let ours: Vec<&str> = model.tensors.iter().map(|t| t.name.as_str()).collect();
        let mut theirs = stored.names();
        theirs.sort_unstable();
        assert_eq!(ours, theirs, "{name}");
        // The fixture has the scale of scores in the norm of queries: llama.cpp knows no other place.
        let scaled = |name: &str| name.ends_with("q_norm.weight");
        for tensor in model
            .tensors
            .iter()
            .filter(|t| name != GEMMA3 || !scaled(&t.name))
        {
            let expected = stored.tensor(&tensor.name).unwrap();
            assert_eq!(tensor.shape, expected.shape(), "{name}: {}", tensor.name);
            let mut read = vec![0.0; tensor.data.elements()];
            tensor.data.read_f32(0, &mut read);
            let numbers = expected.data().chunks_exact(4);
            // Gemma's norms lose a bit when 1 is added.
            let tolerance = if name.starts_with("gemma") { 1e-7 } else { 0.0 };
            for (x, b) in read.iter().zip(numbers) {
                let y = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                assert!((x - y).abs() <= tolerance, "{name}: {}", tensor.name);
            }
        }
    }
}

#[test]
fn gemma_3_says_where_windows_are_and_how_layers_with_one_rotate() {
    let ours = model(GEMMA3).config;
    let theirs: Map<String, Value> =
        serde_json::from_slice(&golden(GEMMA3, "config.json")).unwrap();
    for key in [
        "architectures",
        "model_type",
        "hidden_activation",
        "hidden_size",
        "head_dim",
        "final_logit_softcapping",
        "attn_logit_softcapping",
        "sliding_window",
        "vocab_size",
        "tie_word_embeddings",
    ] {
        assert_eq!(ours.get(key), theirs.get(key), "{key}");
    }
    for (key, value) in [
        ("query_pre_attn_scalar", json!(16)),
        ("sliding_window_pattern", json!(2)),
        ("rope_theta", json!(300.0)),
        ("rope_local_base_freq", json!(50.0)),
        (
            "rope_scaling",
            json!({"rope_type": "linear", "factor": 2.0}),
        ),
    ] {
        assert_eq!(ours.get(key), Some(&value), "{key}");
    }
}

#[test]
fn configurations_are_those_of_the_checkpoint() {
    for name in GOLDENS {
        let mut theirs: Map<String, Value> =
            serde_json::from_slice(&golden(name, "config.json")).unwrap();
        // What says nothing of the function, and what is spelled otherwise.
        for key in [
            "dtype",
            "transformers_version",
            "max_window_layers",
            "sliding_window",
            "layer_types",
            "use_bidirectional_attention",
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
        ] {
            theirs.remove(key);
        }
        let rope = theirs.remove("rope_parameters").unwrap();
        let ours = model(name).config;
        for (key, value) in &theirs {
            assert_eq!(ours.get(key), Some(value), "{name}: {key}");
        }
        assert_eq!(ours["rope_theta"], rope["rope_theta"], "{name}");
        if name == "llama3" {
            // Every head is so narrow that another length gives the same rotation.
            assert_eq!(ours["rope_scaling"]["rope_type"], "llama3");
            assert_eq!(ours["rope_scaling"]["factor"], json!(8.0));
        } else {
            assert_eq!(ours["rope_scaling"], Value::Null, "{name}");
        }
    }
}

/// A file without tensors of an architecture that dlc knows.
fn llama() -> Builder {
    [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
    ]
    .into_iter()
    .fold(
        Builder::default()
            .with("general.architecture", &Meta::Text("llama"))
            .with("llama.attention.layer_norm_rms_epsilon", &Meta::F32(1e-5)),
        |file, key| file.with(&format!("llama.{key}"), &Meta::U32(1)),
    )
}

fn refusal(file: &Builder) -> String {
    Model::of(&file.open().unwrap()).unwrap_err().to_string()
}

#[test]
fn everything_that_is_refused_is_named_at_once() {
    let file = llama()
        .with("llama.expert_count", &Meta::U32(8))
        .with("llama.rope.scaling.type", &Meta::Text("yarn"))
        .with("tokenizer.ggml.model", &Meta::Text("bert"))
        .record("token_embd.weight", &[256, 2], 16, 0)
        .record("blk.0.ffn_gate_exps.weight", &[1, 1], 0, 0)
        .record("blk.0.attn_q.weight", &[256, 2], 39, 32);
    let file = Builder {
        data: vec![0; 64],
        ..file
    };
    let error = refusal(&file);
    for expected in [
        "llama.expert_count` is 8",
        "yarn",
        "\"bert\"",
        "IQ2_XXS, the type of `token_embd.weight`",
        "MXFP4, the type of `blk.0.attn_q.weight`",
        "no use of `blk.0.ffn_gate_exps.weight`",
        "lacks ",
        "`output_norm.weight`",
    ] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn other_architectures_are_named() {
    let error = refusal(&Builder::default().with("general.architecture", &Meta::Text("mamba")));
    assert!(
        error.contains("\"mamba\"") && error.contains("llama, qwen2"),
        "{error}"
    );
}

#[test]
fn a_part_of_a_model_is_refused() {
    let error = refusal(&llama().with("split.count", &Meta::U32(3)));
    assert!(error.contains("one of 3 files"), "{error}");
}

#[test]
fn keys_that_nobody_follows_are_noted() {
    let mut file = fs::read(fixture("gguf/qwen2.gguf")).unwrap();
    // A key of the same length that nobody knows.
    let known = b"qwen2.vocab_size";
    let at = file.windows(known.len()).position(|w| w == known).unwrap();
    file[at..at + known.len()].copy_from_slice(b"qwen2.vocab_siz2");
    let model = Model::of(&crate::builder::open(file).unwrap()).unwrap();
    let notes: BTreeMap<usize, &String> = model.notes.iter().enumerate().collect();
    assert!(
        model.notes.iter().any(|n| n.contains("`qwen2.vocab_siz2`")),
        "{notes:?}"
    );
}
