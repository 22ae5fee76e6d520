//! Diffusion models at work on tract: `sample`, and `bench` and `inspect` of their bundles.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use dlc::checkpoint::Checkpoint;
use dlc::import::{ImportOptions, import};
use dlc_bundle::{MANIFEST_FILE, Profile};
use dlc_eval::Array;
use dlc_ir::{DType, Module, SideFile};
use dlc_methods::diffusion::{
    OutputLayout, SamplerState, SamplingPlan, noise, parse_scheduler_config, sampling_plan,
};
use dlc_runtime::{
    Backend, BackendKind, BackendSearch, SampleProgress, SampleRequest, read_tensors, start,
};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};

use crate::command::{Shell, contents, settings, snapshot};
use crate::common::fixture;
use crate::common::golden::module;
use crate::common::sampling::{adding, check_memory, open, remembering};
use crate::common::session::export;

fn tract() -> Backend {
    start(&BackendSearch {
        force: Some(BackendKind::Tract),
        ..BackendSearch::default()
    })
    .unwrap()
}

/// A shell with digits-dit compiled to `digits`.
pub fn digits() -> Shell {
    let shell = Shell::new();
    shell.ok(&["compile", "fixtures/digits-dit", "-o", "digits"]);
    shell
}

pub fn sample(shell: &Shell, args: &[&str]) -> serde_json::Value {
    shell
        .ok(&[&["sample", "--backend", "tract", "--json"], args].concat())
        .json()
}

pub fn latents(shell: &Shell, name: &str) -> Vec<f32> {
    read_tensors(&shell.path(name))
        .unwrap()
        .remove("latents")
        .unwrap()
        .data
}

struct Decoded {
    width: u32,
    height: u32,
    color: png::ColorType,
    data: Vec<u8>,
}

fn decode(path: &Path) -> Decoded {
    let mut reader = png::Decoder::new(std::io::BufReader::new(fs::File::open(path).unwrap()))
        .read_info()
        .unwrap();
    let mut data = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut data).unwrap();
    Decoded {
        width: info.width,
        height: info.height,
        color: info.color_type,
        data,
    }
}

/// Largest difference.
pub fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .fold(0f32, |worst, (a, b)| worst.max((a - b).abs()))
}

/// What the evaluator makes of digits-dit, one image at a time, guided from "no class".
pub fn evaluated(
    module: &Module,
    plan: &SamplingPlan,
    seed: u64,
    class: i64,
    guidance: f32,
) -> Vec<f32> {
    let mut state = SamplerState::new(plan, &noise(seed, 64)).unwrap();
    let mut input = vec![0.0; 64];
    let layout = OutputLayout {
        channels: 1,
        latent_channels: 1,
        plane: 64,
    };
    while let Some(timestep) = state.model_input(&mut input).unwrap() {
        let run = |class: i64| {
            let feeds = [
                ("hidden_states", Array::f32([1, 1, 8, 8], input.clone())),
                ("timestep", Array::f32([1], vec![timestep as f32])),
                ("class_labels", Array::i64([1], vec![class])),
            ];
            let feeds: BTreeMap<String, Array> = feeds
                .into_iter()
                .map(|(name, array)| (name.to_owned(), array.unwrap()))
                .collect();
            let outputs =
                dlc_eval::run(module.graph("target").unwrap(), &module.weights, &feeds).unwrap();
            outputs["out_sample"].as_f32().unwrap().to_vec()
        };
        let mut found = run(class);
        layout.guide(&mut found, &run(10), guidance).unwrap();
        let fresh = state.fresh_noise(&[seed]);
        state.advance(&found, fresh.as_deref()).unwrap();
    }
    state.latents().to_vec()
}

/// digits-dit as it is.
pub fn digits_module() -> Module {
    import(
        &Checkpoint::open(&fixture("digits-dit")).unwrap(),
        &ImportOptions {
            dtype: Some(DType::F32),
            ..ImportOptions::default()
        },
    )
    .unwrap()
}

