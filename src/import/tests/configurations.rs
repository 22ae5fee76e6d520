//! What configurations may say, and what they are refused for.

use dlc_errors::Fault;
use dlc_ir::{ModelInfo, Op, Rope, RopeScaling};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{ImportOptions, import_with_sources};
use super::{Folder, fixture, import_folder, refuses};
use crate::checkpoint::Checkpoint;

/// `patch` over the llama golden is refused.
fn llama_refuses(patch: &Value, fault: Fault, parts: &[&str]) {
    refuses(
        &patch.to_string(),
        &Folder::patched("goldens/llama", patch),
        fault,
        &[&["config.json"], parts].concat(),
    );
}

fn graph_of(name: &str, patch: &Value) -> dlc_ir::Graph {
    let mut module = import_folder(&Folder::patched(name, patch))
        .unwrap_or_else(|error| panic!("{patch}: {error}"));
    module.graphs.remove(0)
}

fn rope_of(patch: &Value) -> Rope {
    let graph = graph_of("goldens/llama", patch);
    graph
        .nodes()
        .find_map(|(_, n)| {
            if let Op::Rope(rope) = &n.op {
                Some(rope.clone())
            } else {
                None
            }
        })
        .expect("has rope")
}

fn windows_of(name: &str, patch: &Value) -> Vec<Option<usize>> {
    let graph = graph_of(name, patch);
    graph
        .nodes()
        .filter_map(|(_, n)| {
            if let Op::Attention(a) = n.op {
                Some(a.window)
            } else {
                None
            }
        })
        .collect()
}

#[test]
fn absurd_sizes_are_bad_input_that_names_the_key() {
    let sizes = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    ];
    for key in sizes.into_iter().chain(["num_key_value_heads", "head_dim"]) {
        for value in [
            json!(0),
            json!(-4),
            json!(4.5),
            json!("4"),
            json!(true),
            json!([4]),
            json!(u64::MAX),
            json!(1_u64 << 40),
        ] {
            llama_refuses(
                &json!({ key: value }),
                Fault::BadInput,
                &[&format!("`{key}` is {value}; it must be a whole number")],
            );
        }
    }
    for (key, value) in [
        ("num_hidden_layers", 1025),
        ("hidden_size", (1 << 20) + 1),
        ("vocab_size", (1 << 24) + 1),
    ] {
        llama_refuses(&json!({ key: value }), Fault::BadInput, &[key]);
    }
}

#[test]
fn contradictions_are_bad_input() {
    let cases = [
        (
            json!({"num_key_value_heads": 3}),
            "`num_key_value_heads` is 3, which doesn't divide the 4 attention heads",
        ),
        (
            json!({"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": null}),
            "`hidden_size` is 48, which 5 heads don't divide",
        ),
        (json!({"head_dim": 13}), "`head_dim` is 13"),
        (
            json!({"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": null}),
            "`head_dim` is 3",
        ),
        (json!({"rms_norm_eps": -1e-6}), "`rms_norm_eps`"),
        (json!({"rms_norm_eps": "1e-6"}), "`rms_norm_eps`"),
        (
            json!({"tie_word_embeddings": "yes"}),
            "`tie_word_embeddings` is \"yes\"",
        ),
        (json!({"hidden_act": 7}), "`hidden_act` is 7"),
        (
            json!({"rope_theta": 5e5}),
            "`rope_theta` has different values",
        ),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2}}),
            "`rope_scaling` and `rope_parameters` differ",
        ),
        (
            json!({"rope_parameters": null, "rope_scaling": 2}),
            "`rope_scaling` is 2; it must be an object",
        ),
        (
            json!({"rope_parameters": null, "rope_scaling": {"factor": 2}}),
            "`rope_scaling.rope_type` is missing",
        ),
        (
            json!({"rope_parameters": {"rope_type": "linear"}}),
            "`rope_parameters.factor` is missing",
        ),
        (
            json!({"rope_parameters": {"rope_type": "linear", "factor": 0}}),
            "`rope_parameters.factor` is 0",
        ),
        (
            json!({"rope_parameters": {"rope_type": "linear", "type": "default", "factor": 2}}),
            "`rope_parameters.type` is \"default\"",
        ),
        (
            json!({"rope_parameters": {"rope_type": "llama3", "factor": 8}}),
            "`rope_parameters.low_freq_factor` is missing",
        ),
        (
            json!({"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1,
            "original_max_position_embeddings": 32}}),
            "more than `high_freq_factor`",
        ),
        (
            json!({"rope_parameters": {"rope_theta": 0}}),
            "`rope_parameters.rope_theta` is 0",
        ),
        (json!({"layer_types": ["full_attention"]}), "`layer_types`"),
        (json!({"eos_token_id": "</s>"}), "`eos_token_id`"),
        (json!({"bos_token_id": 4_294_967_296_u64}), "`bos_token_id`"),
    ];
    for (patch, part) in cases {
        llama_refuses(&patch, Fault::BadInput, &[part]);
    }
}

