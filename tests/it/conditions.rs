//! Pruned diffusion models by what they are conditioned on, nothing or a text, by command from checkpoint to
//! image.

use std::collections::BTreeMap;
use std::fs;

use dlc::checkpoint::Checkpoint;
use dlc::import::{ImportOptions, import};
use dlc_eval::{Array, ArrayData};
use dlc_methods::diffusion::{DenoiserInput, noise, parse_scheduler_config, sampling_plan};
use dlc_passes::Prompt;
use dlc_passes::dip_go::supernet_sample;
use dlc_runtime::{Bundle, read_tensors};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};

use crate::command::Shell;
use crate::common::diffusion::DiffusionGolden;
use crate::common::fixture;

const STEPS: usize = 4;
const LEARN: &str = "dip-go:steps=4,rounds=1,iterations=1,batch=1,macs=";
/// A share of the multiply-adds that most of the goldens can be pruned to.
const SHARE: f64 = 0.6;

/// A shell with the pipeline `model`: a golden as its `component`, and the scheduler of digits-dit.
fn pipeline(golden: &str, component: &str) -> Shell {
    let shell = Shell::new();
    for file in ["config.json", "diffusion_pytorch_model.safetensors"] {
        shell.write(
            &format!("model/{component}/{file}"),
            fs::read(fixture(&format!("goldens/{golden}/{file}"))).unwrap(),
        );
    }
    let scheduler = "scheduler/scheduler_config.json";
    shell.write(
        &format!("model/{scheduler}"),
        fs::read(fixture(&format!("digits-dit/{scheduler}"))).unwrap(),
    );
    shell
}

fn compile(shell: &Shell, pass: &str, out: &str) {
    shell.ok(&["compile", "model", "--pass", pass, "-o", out]);
}

/// The report of `sample`, and the latents of two images.
fn sample(shell: &Shell, args: &[&str]) -> (serde_json::Value, Vec<f32>) {
    let common = [
        "sample",
        "--backend",
        "tract",
        "--json",
        "--count",
        "2",
        "-o",
        "out.png",
        "--latents",
        "out.safetensors",
    ];
    let report = shell.ok(&[&common[..], args].concat()).json();
    assert!(
        fs::read(shell.path("out.png"))
            .unwrap()
            .starts_with(b"\x89PNG")
    );
    (
        report,
        read_tensors(&shell.path("out.safetensors"))
            .unwrap()
            .remove("latents")
            .unwrap()
            .data,
    )
}

fn check_near(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1f32, |m, x| m.max(x.abs()));
    let error = found
        .iter()
        .zip(expected)
        .fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(error <= 1e-4 * largest, "{what}: {error:e} of {largest}");
}

#[test]
fn a_model_told_nothing_is_pruned_and_sampled_without_asking_for_no_guidance() {
    let shell = pipeline("unet-ddpm", "unet");
    let mut images = Vec::new();
    for (pass, out) in [
        ("skip:interval=2,steps=4", "steps"),
        ("skip:interval=2,steps=4,unroll=true", "one"),
        (&format!("{LEARN}{SHARE}"), "learned"),
    ] {
        compile(&shell, pass, out);
        let (report, latents) = sample(&shell, &[out]);
        assert_eq!(
            (&report["guidance"], &report["pruned"]),
            (&1.0.into(), &true.into()),
            "{pass}"
        );
        images.push(latents);
        let report = shell
            .ok(&[
                "bench",
                out,
                "--backend",
                "tract",
                "--repeats",
                "1",
                "--count",
                "2",
                "--json",
            ])
            .json();
        assert_eq!(
            (&report["guidance"], &report["images"]),
            (&1.0.into(), &2.into()),
            "{pass}"
        );
        let refused = shell.dlc(&[
            "sample",
            out,
            "--guidance",
            "2",
            "--backend",
            "tract",
            "-o",
            "other.png",
        ]);
        assert!(
            refused.code == Some(2) && refused.stderr.contains("guidance"),
            "{}",
            refused.transcript()
        );
    }
    check_near(&images[1], &images[0], "the sampler as one graph");
}

