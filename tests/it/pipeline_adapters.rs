//! Adapters of diffusion models, of the denoiser alone and of whole pipelines: every trainer's names
//! mean the same modules, what isn't LoRA or fits nothing is named.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::json;

use crate::command::{Outcome, Shell, contents, snapshot};
use crate::common::fixture;
use crate::common::pipelines::PipelineGolden;
use crate::other_adapters::{Tensors, read, write};

const SD15: &str = "fixtures/pipelines/sd15";
const OF_DIFFUSERS: &str = "pipeline-adapters/diffusers/pytorch_lora_weights.safetensors";
const OF_KOHYA: &str = "pipeline-adapters/kohya/style.safetensors";
const KOHYA: &str = "adapter-diffusers-and-kohya/kohya/style.safetensors";
const DIFFUSERS: &str = "adapter-diffusers-and-kohya/diffusers/pytorch_lora_weights.safetensors";

fn filled(shape: &[usize]) -> (Dtype, Vec<usize>, Vec<u8>) {
    (
        Dtype::F32,
        shape.to_vec(),
        [0, 0, 128, 63].repeat(shape.iter().product()),
    )
}

fn renamed(tensors: Tensors, to: impl Fn(&str) -> String) -> Tensors {
    tensors
        .into_iter()
        .map(|(name, tensor)| (to(&name), tensor))
        .collect()
}

/// A shell with the U-Net of the case, its adapters of both kinds compiled from these tensors.
fn unet() -> Shell {
    let shell = Shell::new();
    shell.copy(&fixture("cases/adapter-diffusers-and-kohya/base"), "base");
    shell
}

/// The weights of the U-Net with an adapter of these tensors.
fn weights(
    shell: &Shell,
    name: &str,
    tensors: &Tensors,
    metadata: Option<HashMap<String, String>>,
    weight: &str,
) -> (Outcome, Vec<u8>) {
    let file = format!("{name}.safetensors");
    write(&shell.path(&file), tensors, metadata);
    let outcome = shell.ok(&[
        "compile",
        "base",
        "--adapter",
        &format!("{file}{weight}"),
        "-o",
        name,
    ]);
    (
        outcome,
        fs::read(shell.path(&format!("{name}/weights.bin"))).unwrap(),
    )
}

#[test]
fn names_of_all_trainers_mean_the_same_modules() {
    let shell = unet();
    let diffusers = read(&fixture(&format!("cases/{DIFFUSERS}")));
    let (_, expected) = weights(&shell, "now", &diffusers, None, "");
    let old = |name: &str| {
        name.replace(".lora_A.", ".lora.down.")
            .replace(".lora_B.", ".lora.up.")
    };
    let first = |name: &str| {
        let name = name
            .strip_prefix("unet.")
            .unwrap()
            .replace(".attn1.", ".attn1.processor.")
            .replace(".attn2.", ".attn2.processor.");
        let name = ["q", "k", "v"].iter().fold(name, |name, part| {
            name.replace(&format!("to_{part}.lora"), &format!("to_{part}_lora"))
        });
        name.replace("to_out.0.lora", "to_out_lora")
            .replace("lora_A.", "lora.down.")
            .replace("lora_B.", "lora.up.")
    };
    for (kind, tensors) in [
        ("old", renamed(diffusers.clone(), old)),
        ("first", renamed(diffusers, first)),
    ] {
        assert!(
            weights(&shell, kind, &tensors, None, "").1 == expected,
            "{kind}"
        );
    }
    let kohya = read(&fixture(&format!("cases/{KOHYA}")));
    let (_, expected) = weights(&shell, "kohya", &kohya, None, "");
    let first_authors = |name: &str| {
        let name = name
            .replace("down_blocks_0_attentions_0", "input_blocks_1_1")
            .replace("mid_block_attentions_0", "middle_block_1");
        name.replace("up_blocks_1_attentions_0", "output_blocks_2_1")
            .replace("up_blocks_1_attentions_1", "output_blocks_3_1")
    };
    assert!(weights(&shell, "authors", &renamed(kohya, first_authors), None, "").1 == expected);
}