#[test]
fn samples_are_what_the_evaluator_makes_of_the_same_noise() {
    let shell = digits();
    let module = digits_module();
    let config = parse_scheduler_config(
        &fs::read_to_string(fixture("digits-dit/scheduler/scheduler_config.json")).unwrap(),
    )
    .unwrap();
    let plan = sampling_plan(&config, None, 4).unwrap();
    let all = [
        "digits",
        "--class",
        "3,7",
        "--seed",
        "5",
        "--steps",
        "4",
        "--guidance",
        "2.5",
        "-o",
        "out.png",
        "--latents",
        "out.safetensors",
    ];
    let report = sample(&shell, &all);
    assert_eq!(
        (report["seeds"].to_string(), report["classes"].to_string()),
        ("[5,6]".into(), "[3,7]".into())
    );
    assert_eq!(
        (
            &report["scheduler"],
            &report["evaluations"],
            &report["macs"]
        ),
        (&"ddim".into(), &4.into(), &1.0.into())
    );
    let expected = [
        evaluated(&module, &plan, 5, 3, 2.5),
        evaluated(&module, &plan, 6, 7, 2.5),
    ]
    .concat();
    let found = latents(&shell, "out.safetensors");
    assert!(
        difference(&found, &expected) < 1e-3,
        "{}",
        difference(&found, &expected)
    );

    // Neither the batch nor, but for the strength, guidance changes the noise.
    sample(&shell, &[&all[..], &["--batch", "1"]].concat());
    assert!(difference(&latents(&shell, "out.safetensors"), &found) < 1e-4);
    sample(
        &shell,
        &[
            "digits",
            "--class",
            "7",
            "--seed",
            "6",
            "--steps",
            "4",
            "--guidance",
            "1",
            "-o",
            "one.png",
            "--latents",
            "one.safetensors",
        ],
    );
    assert!(
        difference(
            &latents(&shell, "one.safetensors"),
            &evaluated(&module, &plan, 6, 7, 1.0)
        ) < 1e-3
    );
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_others_others() {
    let shell = digits();
    let bytes = |seed: &str, name: &str| {
        sample(
            &shell,
            &[
                "digits", "--class", "3", "--steps", "3", "--seed", seed, "-o", name,
            ],
        );
        fs::read(shell.path(name)).unwrap()
    };
    let first = bytes("1", "a.png");
    assert_eq!(first, bytes("1", "b.png"));
    assert_ne!(first, bytes("2", "c.png"));
    // One image of 8 x 8, each pixel 8 wide.
    let decoded = decode(&shell.path("a.png"));
    assert_eq!(
        (decoded.width, decoded.height, decoded.color),
        (64, 64, png::ColorType::Grayscale)
    );
    assert!(
        decoded
            .data
            .chunks(8)
            .all(|run| run.iter().all(|x| *x == run[0]))
    );
    assert_eq!(shell.listing(), ["a.png", "b.png", "c.png", "digits"]);
}

#[test]
fn several_images_stand_in_a_grid() {
    let shell = digits();
    for (args, columns, rows, images) in [
        (&["--count", "5"][..], 3, 2, 5),
        (&["--class", "1,2,9"], 2, 2, 3),
        (&["--class", "1,2,9", "--count", "2"], 2, 3, 6),
    ] {
        let report = sample(
            &shell,
            &[
                &["digits", "--steps", "1", "--scale", "1", "-o", "grid.png"],
                args,
            ]
            .concat(),
        );
        assert_eq!(report["seeds"].as_array().unwrap().len(), images);
        let grid = decode(&shell.path("grid.png"));
        assert_eq!(
            (grid.width, grid.height),
            (9 * columns - 1, 9 * rows - 1),
            "{args:?}"
        );
        // The gaps are white, and so is what no image fills.
        assert!(
            grid.data
                .chunks(grid.width as usize)
                .all(|row| row[8] == 255)
        );
        let last = (
            (images as u32 - 1) % columns * 9,
            (images as u32 - 1) / columns * 9,
        );
        let pixel = |x: u32, y: u32| grid.data[(y * grid.width + x) as usize];
        assert!((0..8).any(|x| pixel(last.0 + x, last.1 + 4) != 255));
        assert!(
            images as u32 == columns * rows
                || (0..8).all(|x| pixel(grid.width - 1 - x, grid.height - 1) == 255)
        );
    }
}

#[test]
fn an_unrolled_sampler_makes_the_images_of_its_steps() {
    let shell = Shell::new();
    let passes = "skip:interval=2,steps=4,reuse=linear,guidance=2";
    for (flags, out) in [(&[][..], "f32"), (&["--dtype", "f16"], "f16")] {
        shell.ok(&[
            &[
                "compile",
                "fixtures/digits-dit",
                "--pass",
                passes,
                "-o",
                &format!("{out}-steps"),
            ],
            flags,
        ]
        .concat());
        shell.ok(&[
            &[
                "compile",
                "fixtures/digits-dit",
                "--pass",
                &format!("{passes},unroll=true"),
                "-o",
                out,
            ],
            flags,
        ]
        .concat());
        let images = |bundle: &str| {
            let report = sample(
                &shell,
                &[
                    bundle,
                    "--class",
                    "3,7",
                    "--seed",
                    "5",
                    "-o",
                    "out.png",
                    "--latents",
                    "out.safetensors",
                ],
            );
            assert_eq!(
                (&report["evaluations"], &report["pruned"]),
                (&4.into(), &true.into())
            );
            latents(&shell, "out.safetensors")
        };
        let found = difference(&images(out), &images(&format!("{out}-steps")));
        // Half types round every activation; the scheduler's sums are in single precision in both.
        assert!(
            found < if out == "f32" { 1e-4 } else { 2e-2 },
            "{out}: {found}"
        );
    }
    let listing = contents(&shell.path("f32"));
    assert!(
        listing.iter().any(|(file, _)| file == "sampler.onnx")
            && !listing.iter().any(|(file, _)| file.starts_with("step."))
    );
    shell.ok(&["verify", "f32", "--backend", "tract"]);
    assert!(
        shell
            .ok(&["inspect", "f32"])
            .stdout
            .contains("4 evaluations in the one graph `sampler`")
    );
    let refused = shell.dlc(&[
        "sample",
        "f32",
        "--guidance",
        "3",
        "-o",
        "out.png",
        "--backend",
        "tract",
    ]);
    assert!(
        refused.stderr.contains("one graph with guidance 2 in it"),
        "{}",
        refused.stderr
    );
}

#[test]
fn what_blocks_gave_is_remembered_as_the_manifest_says() {
    for profile in [Profile::Portable, Profile::Onnx] {
        check_memory(&tract(), profile, DType::F32).unwrap();
    }
}

#[test]
fn a_run_that_is_stopped_gives_nothing() {
    let folder = tempfile::tempdir().unwrap();
    export(
        &remembering(DType::F32),
        Profile::Portable,
        &folder.path().join("bundle"),
    );
    let mut session = open(&tract(), &folder.path().join("bundle")).unwrap();
    let plan = adding(5);
    let request = SampleRequest {
        plan: &plan,
        image: None,
        guidance: 1.0,
        seeds: &[1],
        noise: None,
        classes: &[],
        conditions: None,
        size: None,
        prune: true,
    };
    let stop = &mut |run: &SampleProgress<'_>| {
        if run.done == 3 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    assert_eq!(session.sample(&request, stop).unwrap(), None);
    let go = &mut |_: &SampleProgress<'_>| ControlFlow::Continue(());
    assert!(session.sample(&request, go).unwrap().is_some());
    let error = session
        .sample(
            &SampleRequest {
                plan: &adding(4),
                ..request.clone()
            },
            go,
        )
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("pruned for 5 evaluations, and the sampler makes 4"),
        "{error}"
    );
    assert!(
        session
            .sample(
                &SampleRequest {
                    plan: &adding(4),
                    prune: false,
                    ..request
                },
                go
            )
            .unwrap()
            .is_some()
    );
}