#[test]
fn guidance_of_a_model_told_nothing_is_refused() {
    let shell = pipeline("unet-ddpm", "unet");
    for pass in [
        "skip:interval=2,guidance=2",
        "skip:interval=2,guidance=2,unroll=true",
        "dip-go:guidance=2",
    ] {
        let refused = shell.dlc(&["compile", "model", "--pass", pass, "-o", "out"]);
        let reason = "the model is conditioned on neither class nor text, so there is nothing to guide it to; leave guidance out";
        assert!(
            refused.code == Some(2) && refused.stderr.contains(reason),
            "{}",
            refused.transcript()
        );
    }
    assert_eq!(shell.listing(), ["model"]);
}

/// What a golden was conditioned on beside image and noise level: the same text, but for its sign, for images
/// without one.
fn conditioning(golden: &DiffusionGolden) -> BTreeMap<String, Array> {
    let is_conditioning = |name: &str| {
        !matches!(
            DenoiserInput::of(name),
            DenoiserInput::Image | DenoiserInput::Timestep
        )
    };
    let mut conditioning: BTreeMap<String, Array> = golden
        .inputs
        .iter()
        .filter(|(k, _)| is_conditioning(k))
        .map(|(k, a)| (k.clone(), a.clone()))
        .collect();
    let text = &conditioning["encoder_hidden_states"];
    let negative = Array::f32(
        text.shape(),
        text.as_f32().unwrap().iter().map(|x| -x).collect(),
    )
    .unwrap();
    conditioning.insert("negative_encoder_hidden_states".into(), negative);
    conditioning
}