#[test]
fn what_dlc_cannot_do_is_refused_by_name() {
    let mut cases = vec![
        (json!({"hidden_act": "xielu"}), "`hidden_act` is \"xielu\""),
        (json!({"pretraining_tp": 2}), "`pretraining_tp` is 2"),
        (
            json!({"partial_rotary_factor": 0.5}),
            "`partial_rotary_factor` is 0.5",
        ),
        (
            json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
            "`rope_parameters.partial_rotary_factor`",
        ),
        (
            json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
            "`rope_parameters.full_attention`",
        ),
        (
            json!({"quantization_config": {"quant_method": "gptq"}}),
            "`quantization_config` is {\"quant_method\":\"gptq\"}",
        ),
        (
            json!({"attn_logit_softcapping": 50.0}),
            "`attn_logit_softcapping`",
        ),
        (
            json!({"final_logit_softcapping": 30.0}),
            "`final_logit_softcapping`",
        ),
        (
            json!({"attention_multiplier": 0.5}),
            "`attention_multiplier`",
        ),
        (json!({"pruned_heads": {"0": [1]}}), "`pruned_heads`"),
        (json!({"is_causal": false}), "`is_causal` is false"),
        (
            json!({"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}),
            "`auto_map`",
        ),
        (json!({"rope_interleaved": true}), "`rope_interleaved`"),
        (
            json!({"layer_types": ["full_attention", "sliding_attention", "full_attention", "full_attention"]}),
            "`layer_types`",
        ),
        (
            json!({"layer_types": ["full_attention", "full_attention", "linear_attention", "full_attention"]}),
            "\"linear_attention\"",
        ),
        (
            json!({"moe_frobnicate": 3}),
            "`moe_frobnicate` is 3, which by its name (`moe`) may change the model; dlc doesn't know how. If this changes",
        ),
        (
            json!({"per_layer_config": {"0": {"head_dim": 4}}}),
            "--ignore-key per_layer_config",
        ),
    ];
    let types = ["su", "ntk", "mrope", "proportional"].map(|name| {
        let part =
            format!("rope_type` is \"{name}\"; dlc knows default, linear, dynamic, llama3, yarn and longrope");
        [
            json!({"rope_parameters": {"rope_type": name, "factor": 2, "beta_fast": 32}}),
            json!({"rope_parameters": null, "rope_scaling": {"type": name}}),
        ]
        .map(|patch| (patch, part.clone()))
    });
    cases.push((json!({"sliding_window": 4096}), "`sliding_window` is 4096"));
    for (patch, part) in &cases {
        llama_refuses(patch, Fault::Unsupported, &[part]);
    }
    for (patch, part) in types.iter().flatten() {
        llama_refuses(patch, Fault::Unsupported, &[part]);
    }
}

#[test]
fn all_problems_of_a_configuration_are_named_at_once() {
    let many: Vec<String> = (0..30).map(|n| format!("quant_{n}")).collect();
    let mut patch = json!({"hidden_act": "xielu", "pretraining_tp": 4, "vocab_size": 0});
    for key in &many {
        patch[key] = json!(2);
    }
    let parts = [
        "33 problems",
        "`hidden_act`",
        "`pretraining_tp`",
        "`vocab_size`",
        "`quant_0`",
        "and 13 more",
    ];
    llama_refuses(&patch, Fault::BadInput, &parts);
}

#[test]
fn harmless_and_neutral_keys_are_let_through() {
    let patch = json!({
        "_name_or_path": "x", "torch_dtype": "bfloat16", "initializer_range": 0.5, "use_cache": false, "max_window_layers": 21, "is_llama_config": true,
        "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}, "rope_interleaved": false, "partial_rotary_factor": 1.0,
        "pruned_heads": {}, "use_sliding_window": false, "use_mrope": false, "num_experts": 0, "logit_scale_factor": 1.0, "adapter": "none", "frobnicate": false, "hidden_act": "swish", "auto_map": {},
        "layer_types": ["full_attention", "full_attention", "full_attention", "full_attention"], "architectures": [],
    });
    let plain = graph_of("goldens/llama", &json!({}));
    assert_eq!(graph_of("goldens/llama", &patch), plain);
}

fn warnings_of(name: &str, patch: &Value, ignored: &[&str]) -> Vec<String> {
    let folder = Folder::patched(name, patch);
    let options = ImportOptions {
        ignore_keys: ignored.iter().map(|key| (*key).to_owned()).collect(),
        ..ImportOptions::default()
    };
    let imported = import_with_sources(&Checkpoint::open(folder.path()).expect("opens"), &options);
    imported
        .unwrap_or_else(|error| panic!("{patch}: {error}"))
        .warnings
}

#[test]
fn keys_of_no_known_meaning_are_taken_with_one_warning() {
    assert_eq!(warnings_of("goldens/llama", &json!({}), &[]), [""; 0]);
    let warnings = warnings_of(
        "goldens/llama",
        &json!({"frobnicate": 3, "interpolate_factor": 1, "zzz\u{1b}": "x"}),
        &[],
    );
    let [warning] = warnings.as_slice() else {
        panic!("{warnings:?}")
    };
    assert!(
        warning.ends_with("config.json: keys that dlc doesn't know, and leaves out: `frobnicate`, `interpolate_factor`, `zzz\\u{1b}`"),
        "{warning}"
    );
}

#[test]
fn refused_keys_are_ignored_if_the_user_says_so() {
    let patch = json!({"attention_multiplier": 0.5, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}});
    let keys = [
        "attention_multiplier",
        "rope_parameters.partial_rotary_factor",
    ];
    assert_eq!(warnings_of("goldens/llama", &patch, &keys), [""; 0]);
    let idle = warnings_of("goldens/llama", &json!({}), &["hidden_size"]);
    assert!(
        idle.len() == 1
            && idle[0].ends_with("--ignore-key has no effect for hidden_size, which isn't refused"),
        "{idle:?}"
    );
    llama_refuses(
        &patch,
        Fault::Unsupported,
        &["2 problems", "--ignore-key attention_multiplier"],
    );
}

#[test]
fn code_of_the_familys_own_name_is_taken_for_transformers_class() {
    let own = json!({"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "x/y--modeling_phi3.Phi3ForCausalLM"}});
    let warnings = warnings_of("goldens/phi3", &own, &[]);
    assert!(
        warnings.len() == 1
            && warnings[0].contains("transformers' built-in Phi3Config, Phi3ForCausalLM"),
        "{warnings:?}"
    );
    let foreign = json!({"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling.Phi3SmallForCausalLM"}});
    let folder = Folder::patched("goldens/phi3", &foreign);
    refuses(
        "foreign code",
        &folder,
        Fault::Unsupported,
        &[
            "`auto_map`",
            "(Phi3SmallForCausalLM)",
            "--ignore-key auto_map",
        ],
    );
}

#[test]
fn rope_reads_alike_in_both_spellings() {
    let none = |theta: f64| (theta, RopeScaling::None);
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low: 1.0,
        high: 4.0,
        original: 32,
    };
    let parameters = json!({"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4, "original_max_position_embeddings": 32});
    let dynamic = RopeScaling::Dynamic {
        factor: 2.0,
        original: 64,
    };
    let cases = [
        (
            json!({"rope_parameters": null, "rope_scaling": {"type": "dynamic", "factor": 2}}),
            (1e4, dynamic.clone()),
        ),
        (
            json!({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 2e4}}),
            (2e4, dynamic),
        ),
        (json!({"rope_parameters": null}), none(10_000.0)),
        (json!({"rope_parameters": {}}), none(10_000.0)),
        (json!({"rope_parameters": {"rope_theta": 5e5}}), none(5e5)),
        (
            json!({"rope_parameters": null, "rope_theta": 100_000}),
            none(1e5),
        ),
        (
            json!({"rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}, "rope_theta": 100_000}),
            none(1e5),
        ),
        (
            json!({"rope_parameters": null, "rope_scaling": {"type": "default", "factor": 3}}),
            none(10_000.0),
        ),
        (
            json!({"rope_parameters": null, "rope_theta": 2e4, "rope_scaling": {"type": "linear", "factor": 4}}),
            (2e4, RopeScaling::Linear { factor: 4.0 }),
        ),
        (
            json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 2e4}}),
            (2e4, RopeScaling::Linear { factor: 4.0 }),
        ),
        (
            json!({"rope_parameters": null, "rope_theta": 5e5, "rope_scaling": parameters}),
            (5e5, llama3),
        ),
    ];
    for (patch, wanted) in cases {
        let rope = rope_of(&patch);
        assert_eq!((rope.theta, rope.scaling), wanted, "{patch}");
    }
}

#[test]
fn windows_follow_the_family() {
    let (full, sliding) = ("full_attention", "sliding_attention");
    let mixed = json!([full, sliding, full, sliding]);
    let cases = [
        ("mistral", json!({}), [Some(6); 4]),
        (
            "mistral",
            json!({"layer_types": [sliding, sliding, sliding, sliding]}),
            [Some(6); 4],
        ),
        ("qwen2", json!({}), [None; 4]),
        (
            "qwen2",
            json!({"layer_types": null, "sliding_window": 6}),
            [None; 4],
        ),
        (
            "qwen2",
            json!({"use_sliding_window": true, "sliding_window": 6, "layer_types": mixed}),
            [None, Some(6), None, Some(6)],
        ),
        (
            "qwen3",
            json!({"use_sliding_window": true, "sliding_window": 6, "layer_types": null, "max_window_layers": 3}),
            [None, None, None, Some(6)],
        ),
        (
            "qwen3",
            json!({"use_sliding_window": true, "sliding_window": 6, "layer_types": null, "max_window_layers": 0}),
            [Some(6); 4],
        ),
        (
            "qwen3",
            json!({"use_sliding_window": true, "sliding_window": 6, "layer_types": null}),
            [None; 4],
        ),
    ];
    for (name, patch, wanted) in cases {
        assert_eq!(
            windows_of(&format!("goldens/{name}"), &patch),
            wanted,
            "{name} {patch}"
        );
    }
    let contradiction = Folder::patched(
        "goldens/qwen2",
        &json!({"layer_types": [full, full, full, sliding]}),
    );
    refuses(
        "sliding layers without a window",
        &contradiction,
        Fault::BadInput,
        &["`layer_types` has sliding_attention"],
    );
    let mixed = Folder::patched("goldens/mistral", &json!({"layer_types": mixed}));
    refuses(
        "mistral with mixed layers",
        &mixed,
        Fault::Unsupported,
        &["`layer_types`"],
    );
}

/// The mistral golden with `sliding_window` written as it is: a patch can't hold null.
#[test]
fn a_null_window_is_none_and_an_absent_one_the_default_of_transformers() {
    let config =
        std::fs::read_to_string(fixture("goldens/mistral").join("config.json")).expect("fixture");
    for (text, wanted) in [("\"sliding_window\": null,", None), ("", Some(4096))] {
        let config = config.replace("\"sliding_window\": 6,", text);
        let folder =
            Folder::patched("goldens/mistral", &json!({})).with("config.json", config.as_bytes());
        let graph = import_folder(&folder).expect("imports").graphs.remove(0);
        assert!(
            graph.nodes().all(|(_, n)| if let Op::Attention(a) = n.op {
                a.window == wanted
            } else {
                true
            }),
            "{text}"
        );
    }
}

#[test]
fn special_tokens_come_from_both_files() {
    let info = |config: &Value, generation: &str| -> ModelInfo {
        let folder = Folder::patched("goldens/llama", config)
            .with("generation_config.json", generation.as_bytes());
        import_folder(&folder).expect("imports").model
    };
    let model = info(
        &json!({"eos_token_id": [2, 7], "pad_token_id": -1}),
        r#"{"pad_token_id": 5, "bos_token_id": 9}"#,
    );
    assert_eq!(
        (model.bos_token_id, model.eos_token_ids, model.pad_token_id),
        (Some(1), vec![2, 7], Some(5))
    );
    let model = info(
        &json!({"eos_token_id": 2}),
        r#"{"eos_token_id": [3, 4], "temperature": 0.6}"#,
    );
    assert_eq!(model.eos_token_ids, [3, 4]);
    let folder = Folder::patched("goldens/llama", &json!({}))
        .with("generation_config.json", br#"{"eos_token_id": {}}"#);
    refuses(
        "an eos that is none",
        &folder,
        Fault::BadInput,
        &["generation_config.json: eos_token_id"],
    );
}

pub(super) fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0u64..70).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![
            "silu",
            "linear",
            "llama3",
            "default",
            "sliding_attention",
            "\u{1b}"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 12, 5, |inner| {
        let keys = prop::sample::select(vec![
            "rope_type",
            "type",
            "factor",
            "rope_theta",
            "low_freq_factor",
            "high_freq_factor",
            "x",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((keys, inner), 0..5)
                .prop_map(|pairs| pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn arbitrary_values_never_panic(name in prop::sample::select(super::decoders().collect::<Vec<_>>()), edits in prop::collection::vec((any::<prop::sample::Index>(), any_json()), 1..4)) {
        let name = format!("goldens/{name}");
        let text = std::fs::read(fixture(&name).join("config.json")).expect("fixture");
        let mut config: serde_json::Map<String, Value> = serde_json::from_slice(&text).expect("JSON");
        config.insert("rope_scaling".into(), Value::Null);
        let keys: Vec<String> = config.keys().cloned().collect();
        for (at, value) in edits {
            config.insert(at.get(&keys).clone(), value);
        }
        let folder = Folder::patched(&name, &json!({})).with("config.json", Value::from(config).to_string().as_bytes());
        let _ = import_folder(&folder);
    }
}
