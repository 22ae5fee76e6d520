//! Checkpoints that import, and those that are refused.

mod configurations;
mod diffusers;
mod goldens;
mod layers;
mod mixtures;
mod released;
mod resolved;
mod rotations;
mod tensors;

use std::collections::{BTreeMap, BTreeSet};

use dlc_errors::{Fault, Faulty};
use dlc_ir::{BlockKind, DType, Module, Op, Operand, Task, verify};

use super::{FAMILIES, ImportError, ImportOptions, import, non_finite_weights};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::fixture::{Folder, fixture, safetensors};

const ENCODERS: [&str; 12] = [
    "bert",
    "roberta",
    "roberta-classifier",
    "distilbert",
    "xlm-roberta",
    "mpnet",
    "electra",
    "electra-discriminator",
    "modernbert",
    "modernbert-classifier",
    "deberta",
    "deberta-v3",
];

const DIFFUSION: [&str; 9] = [
    "dit",
    "dit-geglu",
    "pixart",
    "pixart-sizes",
    "unet-ddpm",
    "unet-ddpm-classes",
    "unet-sd15",
    "unet-sdxl",
    "unet-stages",
];

/// One of each family of decoders, and one whose rotation is scaled.
fn decoders() -> impl Iterator<Item = &'static str> {
    FAMILIES
        .iter()
        .filter(|family| family.architectures[0].1 == Task::TextGeneration)
        .map(|family| family.model_type)
        .chain(["llama3"])
}

fn goldens() -> impl Iterator<Item = &'static str> {
    decoders().chain(ENCODERS).chain(DIFFUSION)
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&fixture(name)).expect("the fixture opens")
}