/// The tensors as a file of embeddings.
fn embeddings(conditioning: &BTreeMap<String, Array>) -> Vec<u8> {
    let bytes = |array: &Array| match array.data() {
        ArrayData::F32(data) => (
            Dtype::F32,
            data.iter()
                .flat_map(|x| x.to_le_bytes())
                .collect::<Vec<u8>>(),
        ),
        ArrayData::I64(data) => (
            Dtype::I64,
            data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ),
    };
    let parts: Vec<_> = conditioning
        .iter()
        .map(|(name, array)| (name, array.shape().to_vec(), bytes(array)))
        .collect();
    serialize(
        parts.iter().map(|(name, shape, (dtype, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        }),
        None,
    )
    .unwrap()
}

/// What the image `index` is conditioned on, with a text and without.
fn prompt(conditioning: &BTreeMap<String, Array>, index: usize) -> Prompt {
    let row = |array: &Array| {
        let width = array.shape()[1..].iter().product::<usize>();
        index * width..(index + 1) * width
    };
    let both = |(name, array): (&String, &Array)| {
        let other = conditioning
            .get(&format!("negative_{name}"))
            .unwrap_or(array);
        let shape = [&[2], &array.shape()[1..]].concat();
        let (a, b) = (row(array), row(other));
        let array = match (array.data(), other.data()) {
            (ArrayData::F32(with), ArrayData::F32(without)) => {
                Array::f32(shape, [&with[a], &without[b]].concat())
            }
            (ArrayData::I64(with), ArrayData::I64(without)) => {
                Array::i64(shape, [&with[a], &without[b]].concat())
            }
            _ => unreachable!("an input has one type"),
        };
        (name.clone(), array.unwrap())
    };
    conditioning
        .iter()
        .filter(|(name, _)| !name.starts_with("negative_"))
        .map(both)
        .collect()
}

/// Learns on texts, samples with them, and compares the images with what the SuperNet makes of the
/// same noise and texts.
fn check_conditioning(golden: &'static str, component: &str, share: f64) {
    let shell = pipeline(golden, component);
    let conditioning = conditioning(&DiffusionGolden::read(golden));
    shell.write("texts.safetensors", embeddings(&conditioning));
    let outcome = shell.ok(&[
        "compile",
        "model",
        "--pass",
        &format!("{LEARN}{share},embeddings=texts.safetensors"),
        "-o",
        "out",
    ]);
    assert!(
        outcome
            .stderr
            .contains("dlc sample out --embeddings FILE -o image.png"),
        "{}",
        outcome.transcript()
    );
    let (report, latents) = sample(&shell, &["out", "--embeddings", "texts.safetensors"]);
    assert!(
        (report["macs"].as_f64().unwrap() - share).abs() <= 0.0125,
        "{golden}: {report}"
    );
    assert_eq!(
        (&report["guidance"], &report["pruned"]),
        (&7.5.into(), &true.into()),
        "{golden}"
    );

    let module = import(
        &Checkpoint::open(&shell.path("model")).unwrap(),
        &ImportOptions::default(),
    )
    .unwrap();
    let schedule = Bundle::open(&shell.path("out"))
        .unwrap()
        .manifest()
        .sampling
        .clone()
        .unwrap()
        .schedule;
    let config = fs::read_to_string(fixture("digits-dit/scheduler/scheduler_config.json")).unwrap();
    let plan = sampling_plan(&parse_scheduler_config(&config).unwrap(), None, STEPS).unwrap();
    let numbers = latents.len() / 2;
    let image = |index: usize| {
        let conditioning = (None, Some(prompt(&conditioning, index)));
        supernet_sample(
            &module,
            &plan,
            7.5,
            &schedule,
            (&noise(index as u64, numbers), index as u64),
            conditioning,
        )
        .unwrap()
    };
    check_near(&latents, &[image(0), image(1)].concat(), golden);
}

#[test]
fn dip_go_learns_on_texts_that_pixart_is_told() {
    check_conditioning("pixart", "transformer", SHARE);
}

#[test]
fn dip_go_learns_on_texts_and_sizes_that_pixart_is_told() {
    // It has so few blocks that shares lie far apart.
    check_conditioning("pixart-sizes", "transformer", 0.625);
}

#[test]
fn dip_go_learns_on_texts_that_stable_diffusion_is_told() {
    check_conditioning("unet-sd15", "unet", SHARE);
}

#[test]
fn dip_go_learns_on_texts_and_sizes_that_stable_diffusion_xl_is_told() {
    check_conditioning("unet-sdxl", "unet", SHARE);
}

/// Samples pruned bundles at other heights and widths than the model's, and compares the images
/// with what the SuperNet makes of the same noise at that size.
fn check_sizes(golden: &'static str, sizes: &[[usize; 2]]) {
    let shell = pipeline(golden, "unet");
    let conditioning = conditioning(&DiffusionGolden::read(golden));
    shell.write("texts.safetensors", embeddings(&conditioning));
    let mut module = import(
        &Checkpoint::open(&shell.path("model")).unwrap(),
        &ImportOptions::default(),
    )
    .unwrap();
    let config = fs::read_to_string(fixture("digits-dit/scheduler/scheduler_config.json")).unwrap();
    let plan = sampling_plan(&parse_scheduler_config(&config).unwrap(), None, STEPS).unwrap();
    for (pass, out) in [
        ("skip:interval=2,steps=4,guidance=1.5", "steps"),
        ("skip:interval=2,steps=4,guidance=1.5,unroll=true", "one"),
    ] {
        compile(&shell, pass, out);
        let bundle = Bundle::open(&shell.path(out)).unwrap();
        let schedule = bundle.manifest().sampling.clone().unwrap().schedule;
        for &[height, width] in sizes {
            let side = |side: usize| side.to_string();
            let (rows, columns) = (side(height), side(width));
            let size = ["--height", &rows, "--width", &columns];
            let told_file = [out, "--embeddings", "texts.safetensors"];
            let (report, latents) = sample(&shell, &[&told_file[..], &size].concat());
            assert_eq!(
                (&report["height"], &report["width"]),
                (&height.into(), &width.into())
            );
            let diffusion = module.model.diffusion.as_mut().unwrap();
            (diffusion.height, diffusion.width) = (height, width);
            let numbers = diffusion.channels * height * width;
            let image = |index: usize| {
                let noise = noise(index as u64, numbers);
                let conditioning = (None, Some(prompt(&conditioning, index)));
                supernet_sample(&module, &plan, 1.5, &schedule, (&noise, 0), conditioning).unwrap()
            };
            let what = format!("{golden} {out} {height} x {width}");
            check_near(&latents, &[image(0), image(1)].concat(), &what);
        }
    }
}

#[test]
fn pruned_u_nets_make_images_of_other_sizes() {
    check_sizes("unet-sd15", &[[12, 20], [7, 9]]);
    check_sizes("unet-stages", &[[13, 11]]);
}

#[test]
fn sizes_that_graphs_do_not_take_are_refused() {
    let shell = pipeline("unet-ddpm-classes", "unet");
    shell.ok(&["compile", "model", "-o", "unet"]);
    shell.ok(&["compile", "fixtures/digits-dit", "-o", "dit"]);
    for (bundle, sides, reasons) in [
        ("unet", ["9", "16"], ["of 9 x 16", "multiples of 2"]),
        (
            "dit",
            ["8", "16"],
            ["take 8 x 8 alone", "table of positions"],
        ),
        ("unet", ["65534", "65534"], ["of 65534 x 65534", "numbers"]),
    ] {
        let [height, width] = sides;
        let size = ["--height", height, "--width", width, "--steps", "1"];
        let common = ["sample", bundle, "--backend", "tract", "-o", "out.png"];
        let refused = shell.dlc(&[&common[..], &size].concat());
        assert!(
            refused.code == Some(2) && reasons.iter().all(|r| refused.stderr.contains(r)),
            "{}",
            refused.transcript()
        );
    }
}

#[test]
fn learning_without_texts_says_what_is_missing() {
    let shell = pipeline("pixart", "transformer");
    let mut conditioning = conditioning(&DiffusionGolden::read("pixart"));
    conditioning.remove("negative_encoder_hidden_states");
    shell.write("only.safetensors", embeddings(&conditioning));
    for (more, reason) in [
        ("", "give texts to learn on with embeddings=FILE"),
        (",embeddings=nowhere.safetensors", "nowhere.safetensors"),
        (
            ",embeddings=only.safetensors",
            "guidance needs `negative_encoder_hidden_states` beside `encoder_hidden_states`",
        ),
    ] {
        let refused = shell.dlc(&[
            "compile",
            "model",
            "--pass",
            &format!("{LEARN}{SHARE}{more}"),
            "-o",
            "out",
        ]);
        assert!(
            refused.code == Some(2) && refused.stderr.contains(reason),
            "{}",
            refused.transcript()
        );
    }
    compile(
        &shell,
        &format!("{LEARN}{SHARE},guidance=1,embeddings=only.safetensors"),
        "out",
    );
    assert_eq!(
        sample(&shell, &["out", "--embeddings", "only.safetensors"]).0["guidance"],
        1.0
    );
}

#[test]
fn a_model_is_guided_by_default_whether_it_is_pruned_or_not() {
    let shell = pipeline("pixart", "transformer");
    let conditioning = conditioning(&DiffusionGolden::read("pixart"));
    shell.write("texts.safetensors", embeddings(&conditioning));
    shell.ok(&["compile", "model", "-o", "whole"]);
    compile(&shell, "skip:interval=2,steps=4", "pruned");
    for bundle in ["whole", "pruned"] {
        let args = [bundle, "--steps", "4", "--embeddings", "texts.safetensors"];
        assert_eq!(sample(&shell, &args).0["guidance"], 7.5, "{bundle}");
    }
}