/// A shell with the bundle `tiny` of [`remembering`], and a `scheduler_config.json` in it.
fn remembered() -> Shell {
    let shell = Shell::new();
    let mut module = remembering(DType::F32);
    let name = "scheduler_config.json".to_owned();
    module.side_files.push(SideFile {
        path: fixture("digits-dit/scheduler").join(&name),
        name,
    });
    export(&module, Profile::Portable, &shell.path("tiny"));
    shell
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn a_text_comes_in_a_file_of_embeddings() {
    let shell = Shell::new();
    let name = "scheduler_config.json".to_owned();
    let mut module = module("pixart", DType::F32);
    module.side_files.push(SideFile {
        path: fixture("digits-dit/scheduler").join(&name),
        name,
    });
    export(&module, Profile::Portable, &shell.path("text"));
    let width = module.model.diffusion.as_ref().unwrap().text_width.unwrap();
    let bytes = |data: &[f32]| {
        data.iter()
            .flat_map(|x| x.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let (with, without) = (noise(1, 5 * width), noise(2, 5 * width));
    let (with_bytes, without_bytes) = (bytes(&with), bytes(&without));
    let view = |data| TensorView::new(Dtype::F32, vec![1, 5, width], data).unwrap();
    let text = ("encoder_hidden_states", view(&with_bytes));
    shell.write(
        "text.safetensors",
        serialize(
            [
                text,
                ("negative_encoder_hidden_states", view(&without_bytes)),
            ],
            None,
        )
        .unwrap(),
    );
    shell.write(
        "only.safetensors",
        serialize([("encoder_hidden_states", view(&with_bytes))], None).unwrap(),
    );
    let args = [
        "text",
        "-o",
        "out.png",
        "--latents",
        "out.safetensors",
        "--steps",
        "1",
        "--guidance",
        "3",
        "--count",
        "2",
        "--embeddings",
    ];
    sample(&shell, &[&args[..], &["text.safetensors"]].concat());
    assert_eq!(decode(&shell.path("out.png")).color, png::ColorType::Rgb);
    let refused = shell.dlc(
        &[
            &["sample", "--backend", "tract"],
            &args[..],
            &["only.safetensors"],
        ]
        .concat(),
    );
    assert!(
        refused.code == Some(2)
            && refused
                .stderr
                .contains("needs `negative_encoder_hidden_states`"),
        "{}",
        refused.transcript()
    );

    let config = parse_scheduler_config(
        &fs::read_to_string(shell.path("text/scheduler_config.json")).unwrap(),
    )
    .unwrap();
    let plan = sampling_plan(&config, None, 1).unwrap();
    let model = module.model.diffusion.as_ref().unwrap();
    let [channels, height, width_of_image] = [model.channels, model.height, model.width];
    let plane = height * width_of_image;
    let layout = OutputLayout {
        channels: model.out_channels,
        latent_channels: channels,
        plane,
    };
    let mut state = SamplerState::new(&plan, &noise(1, channels * plane)).unwrap();
    let mut input = vec![0.0; channels * plane];
    let timestep = state.model_input(&mut input).unwrap().unwrap();
    let run = |text: &[f32]| {
        let feeds = [
            (
                "hidden_states",
                Array::f32([1, channels, height, width_of_image], input.clone()),
            ),
            ("timestep", Array::f32([1], vec![timestep as f32])),
            (
                "encoder_hidden_states",
                Array::f32([1, 5, width], text.to_vec()),
            ),
            ("encoder_attention_mask", Array::i64([1, 5], vec![1; 5])),
        ];
        let feeds: BTreeMap<String, Array> = feeds
            .into_iter()
            .map(|(name, array)| (name.to_owned(), array.unwrap()))
            .collect();
        dlc_eval::run(module.graph("target").unwrap(), &module.weights, &feeds).unwrap()["out_sample"].as_f32().unwrap().to_vec()
    };
    let mut found = run(&with);
    layout.guide(&mut found, &run(&without), 3.0).unwrap();
    state
        .advance(layout.without_variance(&mut found).unwrap(), None)
        .unwrap();
    // The second image, whose seed is 1.
    let sampled = latents(&shell, "out.safetensors");
    assert!(
        difference(&sampled[channels * plane..], state.latents())
            < 1e-2 * state.latents().iter().fold(1f32, |m, x| m.max(x.abs()))
    );
}

#[test]
fn bench_puts_the_pruned_model_beside_the_whole_one() {
    let shell = remembered();
    let floats = |data: &[f32]| {
        data.iter()
            .flat_map(|x| x.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let (mean, covariance) = (floats(&[0.0, 0.0]), floats(&[1.0, 0.0, 0.0, 1.0]));
    let view = |shape: &[usize], data| TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap();
    let statistics = [
        ("mean", view(&[2], &mean)),
        ("covariance", view(&[2, 2], &covariance)),
    ];
    shell.write(
        "statistics.safetensors",
        serialize(statistics, None).unwrap(),
    );
    let args = [
        "bench",
        "tiny",
        "--backend",
        "tract",
        "--repeats",
        "1",
        "--count",
        "3",
        "--statistics",
        "statistics.safetensors",
    ];
    let report = shell.ok(&[&args[..], &["--json"]].concat()).json();
    assert_eq!(
        (
            &report["images"],
            &report["evaluations"],
            &report["pruned"]["macs"]
        ),
        (&3.into(), &5.into(), &0.5.into())
    );
    assert!(
        report["psnr"].is_number() && report["speedup"].is_number() && report["equal"] == false,
        "{report}"
    );
    assert!(
        report["full"]["frechet"].as_f64().unwrap() > 0.0
            && report["pruned"]["seconds"].as_f64().unwrap() > 0.0,
        "{report}"
    );
    assert!(report["full"]["as_asked"].is_null());
    let table = shell.ok(&args).stdout;
    assert!(
        table.contains("full") && table.contains("pruned") && table.contains("50.0%"),
        "{table}"
    );
    // What the system doesn't tell is unknown; Linux tells, and each side holds at least the
    // program.
    let peak = |side: &str| report[side]["peak_memory"].as_u64();
    if cfg!(target_os = "linux") {
        assert!(
            peak("full").unwrap() > 1 << 20 && peak("pruned").unwrap() > 1 << 20,
            "{report}"
        );
    } else {
        assert!(
            peak("full").is_none() && table.contains("unknown"),
            "{report} {table}"
        );
    }
}

#[test]
fn bench_asks_a_classifier_what_the_images_show() {
    let shell = digits();
    // A classifier that sees a 3 in everything.
    let (weight, bias) = (
        vec![0u8; 10 * 64 * 4],
        [0f32, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
            .map(f32::to_le_bytes)
            .concat(),
    );
    let view = |shape: &[usize], data| TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap();
    let tensors = [
        ("layers.0.weight", view(&[10, 64], &weight)),
        ("layers.0.bias", view(&[10], &bias)),
    ];
    shell.write("classifier.safetensors", serialize(tensors, None).unwrap());
    let args = [
        "bench",
        "digits",
        "--backend",
        "tract",
        "--repeats",
        "1",
        "--count",
        "10",
        "--steps",
        "1",
        "--classifier",
        "classifier.safetensors",
    ];
    let report = shell.ok(&[&args[..], &["--json"]].concat()).json();
    assert_eq!(
        (&report["full"]["as_asked"], &report["full"]["macs"]),
        (&0.1.into(), &1.0.into())
    );
    assert!(
        report["pruned"].is_null() && report["psnr"].is_null(),
        "{report}"
    );
}

#[test]
fn computing_everything_at_every_step_gives_the_whole_models_bits() {
    let shell = Shell::new();
    shell.ok(&[
        "compile",
        "fixtures/digits-dit",
        "--pass",
        "skip:interval=1,steps=4",
        "-o",
        "ones",
    ]);
    shell.ok(&[
        "compile",
        "fixtures/digits-dit",
        "--pass",
        "skip:interval=2,steps=4",
        "-o",
        "halves",
    ]);
    let bench = |bundle| {
        shell
            .ok(&[
                "bench",
                bundle,
                "--backend",
                "tract",
                "--repeats",
                "1",
                "--count",
                "3",
                "--json",
            ])
            .json()
    };
    assert_eq!(bench("ones")["equal"], true);
    let halves = bench("halves");
    assert!(
        halves["equal"] == false && halves["psnr"].as_f64().unwrap() > 10.0,
        "{halves}"
    );
}

#[test]
fn inspect_shows_what_is_computed_when() {
    let shell = remembered();
    assert_eq!(
        shell
            .ok(&["verify", "tiny", "--backend", "tract"])
            .stdout
            .matches("  ok")
            .count(),
        4
    );
    let text = shell.ok(&["inspect", "tiny"]).stdout;
    snapshot!("inspect", text);
}

/// A place with bundles that something is wrong with.
fn unfit_bundles() -> Shell {
    let shell = remembered();
    shell.ok(&["compile", "fixtures/digits-dit", "-o", "digits"]);
    shell.ok(&["compile", "fixtures/goldens/dit", "-o", "unscheduled"]);
    shell.ok(&["compile", "fixtures/goldens/bert", "-o", "encoder"]);
    let config = fs::read_to_string(fixture("digits-dit/scheduler/scheduler_config.json")).unwrap();
    for (name, model, config) in [
        ("text", "goldens/pixart", config.clone()),
        (
            "strange",
            "digits-dit/transformer",
            config.replace("DDIM", "CogVideoXDPM"),
        ),
    ] {
        for file in ["config.json", "diffusion_pytorch_model.safetensors"] {
            shell.write(
                &format!("{name}-model/transformer/{file}"),
                fs::read(fixture(&format!("{model}/{file}"))).unwrap(),
            );
        }
        shell.write(
            &format!("{name}-model/scheduler/scheduler_config.json"),
            config,
        );
        shell.ok(&["compile", &format!("{name}-model"), "-o", name]);
    }
    shell.copy(&shell.path("tiny"), "hostile");
    let manifest = fs::read_to_string(shell.path("hostile").join(MANIFEST_FILE)).unwrap();
    shell.write(
        "hostile/dlc.yaml",
        manifest.replacen("- graph: step.0", "- graph: step.1", 1),
    );
    shell.write("no.safetensors", "none");
    shell.write("folder/file", "");
    shell
}

#[test]
fn what_can_not_be_sampled_is_refused() {
    let shell = unfit_bundles();
    let commands: Vec<&[&str]> = vec![
        &["sample", "digits"],
        &["sample", "nowhere", "-o", "out.png"],
        &["sample", "fixtures/digits-dit", "-o", "out.png"],
        &["sample", "digits", "-o", "out.png", "--class", "10"],
        &["sample", "digits", "-o", "out.png", "--class", "three"],
        &["sample", "digits", "-o", "out.png", "--class", "-1"],
        &["sample", "digits", "-o", "out.png", "--count", "0"],
        &["sample", "digits", "-o", "out.png", "--steps", "0"],
        &["sample", "digits", "-o", "out.png", "--steps", "5000"],
        &["sample", "digits", "-o", "out.png", "--scheduler", "eulr"],
        &["sample", "digits", "-o", "out.png", "--guidance", "NaN"],
        &["sample", "digits", "-o", "nowhere/out.png"],
        &["sample", "digits", "-o", "folder"],
        &[
            "sample",
            "digits",
            "-o",
            "out.png",
            "--latents",
            "nowhere/out.safetensors",
        ],
        &[
            "sample",
            "digits",
            "-o",
            "out.png",
            "--embeddings",
            "no.safetensors",
        ],
        &[
            "sample",
            "digits",
            "-o",
            "out.png",
            "--noise",
            "no.safetensors",
            "--seed",
            "3",
        ],
        &["sample", "unscheduled", "-o", "out.png"],
        &["sample", "strange", "-o", "out.png"],
        &["sample", "hostile", "-o", "out.png"],
        &["sample", "encoder", "-o", "out.png"],
        &["sample", "text", "-o", "out.png", "--steps", "1"],
        &["sample", "tiny", "-o", "out.png", "--steps", "9"],
        &["sample", "tiny", "-o", "out.png", "--scheduler", "euler"],
        &["sample", "tiny", "-o", "out.png", "--class", "1"],
        &["sample", "tiny", "-o", "out.png", "--guidance", "3"],
        &["run", "digits", "--prompt", "a"],
        &["run", "digits", "--text", "a"],
        &["bench", "digits", "--prompts", "fixtures/prompts.txt"],
        &["bench", "digits", "--classifier", "no.safetensors"],
        &["bench", "tiny", "--steps", "9"],
    ];
    let mut messages = String::new();
    for args in commands {
        let before = shell.listing();
        // The backend has its word after those that need none.
        let runs = args[0] != "run" && args.len() > 2;
        let outcome = shell.dlc(&if runs {
            [args, &["--backend", "tract"]].concat()
        } else {
            args.to_vec()
        });
        assert!(
            matches!(outcome.code, Some(2 | 3))
                && outcome.stdout.is_empty()
                && before == shell.listing(),
            "{}",
            outcome.transcript()
        );
        messages += &outcome.transcript().replace(" --backend tract", "");
        messages.push('\n');
    }
    settings().bind(|| insta::assert_snapshot!(messages));
}

#[test]
fn a_pruned_bundle_may_be_sampled_whole_and_says_what_differs() {
    let shell = remembered();
    let whole = sample(
        &shell,
        &[
            "tiny",
            "--no-prune",
            "--steps",
            "9",
            "--scheduler",
            "euler",
            "-o",
            "out.png",
        ],
    );
    assert_eq!(
        (&whole["pruned"], &whole["steps"], &whole["macs"]),
        (&false.into(), &9.into(), &1.0.into())
    );
    let pruned = sample(
        &shell,
        &[
            "tiny",
            "-o",
            "out.png",
            "--latents",
            "a.safetensors",
            "--count",
            "2",
        ],
    );
    assert_eq!(
        (&pruned["pruned"], &pruned["steps"], &pruned["macs"]),
        (&true.into(), &5.into(), &0.5.into())
    );
    let before = contents(&shell.path("tiny"));
    sample(
        &shell,
        &[
            "tiny",
            "-o",
            "out.png",
            "--latents",
            "b.safetensors",
            "--count",
            "2",
            "--batch",
            "1",
        ],
    );
    assert!(
        difference(
            &latents(&shell, "a.safetensors"),
            &latents(&shell, "b.safetensors")
        ) < 1e-5
    );
    assert_eq!(before, contents(&shell.path("tiny")));
}
