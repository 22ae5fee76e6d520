//! dip-go on the prompts of whole pipelines: what it is conditioned on is what `dlc sample` makes of
//! the same prompts.

use std::path::Path;

use dlc::pipeline::DiffusionSamplers;
use dlc_bundle::Profile;
use dlc_eval::{Array, ArrayData};
use dlc_ir::{DType, Module};
use dlc_methods::diffusion::DenoiserInput;
use dlc_passes::{PassContext, Prompt, Samplers};
use dlc_runtime::{
    Backend, BackendKind, BackendSearch, Bundle, Conditions, FloatTensor, Negative, PromptEncoder,
    SessionOptions, start,
};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};
use serde_json::Value;

use crate::command::{Outcome, Shell, snapshot};
use crate::common::fixture;
use crate::common::pipelines::PipelineGolden;
use crate::common::session::{close, export};

/// The largest difference, of numbers about 1 in size.
const TOLERANCE: f32 = 1e-4;

fn tract() -> Backend {
    let search = BackendSearch {
        force: Some(BackendKind::Tract),
        ..BackendSearch::default()
    };
    start(&search).unwrap()
}

fn encoder(bundle: &Bundle) -> PromptEncoder {
    PromptEncoder::open(&tract(), bundle, None, &SessionOptions::default()).unwrap()
}

/// What the denoiser is conditioned on beside a class, with the types.
fn conditioning(module: &Module) -> Vec<(&str, DType)> {
    let target = module.graph("target").unwrap();
    let inputs = target.inputs().iter();
    let inputs = inputs.filter(|i| DenoiserInput::of(&i.name) == DenoiserInput::Conditioning);
    inputs
        .map(|i| (i.name.as_str(), target.value(i.value).ty.dtype))
        .collect()
}

/// What dip-go is conditioned on by the texts.
fn learned_on(texts: &[String], module: &Module, guided: bool) -> Vec<Prompt> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build();
    let cx = PassContext {
        progress: &(),
        cache: None,
        module_key: String::new(),
        pool: &pool.unwrap(),
    };
    let samplers = DiffusionSamplers::new(None);
    samplers.check_texts(texts, module).unwrap();
    let inputs = conditioning(module);
    let prompts = samplers.encode(texts, module, &inputs, guided, &cx);
    prompts.unwrap()
}

fn numbers(array: &Array) -> Vec<f32> {
    match array.data() {
        ArrayData::F32(data) => data.clone(),
        ArrayData::I64(data) => data.iter().map(|x| *x as f32).collect(),
    }
}

#[test]
fn what_dip_go_is_conditioned_on_is_what_sampling_makes_of_prompts() {
    let mut checked = Vec::new();
    for golden in PipelineGolden::all() {
        if golden.recorded().prompts.is_empty() {
            continue;
        }
        let (module, _place) = golden.module(DType::F32);
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("bundle");
        export(&module, Profile::Portable, &out);
        let mut sampling = encoder(&Bundle::open(&out).unwrap());
        let inputs = conditioning(&module);
        let texts = ["Two Boots", "", "a sneaker  "].map(str::to_owned);
        for guided in [true, false] {
            let negative = if guided {
                Negative::Usual
            } else {
                Negative::None
            };
            let found = learned_on(&texts, &module, guided);
            assert_eq!(found.len(), texts.len());
            for (text, prompt) in texts.iter().zip(&found) {
                let alone = sampling.encode(std::slice::from_ref(text), negative, None);
                let expected = alone.unwrap().remove(0).conditions;
                assert_eq!(prompt.len(), inputs.len());
                for (name, _) in &inputs {
                    let what = format!("{} {name} of {text:?}, {guided}", golden.name);
                    let rows = expected.rows("target", name, 1, guided).unwrap();
                    assert_eq!(prompt[*name].shape(), rows.shape, "{what}");
                    let peak = rows.data.iter().fold(1f32, |peak, x| peak.max(x.abs()));
                    let found = numbers(&prompt[*name]);
                    close(&what, &found, &rows.data, TOLERANCE * peak).unwrap();
                }
            }
        }
        checked.push(golden.name);
    }
    for name in [
        "pixart-alpha",
        "pixart-sigma",
        "sd15",
        "sd2",
        "sdxl",
        "taesd",
    ] {
        assert!(checked.iter().any(|checked| checked == name), "{checked:?}");
    }
}

