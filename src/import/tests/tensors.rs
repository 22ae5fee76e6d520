//! Checkpoints whose tensors aren't those that the configuration asks for.

use std::collections::BTreeMap;

use dlc_errors::Fault;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

use super::super::{ImportOptions, import_with_sources};
use super::{Folder, import_folder, open, refuses};
use crate::checkpoint::{Checkpoint, StoredType};

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// The golden `name`, with `patch` over its configuration and its tensors edited.
fn edited(name: &str, patch: &Value, edit: impl FnOnce(&mut Tensors)) -> Folder {
    let name = format!("goldens/{name}");
    let checkpoint = open(&name);
    let record = |name: &str| {
        let record = checkpoint.tensor(name).expect("was listed");
        assert!(matches!(
            record.dtype,
            StoredType::Float(dlc_ir::DType::F32)
        ));
        (
            name.to_owned(),
            (
                Dtype::F32,
                record.shape.clone(),
                record.blob.as_ref().to_vec(),
            ),
        )
    };
    let mut tensors: Tensors = checkpoint.tensor_names().map(record).collect();
    edit(&mut tensors);
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (
            name,
            TensorView::new(*dtype, shape.clone(), bytes).expect("fits"),
        )
    });
    let bytes = serialize(views, None).expect("serialises");
    Folder::patched(&name, patch).with("model.safetensors", &bytes)
}

fn rename(tensors: &mut Tensors, to: impl Fn(&str) -> String) {
    *tensors = std::mem::take(tensors)
        .into_iter()
        .map(|(name, tensor)| (to(&name), tensor))
        .collect();
}

fn filled(shape: &[usize]) -> (Dtype, Vec<usize>, Vec<u8>) {
    (
        Dtype::F32,
        shape.to_vec(),
        vec![0; 4 * shape.iter().product::<usize>()],
    )
}

#[test]
fn every_tensor_at_fault_is_listed_at_once() {
    let folder = edited("llama", &json!({}), |t| {
        t.remove("model.layers.1.mlp.up_proj.weight");
        t.insert("model.norm.weight".into(), filled(&[47]));
        t.insert(
            "model.layers.0.input_layernorm.weight".into(),
            (Dtype::I64, vec![48], vec![0; 8 * 48]),
        );
        t.insert("model.extra\u{1b}".into(), filled(&[2]));
    });
    let parts = [
        "4 problems",
        "`model.layers.1.mlp.up_proj.weight` is missing",
        "`model.norm.weight` has shape [47], expected [48]",
        "`model.layers.0.input_layernorm.weight` is I64; dlc reads f32, f16 and bf16",
        "`model.extra\\u{1b}` is not part of the model",
    ];
    refuses("several faults", &folder, Fault::BadInput, &parts);
}

#[test]
fn long_lists_are_cut() {
    let folder = edited("llama", &json!({}), |t| {
        t.retain(|name, _| !name.contains(".layers."));
    });
    refuses(
        "no layers",
        &folder,
        Fault::BadInput,
        &[
            "36 problems",
            "and 16 more",
            "Download or save the checkpoint again",
        ],
    );
}

#[test]
fn faults_with_a_likely_reason_say_it() {
    let cases: Vec<(&str, Folder, &str)> = vec![
        (
            "no prefix",
            edited("llama", &json!({}), |t| {
                rename(t, |name| {
                    name.strip_prefix("model.").unwrap_or(name).to_owned()
                });
            }),
            "lack the prefix `model.`",
        ),
        (
            "another prefix",
            edited("llama", &json!({}), |t| {
                rename(t, |name| format!("language_model.{name}"));
            }),
            "begin with `language_model.`",
        ),
        (
            "no head",
            edited("llama", &json!({}), |t| _ = t.remove("lm_head.weight")),
            "set `tie_word_embeddings` to true",
        ),
        (
            "biases that the configuration doesn't know",
            edited("llama", &json!({}), |t| {
                _ = t.insert("model.layers.0.self_attn.q_proj.bias".into(), filled(&[48]));
            }),
            "of different models",
        ),
        (
            "experts in one tensor",
            edited("mixtral", &json!({}), |t| {
                t.retain(|name, _| !name.contains(".experts."));
                let name = "model.layers.0.mlp.experts.gate_up_proj";
                t.insert(name.into(), filled(&[4, 64, 32]));
            }),
            "The matrices of all experts are one tensor. Save the model as it is released",
        ),
        (
            "an adapter inside",
            edited("llama", &json!({}), |t| {
                _ = t.insert(
                    "model.layers.0.self_attn.q_proj.lora_A.weight".into(),
                    filled(&[4, 48]),
                );
            }),
            "has an adapter inside",
        ),
        (
            "fewer layers than the file",
            edited("llama", &json!({"num_hidden_layers": 3}), |_| ()),
            "9 problems",
        ),
        (
            "more layers than the file",
            edited("llama", &json!({"num_hidden_layers": 1024}), |_| ()),
            "9180 problems",
        ),
        (
            "biases that are missing",
            edited("llama", &json!({"attention_bias": true}), |_| ()),
            "`model.layers.0.self_attn.o_proj.bias` is missing",
        ),
        (
            "heads of another width",
            edited("llama", &json!({"head_dim": 16}), |_| ()),
            "q_proj.weight` has shape [48, 48], expected [64, 48]",
        ),
        (
            "another vocabulary",
            edited("llama", &json!({"vocab_size": 100}), |_| ()),
            "has shape [99, 48], expected [100, 48]",
        ),
    ];
    for (case, folder, part) in cases {
        refuses(case, &folder, Fault::BadInput, &[part]);
    }
}