#[test]
fn what_diffusers_writes_into_the_file_decides_the_strength() {
    let shell = unet();
    let tensors = read(&fixture(&format!("cases/{DIFFUSERS}")));
    let config = json!({"unet.r": 2, "unet.lora_alpha": 4, "unet.peft_type": "LORA", "unet.target_modules": ["to_q", "to_k", "to_v", "to_out.0"]});
    let metadata = HashMap::from([("lora_adapter_metadata".to_owned(), config.to_string())]);
    let twice = weights(&shell, "twice", &tensors, None, "=2").1;
    assert!(weights(&shell, "said", &tensors, Some(metadata), "").1 == twice);
    let changed = HashMap::from([(
        "lora_adapter_metadata".to_owned(),
        json!({"unet.r": 2, "unet.lora_alpha": 4, "unet.use_frob": 3}).to_string(),
    )]);
    write(&shell.path("odd.safetensors"), &tensors, Some(changed));
    let outcome = shell.dlc(&[
        "compile",
        "base",
        "--adapter",
        "odd.safetensors",
        "-o",
        "odd",
    ]);
    assert!(
        outcome.code == Some(3)
            && outcome
                .stderr
                .contains("use_frob = 3 may change the result"),
        "{}",
        outcome.transcript()
    );
}

#[test]
fn convolutions_are_merged_and_other_kinds_are_named() {
    let shell = unet();
    let (module, plain) = (
        "lora_unet_conv_in",
        read(&fixture(&format!("cases/{KOHYA}"))),
    );
    let with = |more: &[(&str, &[usize])]| {
        let mut tensors = plain.clone();
        tensors.extend(
            more.iter()
                .map(|(part, shape)| (format!("{module}.{part}"), filled(shape))),
        );
        tensors
    };
    let before = weights(&shell, "plain", &plain, None, "").1;
    let convolved = with(&[
        ("lora_down.weight", &[2, 1, 3, 3]),
        ("lora_up.weight", &[8, 2, 1, 1]),
    ]);
    let after = weights(&shell, "convolved", &convolved, None, "").1;
    assert!(before.len() == after.len() && before != after);
    for (part, kind) in [
        ("lora_mid.weight", "Tucker"),
        ("hada_w1_a", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("diff", "whole differences"),
    ] {
        write(
            &shell.path("other.safetensors"),
            &with(&[(part, &[2, 2])]),
            None,
        );
        let outcome = shell.dlc(&[
            "compile",
            "base",
            "--adapter",
            "other.safetensors",
            "-o",
            "other",
        ]);
        assert!(
            outcome.code == Some(2) && outcome.stderr.contains(kind),
            "{}",
            outcome.transcript()
        );
    }
    write(
        &shell.path("other.safetensors"),
        &renamed(plain, |name| name.replace("down_blocks_0", "down_blocks_7")),
        None,
    );
    let outcome = shell.dlc(&[
        "compile",
        "base",
        "--adapter",
        "other.safetensors",
        "-o",
        "other",
    ]);
    assert!(
        outcome.stderr.contains("which the model doesn't have"),
        "{}",
        outcome.transcript()
    );
}

#[test]
fn what_stands_for_text_encoders_is_named_and_left_out() {
    let shell = unet();
    let mut tensors = read(&fixture(&format!("cases/{KOHYA}")));
    let expected = weights(&shell, "alone", &tensors, None, "").1;
    tensors.insert(
        "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha".into(),
        filled(&[]),
    );
    let (outcome, found) = weights(&shell, "both", &tensors, None, "");
    assert!(found == expected);
    assert!(
        outcome
            .stderr
            .contains("1 tensors for text_encoder aren't merged: the model is read without it"),
        "{}",
        outcome.transcript()
    );
    let text = Tensors::from([(
        "text_encoder.q_proj.lora_A.weight".to_owned(),
        filled(&[2, 2]),
    )]);
    write(&shell.path("text.safetensors"), &text, None);
    let outcome = shell.dlc(&[
        "compile",
        "base",
        "--adapter",
        "text.safetensors",
        "-o",
        "text",
    ]);
    assert!(
        outcome
            .stderr
            .contains("holds nothing for what the model has: 1 tensors for text_encoder"),
        "{}",
        outcome.transcript()
    );
}

/// What a file of tensors says of itself.
fn metadata(name: &str) -> HashMap<String, String> {
    let bytes = fs::read(fixture(name)).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    header.metadata().clone().unwrap()
}

/// The weights of the pipeline with an adapter of these tensors.
fn of_pipeline(
    shell: &Shell,
    name: &str,
    tensors: &Tensors,
    metadata: Option<HashMap<String, String>>,
) -> (Outcome, Vec<u8>) {
    let file = format!("{name}.safetensors");
    write(&shell.path(&file), tensors, metadata);
    let outcome = shell.ok(&["compile", SD15, "--adapter", &file, "-o", name]);
    let weights = fs::read(shell.path(&format!("{name}/weights.bin"))).unwrap();
    (outcome, weights)
}

/// Every golden of adapters, merged into a new pipeline.
#[test]
fn a_merged_pipeline_has_the_layout_of_its_base_and_compiles_to_the_same() {
    let shell = Shell::new();
    for golden in PipelineGolden::adapted() {
        let name = golden.name.as_str();
        let flags: Vec<&str> = golden
            .adapters
            .iter()
            .flat_map(|adapter| ["--adapter", adapter])
            .collect();
        let merged = format!("{name}-merged");
        shell.ok(&[&["merge", SD15, "-o", &merged], &flags[..]].concat());
        let names = |folder: &Path| -> Vec<String> {
            let files = contents(folder).into_iter().map(|(name, _)| name);
            let recorded = ["golden.safetensors", "image.safetensors"];
            files
                .filter(|name| !recorded.contains(&name.as_str()))
                .collect()
        };
        let base = fixture("pipelines/sd15");
        assert_eq!(names(&shell.path(&merged)), names(&base), "{name}");
        shell.ok(&[&["compile", SD15, "-o", name], &flags[..]].concat());
        let again = format!("{name}-again");
        shell.ok(&["compile", &merged, "-o", &again]);
        for file in ["weights.bin", "model.onnx", "text_encoder.onnx"] {
            let [a, b] =
                [name, &again].map(|folder| fs::read(shell.path(folder).join(file)).unwrap());
            assert!(a == b, "{name} {file}");
        }
    }
}

#[test]
fn parts_of_a_pipeline_are_reported_one_by_one() {
    let shell = Shell::new();
    let adapter = format!("fixtures/{OF_KOHYA}=0.7");
    let outcome = shell.ok(&["compile", SD15, "--adapter", &adapter, "-o", "out"]);
    snapshot!("pipeline_adapter", outcome.transcript());
}

#[test]
fn text_encoders_have_the_names_of_every_trainer() {
    let shell = Shell::new();
    let (tensors, said) = (read(&fixture(OF_DIFFUSERS)), metadata(OF_DIFFUSERS));
    let (_, expected) = of_pipeline(&shell, "now", &tensors, Some(said.clone()));
    let of_text = |to: fn(&str) -> String| {
        move |name: &str| match name.strip_prefix("text_encoder.") {
            Some(name) => format!("text_encoder.text_model.{}", to(name)),
            None => name.to_owned(),
        }
    };
    let bodied = |name: &str| name.to_owned();
    let linear = |name: &str| {
        name.replace("lora_A.", "lora_linear_layer.down.")
            .replace("lora_B.", "lora_linear_layer.up.")
    };
    let first = |name: &str| {
        let name = name
            .replace("out_proj.", "to_out_")
            .replace("lora_A.", "lora.down.")
            .replace("lora_B.", "lora.up.");
        ["q", "k", "v"].iter().fold(name, |name, part| {
            name.replace(&format!("{part}_proj."), &format!("to_{part}_"))
        })
    };
    for (kind, to) in [
        ("bodied", bodied as fn(&str) -> String),
        ("linear", linear),
        ("first", first),
    ] {
        let tensors = renamed(tensors.clone(), of_text(to));
        let (_, found) = of_pipeline(&shell, kind, &tensors, Some(said.clone()));
        assert!(found == expected, "{kind}");
    }
    let kohya = read(&fixture(OF_KOHYA));
    let (_, expected) = of_pipeline(&shell, "kohya", &kohya, None);
    let of_xl = |name: &str| name.replace("lora_te_text_model_", "lora_te1_");
    let (_, found) = of_pipeline(&shell, "xl", &renamed(kohya, of_xl), None);
    assert!(found == expected);
}

#[test]
fn modules_without_an_alpha_are_merged_at_full_strength_and_named() {
    let shell = Shell::new();
    let mut tensors = read(&fixture(OF_KOHYA));
    let alpha = "lora_unet_mid_block_resnets_0_conv1.alpha";
    // The rank, 2.
    let two = (Dtype::F32, vec![], vec![0, 0, 0, 64]);
    assert!(tensors.insert(alpha.to_owned(), two).is_some());
    let (outcome, expected) = of_pipeline(&shell, "told", &tensors, None);
    assert!(
        !outcome.stderr.contains("alpha"),
        "{}",
        outcome.transcript()
    );
    tensors.remove(alpha);
    let (outcome, found) = of_pipeline(&shell, "untold", &tensors, None);
    assert!(found == expected);
    let note =
        "1 modules have no alpha, mid_block.resnets.0.conv1 for one; merged at full strength";
    assert!(outcome.stderr.contains(note), "{}", outcome.transcript());
}

#[test]
fn dora_of_sd_scripts_is_that_of_peft() {
    let shell = Shell::new();
    let folder = "pipeline-adapters/peft/unet";
    let mut tensors = Tensors::new();
    for (name, (dtype, shape, data)) in
        read(&fixture(&format!("{folder}/adapter_model.safetensors")))
    {
        let name = name.strip_prefix("base_model.model.").unwrap();
        let (module, part) = name.split_once(".lora_").unwrap();
        let module = format!("lora_unet_{}", module.replace('.', "_"));
        let three = (Dtype::F32, vec![], vec![0, 0, 64, 64]);
        tensors.insert(format!("{module}.alpha"), three);
        let (part, shape) = match part {
            "A.weight" => ("lora_down.weight", shape),
            "B.weight" => ("lora_up.weight", shape),
            _ => ("dora_scale", vec![shape.iter().product(), 1]),
        };
        tensors.insert(format!("{module}.{part}"), (dtype, shape, data));
    }
    let (_, found) = of_pipeline(&shell, "kohya", &tensors, None);
    let adapter = format!("fixtures/{folder}");
    shell.ok(&["compile", SD15, "--adapter", &adapter, "-o", "peft"]);
    assert!(found == fs::read(shell.path("peft/weights.bin")).unwrap());
}

#[test]
fn the_denoiser_alone_takes_what_is_for_it() {
    let shell = Shell::new();
    let unet = format!("{SD15}/unet");
    let tensors = read(&fixture(OF_KOHYA));
    let mut own = tensors.clone();
    own.retain(|name, _| name.starts_with("lora_unet_"));
    write(&shell.path("own.safetensors"), &own, None);
    shell.ok(&[
        "compile",
        &unet,
        "--adapter",
        "own.safetensors",
        "-o",
        "own",
    ]);
    let both = format!("fixtures/{OF_KOHYA}");
    let outcome = shell.ok(&["compile", &unet, "--adapter", &both, "-o", "both"]);
    let [a, b] = ["own", "both"].map(|out| fs::read(shell.path(out).join("weights.bin")).unwrap());
    assert!(a == b);
    let left = tensors.len() - own.len();
    let note =
        format!("{left} tensors for text_encoder aren't merged: the model is read without it");
    assert!(outcome.stderr.contains(&note), "{}", outcome.transcript());
    let second = |name: &str| name.replace("lora_te_", "lora_te2_");
    let (outcome, _) = of_pipeline(&shell, "second", &renamed(tensors, second), None);
    let note = format!("{left} tensors for text_encoder_2 aren't merged");
    assert!(outcome.stderr.contains(&note), "{}", outcome.transcript());
}

#[test]
fn what_fits_no_part_of_a_pipeline_is_refused_by_name() {
    let shell = Shell::new();
    let kohya = read(&fixture(OF_KOHYA));
    let with = |name: &str, shape: &[usize]| {
        let mut tensors = kohya.clone();
        tensors.insert(name.to_owned(), filled(shape));
        tensors
    };
    let text = "lora_te_text_model_encoder_layers_0_mlp_fc1";
    let of_diffusers = read(&fixture(OF_DIFFUSERS));
    let mut both = of_diffusers.clone();
    both.insert(
        "unet.mid_block.attentions.0.proj_in.alpha".to_owned(),
        filled(&[]),
    );
    let other = |name: &str| name.replace("encoder_layers_0_", "encoder_layers_7_");
    let flux = |name: &str| name.replace("lora_unet_", "lora_unet_double_blocks_");
    let cases: [(Tensors, Option<HashMap<_, _>>); 9] = [
        (with(&format!("{text}.hada_w1_a"), &[2, 2]), None),
        (
            with(&format!("{text}.lora_mid.weight"), &[2, 2, 3, 3]),
            None,
        ),
        (with(&format!("{text}.dora_scale"), &[1, 32]), None),
        (with(&format!("{text}.lora_up.weight"), &[99, 2]), None),
        (with(&format!("{text}.alpha"), &[2]), None),
        (with("bundle_emb.hat.string_to_param.*", &[2, 32]), None),
        (renamed(kohya.clone(), other), None),
        (renamed(kohya.clone(), flux), None),
        (both, Some(metadata(OF_DIFFUSERS))),
    ];
    let mut transcripts = Vec::new();
    for (tensors, said) in cases {
        write(&shell.path("x.safetensors"), &tensors, said);
        let outcome = shell.dlc(&["compile", SD15, "--adapter", "x.safetensors", "-o", "x"]);
        assert_eq!(outcome.code, Some(2), "{}", outcome.transcript());
        transcripts.push(outcome.transcript());
    }
    let unet = format!("{SD15}/unet");
    let of_text = "fixtures/pipeline-adapters/peft/text_encoder";
    let outcome = shell.dlc(&["compile", &unet, "--adapter", of_text, "-o", "x"]);
    assert_ne!(outcome.code, Some(0));
    transcripts.push(outcome.transcript());
    assert!(!shell.path("x").exists());
    snapshot!("pipeline_adapter_misfits", transcripts.join("\n"));
}