/// Prompts as a file of embeddings, as the bundle's text encoders make them.
fn embeddings(bundle: &Bundle, inputs: &[(&str, DType)], prompts: &[&str]) -> Vec<u8> {
    let encoded = encoder(bundle).encode(prompts, Negative::Usual, None);
    let encoded = encoded.unwrap().into_iter();
    let conditions: Vec<Conditions> = encoded.map(|prompt| prompt.conditions).collect();
    let conditions = Conditions::of_each(&conditions, 1).unwrap();
    let mut tensors = Vec::new();
    for (name, _) in inputs {
        let both = conditions.rows("target", name, prompts.len(), true);
        let FloatTensor { shape, data } = both.unwrap();
        let shape = [&[prompts.len()], &shape[1..]].concat();
        for (half, begin) in data.chunks(data.len() / 2).zip(["", "negative_"]) {
            let bytes: Vec<u8> = half.iter().flat_map(|x| x.to_le_bytes()).collect();
            tensors.push((format!("{begin}{name}"), shape.clone(), bytes));
        }
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (
            name,
            TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    serialize(views, None).unwrap()
}

fn manifest(shell: &Shell, bundle: &str) -> Value {
    let text = std::fs::read_to_string(shell.path(&format!("{bundle}/dlc.yaml")));
    serde_yaml::from_str(&text.unwrap()).unwrap()
}

/// Learns on prompts and on the same prompts as embeddings: the schedules are the same. Pictures are
/// made of the pruned bundle. Fixtures have so few blocks that the `macs` that can be kept lie far
/// apart.
fn check_learning(pipeline: &str, macs: f64) {
    let golden = PipelineGolden::all()
        .into_iter()
        .find(|golden| golden.name == pipeline)
        .unwrap();
    let (module, _place) = golden.module(DType::F32);
    let folder = golden.folder.to_str().unwrap();
    let shell = Shell::new();
    shell.ok(&["compile", folder, "-o", "whole"]);
    let whole = Bundle::open(&shell.path("whole")).unwrap();
    let prompts = ["a boot", "two sneakers"];
    shell.write("prompts.txt", prompts.join("\n"));
    let texts = embeddings(&whole, &conditioning(&module), &prompts);
    shell.write("texts.safetensors", texts);
    let learn = |options: &str, out: &str| {
        let pass = format!("dip-go:steps=3,rounds=1,iterations=1,batch=1,macs={macs},{options}");
        let compile = ["compile", folder, "--pass", &pass, "-o", out];
        shell.ok(&[&compile[..], &["--dry-run"]].concat());
        shell.ok(&compile);
        manifest(&shell, out)
    };
    for (guidance, name) in [(7.5, "guided"), (1.0, "plain")] {
        let on = |given: &str, end: &str| {
            learn(
                &format!("guidance={guidance},{given}"),
                &format!("{name}-{end}"),
            )
        };
        let on_prompts = on("prompts=prompts.txt", "prompts");
        let on_states = on("embeddings=texts.safetensors", "states");
        assert_eq!(on_prompts["sampling"], on_states["sampling"], "{name}");
        assert_eq!(on_prompts["sampling"]["guidance"], guidance);
        let bundle = format!("{name}-prompts");
        shell.ok(&["sample", &bundle, "--prompt", "a boot", "-o", "x.png"]);
    }
}

#[test]
fn dip_go_learns_on_prompts_of_stable_diffusion_xl() {
    check_learning("sdxl", 0.7);
}

#[test]
fn dip_go_learns_on_prompts_of_pixart_alpha() {
    check_learning("pixart-alpha", 0.686);
}

#[test]
fn dip_go_learns_on_prompts_of_pixart_sigma() {
    check_learning("pixart-sigma", 0.686);
}

/// A compilation that learns on prompts, with and without `--dry-run`.
fn both(shell: &Shell, pipeline: &str) -> [Outcome; 2] {
    let pass =
        "dip-go:steps=2,rounds=1,iterations=0,batch=1,guidance=1,macs=0.511,prompts=prompts.txt";
    let compile = ["compile", pipeline, "--pass", pass, "-o", "out"];
    let dry = shell.dlc(&[&compile[..], &["--dry-run"]].concat());
    [dry, shell.dlc(&compile)]
}

fn error(outcome: &Outcome) -> &str {
    let at = outcome.stderr.find("error: ");
    at.map_or("", |at| &outcome.stderr[at..])
}

/// Changes a file of the copy of a pipeline; none removes it.
fn change(path: &Path, edit: Option<[&str; 2]>) {
    let Some([from, to]) = edit else {
        return std::fs::remove_file(path).unwrap();
    };
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn pipelines_that_prompts_can_not_be_read_for_are_refused_before_learning() {
    let shell = Shell::new();
    shell.write("prompts.txt", "a boot\na sneaker\n");
    let mut transcripts = Vec::new();
    for (pipeline, name, file, edit) in [
        ("sdxl", "bare", "tokenizer_2/merges.txt", None),
        ("pixart-alpha", "lost", "tokenizer/spiece.model", None),
        (
            "sdxl",
            "foreign",
            "tokenizer_2/vocab.json",
            Some(["\"<|endoftext|>\": 601", "\"<|endoftext|>\": 700"]),
        ),
        (
            "sdxl",
            "short",
            "tokenizer_2/tokenizer_config.json",
            Some(["\"model_max_length\": 16", "\"model_max_length\": 12"]),
        ),
    ] {
        shell.copy(&fixture(&format!("pipelines/{pipeline}")), name);
        change(&shell.path(&format!("{name}/{file}")), edit);
        let [dry, real] = both(&shell, name);
        assert_eq!(real.code, Some(2), "{}", real.transcript());
        assert!(!shell.path("out").exists());
        // What a tokenizer reads is known once it is made, which only compiling does.
        if edit.is_none() {
            assert_eq!(
                (dry.code, error(&dry)),
                (real.code, error(&real)),
                "{}",
                dry.transcript()
            );
        }
        transcripts.push(format!("{name}: {}", error(&real)));
    }
    snapshot!("pipeline_learning_refusals", transcripts.join("\n"));
}

#[test]
fn prompts_that_are_cut_and_single_ones_are_noted() {
    let shell = Shell::new();
    let long = "one two three four five six seven eight nine ten eleven twelve";
    shell.write("prompts.txt", format!("{long}\n"));
    let [_, real] = both(&shell, "fixtures/pipelines/sdxl");
    assert_eq!(real.code, Some(0), "{}", real.transcript());
    for noted in ["cut off: `", "prompts.txt holds one text"] {
        assert_eq!(real.stderr.matches(noted).count(), 1, "{}", real.stderr);
    }
}