#[test]
fn leftovers_of_old_versions_are_ignored_whatever_their_type() {
    let folder = edited("llama", &json!({}), |t| {
        t.insert(
            "model.layers.0.self_attn.rotary_emb.inv_freq".into(),
            filled(&[6]),
        );
        t.insert(
            "model.layers.0.attention.masked_bias".into(),
            (Dtype::BOOL, vec![1], vec![0]),
        );
    });
    let module = import_folder(&folder).expect("imports");
    assert!(
        module
            .weights
            .entries()
            .all(|(_, w)| !w.name.contains("inv_freq"))
    );
}

fn warnings(folder: &Folder) -> Vec<String> {
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    import_with_sources(&checkpoint, &ImportOptions::default())
        .expect("imports")
        .warnings
}

#[test]
fn known_parts_beside_a_model_are_left_out_with_a_warning() {
    let folder = edited("llama", &json!({}), |t| {
        for name in [
            "v_head.summary.weight",
            "score.weight",
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "model.layers.1.self_attn.rotary_emb.inv_freq",
        ] {
            t.insert(name.into(), filled(&[6]));
        }
    });
    let wanted = "tensors that are no part of the model are left out: *.rotary_emb.inv_freq (2), score.weight, v_head.summary.weight";
    assert_eq!(warnings(&folder), [wanted]);
    let folder = edited("bert", &json!({}), |t| {
        _ = t.insert("classifier.weight".into(), filled(&[2, 48]));
    });
    assert_eq!(
        warnings(&folder),
        ["tensors that are no part of the model are left out: classifier.weight"]
    );
    assert_eq!(warnings(&edited("llama", &json!({}), |_| ())), [""; 0]);
    let needed = edited("llama", &json!({}), |t| _ = t.remove("model.norm.weight"));
    let index = r#"{"weight_map":{"model.norm.weight":"model.safetensors","model.embed_tokens.weight":"model.safetensors"}}"#;
    let sharded = needed.with("model.safetensors.index.json", index.as_bytes());
    std::fs::rename(
        sharded.path().join("model.safetensors"),
        sharded.path().join("one.safetensors"),
    )
    .expect("renames");
    let sharded = sharded.with(
        "model.safetensors.index.json",
        index
            .replace("\"model.safetensors\"", "\"one.safetensors\"")
            .as_bytes(),
    );
    refuses(
        "an index of another revision",
        &sharded,
        Fault::BadInput,
        &["`model.norm.weight` is not in its shard one.safetensors"],
    );
}

#[test]
fn biases_are_read_where_the_configuration_has_them() {
    let folder = edited(
        "llama",
        &json!({"attention_bias": true, "mlp_bias": true}),
        |t| {
            for layer in 0..4 {
                for (name, width) in [("q", 48), ("k", 48), ("v", 48), ("o", 48)] {
                    t.insert(
                        format!("model.layers.{layer}.self_attn.{name}_proj.bias"),
                        filled(&[width]),
                    );
                }
                for (name, width) in [("gate", 80), ("up", 80), ("down", 48)] {
                    t.insert(
                        format!("model.layers.{layer}.mlp.{name}_proj.bias"),
                        filled(&[width]),
                    );
                }
            }
        },
    );
    let module = import_folder(&folder).expect("imports");
    assert_eq!(module.used_weights().len(), 3 + 4 * (9 + 7));
}

#[test]
fn a_head_beside_a_tied_embedding_must_be_its_copy() {
    let add = |change: u8| {
        edited("llama3", &json!({}), |t| {
            let mut head = t["model.embed_tokens.weight"].clone();
            head.2[5] ^= change;
            t.insert("lm_head.weight".into(), head);
        })
    };
    let module = import_folder(&add(0)).expect("a copy is ignored");
    assert!(module.weights.find("lm_head.weight").is_none());
    refuses(
        "another head",
        &add(1),
        Fault::BadInput,
        &[
            "`lm_head.weight` differs from `model.embed_tokens.weight`",
            "`tie_word_embeddings` to false",
        ],
    );
}