fn import_fixture(name: &str, dtype: Option<DType>) -> Module {
    import(
        &open(name),
        &ImportOptions {
            dtype,
            ..ImportOptions::default()
        },
    )
    .unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn import_folder(folder: &Folder) -> Result<Module, ImportError> {
    import(
        &Checkpoint::open(folder.path()).expect("the checkpoint opens"),
        &ImportOptions::default(),
    )
}

/// Import fails with a message that says all of `parts`.
fn refuses(case: &str, folder: &Folder, fault: Fault, parts: &[&str]) {
    let error = import_folder(folder)
        .err()
        .unwrap_or_else(|| panic!("{case}: was imported"));
    let message = error.to_string();
    assert_eq!(error.fault(), fault, "{case}: {message}");
    for part in parts {
        assert!(
            message.contains(part),
            "{case}: `{part}` is not in: {message}"
        );
    }
}

#[test]
fn every_fixture_imports_and_verifies() {
    for name in goldens()
        .map(|name| format!("goldens/{name}"))
        .chain(["tiny-llama".into(), "digits-dit".into()])
    {
        let name = name.as_str();
        for dtype in [None, Some(DType::F16), Some(DType::Bf16)] {
            let module = import_fixture(name, dtype);
            let [target] = module.graphs.as_slice() else {
                panic!("{name}: not one graph")
            };
            assert_eq!(verify::verify(target, &module.weights), [], "{name}");
            assert_eq!(
                module.used_weights().len(),
                module.weights.len(),
                "{name}: unused weights"
            );
            assert_eq!(non_finite_weights(&module).expect("scans"), [], "{name}");
        }
    }
}

/// A graph's text in which a block is written out once: later ones with the same ops name it, and
/// inputs and outputs that repeat with other numbers are left out.
fn summary(text: &str) -> String {
    let without_numbers =
        |text: &str| -> String { text.chars().filter(|c| !c.is_ascii_digit()).collect() };
    let ops = |block: &[&str]| -> String {
        let op = |line: &&str| -> Option<String> {
            Some(line.split_once(" = ")?.1.split(' ').next()?.to_owned())
        };
        block.iter().filter_map(op).collect::<Vec<_>>().join(" ")
    };
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let mut ports = BTreeSet::new();
    let (mut summary, lines) = (String::new(), text.lines().collect::<Vec<_>>());
    let mut at = 0;
    while let Some(line) = lines.get(at) {
        let end = if line.starts_with("  block ") {
            at + lines[at..]
                .iter()
                .position(|l| l.starts_with("  }"))
                .unwrap()
        } else {
            at
        };
        let name = line.split(' ').nth(3).unwrap_or_default().to_owned();
        let is_port = line.starts_with("  input ") || line.starts_with("  output ");
        if is_port && !ports.insert(without_numbers(line)) {
        } else if end > at
            && let Some(first) = seen.get(&ops(&lines[at..end]))
        {
            summary += &format!("  block {name}: the ops of {first}\n");
        } else {
            seen.insert(ops(&lines[at..end]), name);
            lines[at..=end]
                .iter()
                .for_each(|line| summary += &format!("{line}\n"));
        }
        at = end + 1;
    }
    summary
}

#[test]
fn text_form_of_each_golden_is_stable() {
    for name in goldens() {
        let module = import_fixture(&format!("goldens/{name}"), None);
        insta::assert_snapshot!(name, summary(&module.graphs[0].to_text(&module.weights)));
    }
}

#[test]
fn boundary_follows_optimum() {
    let module = import_fixture("tiny-llama", None);
    let graph = &module.graphs[0];
    let caches = |stem: &str| -> Vec<String> {
        (0..12)
            .flat_map(|n| ["key", "value"].map(|part| format!("{stem}.{n}.{part}")))
            .collect()
    };
    let inputs: Vec<String> = graph.inputs().iter().map(|i| i.name.clone()).collect();
    let outputs: Vec<String> = graph.outputs().iter().map(|o| o.name.clone()).collect();
    let first = ["input_ids", "attention_mask", "position_ids"]
        .map(String::from)
        .to_vec();
    assert_eq!(inputs, [first, caches("past_key_values")].concat());
    assert_eq!(
        outputs,
        [vec!["logits".to_owned()], caches("present")].concat()
    );
    let types = ["attention_mask", "past_key_values.11.value"].map(|name| {
        graph
            .value(graph.find_input(name).expect("is there").value)
            .ty
            .to_string()
    });
    assert_eq!(types, ["i64[batch, past+seq]", "f32[batch, 2, past, 32]"]);
    let blocks: Vec<(String, BlockKind, u32)> = graph
        .blocks()
        .map(|(_, b)| (b.name.clone(), b.kind, b.layer))
        .collect();
    let layers = (0..12).flat_map(|n| {
        [
            (format!("layers.{n}.attn"), BlockKind::Attention, n),
            (format!("layers.{n}.mlp"), BlockKind::Mlp, n),
        ]
    });
    assert_eq!(blocks, layers.collect::<Vec<_>>());
}

#[test]
fn model_info_is_what_the_configuration_says() {
    let model = import_fixture("goldens/qwen3", None).model;
    let sizes = [
        model.vocab_size,
        model.hidden_size,
        model.heads,
        model.kv_heads,
        model.head_dim,
        model.context_length,
    ];
    assert_eq!(
        (model.family.as_str(), model.dtype, sizes),
        ("qwen3", DType::F32, [99, 48, 4, 2, 16, 64])
    );
    assert_eq!(
        (model.bos_token_id, model.eos_token_ids, model.pad_token_id),
        (None, vec![], None)
    );
}

#[test]
fn half_precision_keeps_logits_and_weight_names() {
    let module = import_fixture("goldens/qwen2", Some(DType::F16));
    let graph = &module.graphs[0];
    let (_, last) = graph.nodes().next_back().expect("has nodes");
    assert_eq!(last.op, Op::Cast { dtype: DType::F32 });
    let logits = graph.find_output("logits").expect("is there").value;
    assert_eq!(graph.value(logits).ty.to_string(), "f32[batch, seq, 99]");
    let bias = module
        .weights
        .find("model.layers.0.self_attn.q_proj.bias")
        .expect("keeps its name");
    assert_eq!(module.weights[bias].dtype, DType::F16);
}

#[test]
fn integers_are_no_element_type_for_weights() {
    let error = import(
        &open("goldens/llama"),
        &ImportOptions {
            dtype: Some(DType::I64),
            ..ImportOptions::default()
        },
    )
    .expect_err("is refused");
    assert_eq!(
        (error.fault(), error.to_string().contains("i64")),
        (Fault::BadInput, true)
    );
}

#[test]
fn a_tied_head_is_the_embedding_itself() {
    let module = import_fixture("goldens/llama3", None);
    let graph = &module.graphs[0];
    let weight_of = |op: &Op| {
        graph
            .nodes()
            .filter(|(_, n)| n.op == *op)
            .flat_map(|(_, n)| &n.inputs)
            .rfind(|o| matches!(o, Operand::Weight(_)))
    };
    let embedding = graph.nodes().next().and_then(|(_, n)| n.inputs.first());
    assert_eq!(weight_of(&Op::Linear), embedding);
    assert!(module.weights.find("lm_head.weight").is_none());
}

#[test]
fn non_finite_weights_are_named_with_the_first_index() {
    let mut bytes =
        std::fs::read(fixture("goldens/llama").join("model.safetensors")).expect("fixture");
    let checkpoint = open("goldens/llama");
    let at = |name: &str| {
        let blob = checkpoint.tensor(name).expect("is there").blob.clone();
        bytes
            .windows(blob.as_ref().len())
            .position(|w| w == blob.as_ref())
            .expect("is in the file")
    };
    let places = [
        ("model.norm.weight", 3, f32::NAN),
        ("model.layers.2.mlp.up_proj.weight", 2500, f32::NEG_INFINITY),
    ]
    .map(|(n, i, x)| (at(n) + 4 * i, x));
    for (place, x) in places {
        bytes[place..place + 4].copy_from_slice(&x.to_le_bytes());
    }
    let module = import_folder(
        &Folder::patched("goldens/llama", &serde_json::json!({})).with("model.safetensors", &bytes),
    )
    .expect("imports");
    let found = non_finite_weights(&module).expect("scans");
    assert_eq!(
        found,
        [
            ("model.layers.2.mlp.up_proj.weight".to_owned(), 2500),
            ("model.norm.weight".to_owned(), 3)
        ]
    );
}

#[test]
fn unknown_architectures_are_refused_with_the_known_and_the_nearest() {
    let cases = [
        (
            r#"{"model_type":"qwen2_moe"}"#,
            vec![
                "`qwen2_moe`",
                "nearest that it knows is `qwen3_moe`",
                "llama (Llama 1 to 3.2",
                "qwen3 (",
            ],
        ),
        (
            r#"{"model_type":"Mistral3ForCausalLM"}"#,
            vec!["nearest that it knows is `MistralForCausalLM`"],
        ),
        (
            r#"{"model_type":"mamba"}"#,
            vec!["can't import the architecture `mamba`. It imports"],
        ),
        (
            r#"{"architectures":["Gemma7BForCausalLM"]}"#,
            vec!["nearest that it knows is `Gemma"],
        ),
        (
            r#"{"model_type":"llama","architectures":["LlamaForTokenClassification"]}"#,
            vec!["LlamaForTokenClassification", "LlamaForCausalLM"],
        ),
        (r#"{"model_type":"\u001b[2J"}"#, vec!["`\\u{1b}[2J`"]),
        ("{}", vec!["names no `model_type`", "It imports"]),
        (
            r#"{"model_type":7,"architectures":[7]}"#,
            vec!["names no `model_type`"],
        ),
    ];
    for (config, parts) in cases {
        let weights = safetensors(
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            &[0; 4],
        );
        let folder = Folder::new()
            .with("config.json", config.as_bytes())
            .with("model.safetensors", &weights);
        refuses(
            config,
            &folder,
            Fault::Unsupported,
            &[&["config.json"], parts.as_slice()].concat(),
        );
    }
}

#[test]
fn families_are_distinct_and_described() {
    for (i, family) in FAMILIES.iter().enumerate() {
        assert!(!family.summary.is_empty() && !family.architectures.is_empty());
        assert!(
            FAMILIES[..i]
                .iter()
                .all(|other| other.model_type != family.model_type)
        );
    }
}
