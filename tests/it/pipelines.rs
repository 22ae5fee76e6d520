//! The command on whole pipelines: from a folder of diffusers and a prompt to a picture.

use dlc_runtime::{BackendKind, BackendSearch, Bundle, PromptEncoder, SessionOptions, start};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};

use crate::command::{Shell, snapshot};
use crate::common::pipelines::{PIXELS, PipelineGolden};
use crate::common::{fixture, folders};

const SD15: &str = "fixtures/pipelines/sd15";

/// The noise of one picture as a file.
pub(crate) fn noise_file(noise: &[f32]) -> Vec<u8> {
    let bytes: Vec<u8> = noise.iter().flat_map(|x| x.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![1, 4, 8, 8], &bytes).unwrap();
    serialize([("latents", view)], None).unwrap()
}

/// The pixels of a PNG as numbers from 0 to 255, channel by channel.
pub(crate) fn planes(png: &[u8]) -> Vec<f32> {
    let mut reader = png::Decoder::new(std::io::Cursor::new(png))
        .read_info()
        .unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!(info.color_type, png::ColorType::Rgb);
    let channel = |c: usize| pixels[c..].iter().step_by(3).map(|x| f32::from(*x));
    (0..3).flat_map(channel).collect()
}

/// What diffusers writes of numbers from -1 to 1.
pub(crate) fn as_pixels(numbers: &[f32]) -> Vec<f32> {
    let pixel = |x: &f32| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round();
    numbers.iter().map(pixel).collect()
}

#[test]
fn prompts_become_the_pictures_of_diffusers() {
    let shell = Shell::new();
    for golden in PipelineGolden::all() {
        let (name, recorded) = (golden.name.as_str(), golden.recorded());
        shell.ok(&["compile", golden.folder.to_str().unwrap(), "-o", name]);
        let (steps, guidance) = (recorded.steps.to_string(), recorded.guidance.to_string());
        for run in recorded.runs() {
            let numbers = run.pictures.len() / recorded.pictures();
            // The suite of ONNX Runtime makes every picture of every pipeline.
            let few = if name == "sd15" { usize::MAX } else { 1 };
            for (at, expected) in run.pictures.chunks(numbers).take(few).enumerate() {
                shell.write("noise.safetensors", noise_file(recorded.noise(at)));
                let mut args = vec!["sample", name, "--scheduler", run.scheduler];
                let class = recorded.classes.get(at).map(ToString::to_string);
                if let Some(prompt) = recorded.prompts.get(at) {
                    args.extend(["--prompt", prompt]);
                } else if let Some(class) = &class {
                    args.extend(["--class", class]);
                }
                args.extend(["--steps", &steps, "--guidance", &guidance, "--scale", "1"]);
                args.extend([
                    "--noise",
                    "noise.safetensors",
                    "-o",
                    "x.png",
                    "--backend",
                    "tract",
                ]);
                if let Some(negative) = &run.negative {
                    args.extend(["--negative-prompt", negative]);
                }
                shell.ok(&args);
                let found = planes(&std::fs::read(shell.path("x.png")).unwrap());
                let worst = found.iter().zip(as_pixels(expected));
                let worst = worst.fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
                assert!(worst <= 255.0 * PIXELS, "{name} {run:?}: {worst}");
            }
        }
    }
}

#[test]
fn a_pipeline_is_compiled_inspected_and_verified() {
    let shell = Shell::new();
    snapshot!("pipeline_inspect", shell.ok(&["inspect", SD15]).stdout);
    let compiled = shell.ok(&["compile", SD15, "--profile", "portable", "-o", "out"]);
    snapshot!("pipeline_compile", compiled.transcript());
    let mut files: Vec<String> = std::fs::read_dir(shell.path("out"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    snapshot!("pipeline_files", files.join("\n"));
    let verified = shell.ok(&["verify", "out", "--source", SD15]).stdout;
    for graph in ["target", "text_encoder", "vae_decoder"] {
        assert!(verified.contains(graph), "{verified}");
    }
}

#[test]
fn two_text_encoders_have_tokenizers_of_their_own() {
    let shell = Shell::new();
    let sdxl = fixture("pipelines/sdxl");
    let source = sdxl.to_str().unwrap();
    let compiled = shell.ok(&["compile", source, "--profile", "portable", "-o", "out"]);
    snapshot!(
        "pipeline_sdxl",
        compiled.transcript().replace(source, "sdxl")
    );
    let manifest = std::fs::read_to_string(shell.path("out/dlc.yaml")).unwrap();
    let prompts = manifest.split("\n  prompts:\n").nth(1).unwrap();
    let ours = |line: &&str| line.starts_with("    ");
    let prompts: Vec<&str> = prompts.lines().take_while(ours).collect();
    snapshot!("pipeline_sdxl_prompts", prompts.join("\n"));
    let verified = shell.ok(&["verify", "out", "--source", source]).stdout;
    for graph in ["target", "text_encoder", "text_encoder_2", "vae_decoder"] {
        assert!(verified.contains(graph), "{verified}");
    }
}

/// What a pass on the denoiser leaves of the other graphs.
/// The names in a folder and in those inside, sorted.
fn paths(folder: &std::path::Path, inside: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = format!("{inside}{}", entry.file_name().into_string().unwrap());
        if entry.path().is_dir() {
            paths.extend(self::paths(&entry.path(), &format!("{name}/")));
        } else {
            paths.push(name);
        }
    }
    paths.sort();
    paths
}

/// A line for each graph of a bundle: its file, its weights, its ports.
fn boundaries(shell: &Shell, bundle: &str) -> String {
    let bundle = Bundle::open(&shell.path(bundle)).unwrap();
    let mut told = String::new();
    for graph in &bundle.manifest().graphs {
        let ports = |ports: &[dlc_bundle::PortRecord]| {
            let port = |port: &dlc_bundle::PortRecord| {
                format!("{}: {}[{}]", port.name, port.dtype, port.shape.join(", "))
            };
            ports.iter().map(port).collect::<Vec<_>>().join("\n    ")
        };
        told += &format!(
            "{} in {}, weights in {}, latents divided by {:?}\n    {}\n  ->\n    {}\n",
            graph.name,
            graph.file,
            bundle.manifest().weights_of(graph),
            graph.latents_divisor,
            ports(&graph.inputs),
            ports(&graph.outputs)
        );
    }
    told
}

#[test]
fn pipelines_lie_as_optimum_reads_them_and_stay_bundles() {
    let shell = Shell::new();
    let recorded = |name: &str| {
        let mut all = PipelineGolden::all().into_iter();
        all.find(|golden| golden.name == name).unwrap()
    };
    for name in ["sd15", "sdxl"] {
        let source = fixture(&format!("pipelines/{name}"));
        let source = source.to_str().unwrap();
        let compile = ["compile", source, "--profile", "portable", "-o", "flat"];
        shell.ok(&[&compile[..], &["--force"]].concat());
        let compile = ["compile", source, "--deploy", "optimum", "-o", name];
        let compiled = shell.ok(&compile).transcript().replace(source, name);
        let listing = paths(&shell.path(name), "").join("\n");
        let told = [compiled, listing, boundaries(&shell, name)].join("\n");
        snapshot!(format!("pipeline_optimum_{name}"), told);
        let checks = shell.ok(&["verify", name, "--source", source]).stdout;
        assert!(checks.contains("vae_decoder"), "{checks}");
        shell.write(
            "noise.safetensors",
            noise_file(recorded(name).recorded().noise(0)),
        );
        let [flat, own] = ["flat", name].map(|bundle| {
            let sample = ["sample", bundle, "--prompt", "hello", "--steps", "3"];
            let files = ["--noise", "noise.safetensors", "-o", "x.png"];
            shell.ok(&[&sample[..], &files].concat());
            planes(&std::fs::read(shell.path("x.png")).unwrap())
        });
        let worst = flat.iter().zip(&own).map(|(a, b)| (a - b).abs());
        assert!(worst.fold(0f32, f32::max) <= 1.0, "{name}");
        shell.ok(&["inspect", name]);
        // The folder is replaced like that of any bundle.
        shell.ok(&[&compile[..], &["--force"]].concat());
    }
    let mut weights = std::fs::read(shell.path("sd15/vae_decoder/model.onnx_data")).unwrap();
    weights[100] ^= 1;
    shell.write("sd15/vae_decoder/model.onnx_data", weights);
    let changed = shell.dlc(&["verify", "sd15"]).stderr;
    assert!(changed.contains("vae_decoder/model.onnx_data"), "{changed}");
}

#[test]
fn optimum_finds_the_keys_that_it_reads_in_older_files_too() {
    let shell = Shell::new();
    let edited = |[from, name]: [&str; 2], file: &str, [old, new]: [&str; 2]| {
        let path = shell.path(&format!("{name}/{file}"));
        if !path.exists() {
            shell.copy(&fixture(&format!("pipelines/{from}")), name);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(old), "{text}");
        std::fs::write(path, text.replace(old, new)).unwrap();
    };
    let old = ["sd15", "old"];
    edited(
        old,
        "vae/config.json",
        ["  \"scaling_factor\": 0.18215,\n", ""],
    );
    edited(
        old,
        "unet/config.json",
        ["  \"time_cond_proj_dim\": null,\n", ""],
    );
    let checker = "\"safety_checker\": [\n    null,\n    null\n  ]";
    let there = "\"safety_checker\": [\n    \"stable_diffusion\",\n    \"StableDiffusionSafetyChecker\"\n  ]";
    edited(old, "model_index.json", [checker, there]);
    shell.ok(&["compile", "old", "--deploy", "optimum", "-o", "out"]);
    shell.ok(&[
        "compile",
        "fixtures/pipelines/sdxl",
        "--deploy",
        "optimum",
        "-o",
        "xl",
    ]);
    let read = |path: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(shell.path(path)).unwrap()).unwrap()
    };
    let [vae, xl] = ["out", "xl"].map(|out| read(&format!("{out}/vae_decoder/config.json")));
    assert_eq!(vae["scaling_factor"], 0.18215);
    // What the graph takes into account itself.
    assert_eq!(xl["scaling_factor"], 0.5);
    assert!(xl["latents_mean"].is_null() && xl["latents_std"].is_null());
    let unet = read("out/unet/config.json");
    assert!(unet.as_object().unwrap().contains_key("time_cond_proj_dim"));
    let index = read("out/model_index.json");
    assert!(index["safety_checker"][0].is_null() && !index["unet"][0].is_null());
    let same = |file: &str, source: &str| {
        let source = fixture(&format!("pipelines/sd15/{source}"));
        let own = std::fs::read(shell.path(&format!("out/{file}"))).unwrap();
        assert!(own == std::fs::read(source).unwrap(), "{file}");
    };
    same("text_encoder/config.json", "text_encoder/config.json");
    same(
        "scheduler/scheduler_config.json",
        "scheduler/scheduler_config.json",
    );
    same("tokenizer/merges.txt", "tokenizer/merges.txt");
}

#[test]
fn a_pruned_pipeline_for_optimum_says_what_is_left_aside() {
    let shell = Shell::new();
    let skip = ["--pass", "skip:interval=2,steps=6"];
    let compile = ["compile", SD15, "--deploy", "optimum", "-o", "out"];
    let compiled = shell.ok(&[&compile[..], &skip].concat()).stderr;
    assert!(
        compiled.contains("optimum runs the whole denoiser, unet/model.onnx"),
        "{compiled}"
    );
    let sample = ["sample", "out", "--prompt", "hello", "--steps", "6"];
    let made = shell.ok(&[&sample[..], &["-o", "x.png", "--json"]].concat());
    assert!(made.json()["macs"].as_f64().unwrap() < 0.8);
    shell.ok(&["verify", "out"]);
}

#[test]
fn blocks_of_the_denoiser_are_skipped_and_the_other_graphs_stay() {
    let shell = Shell::new();
    shell.ok(&["compile", SD15, "-o", "whole"]);
    shell.ok(&[
        "compile",
        SD15,
        "--pass",
        "skip:interval=2,steps=6",
        "-o",
        "quick",
    ]);
    let file = |bundle: &str, name: &str| {
        std::fs::read(shell.path(&format!("{bundle}/{name}.onnx"))).unwrap()
    };
    for graph in ["text_encoder", "vae_decoder"] {
        let node_count = |bundle: &str| {
            let path = format!("{bundle}/{graph}.onnx");
            shell.ok(&["inspect", &path, "--json"]).json()["operators"].clone()
        };
        assert_eq!(node_count("whole"), node_count("quick"), "{graph}");
        assert!(!file("quick", graph).is_empty());
    }
    let make = |bundle: &str, more: &[&str]| {
        let args = [
            "sample", bundle, "--prompt", "hello", "--steps", "6", "-o", "x.png", "--json",
        ];
        shell.ok(&[&args[..], more].concat()).json()
    };
    let (pruned, whole) = (make("quick", &[]), make("quick", &["--no-prune"]));
    assert!(
        pruned["macs"].as_f64().unwrap() < 0.8 && whole["macs"] == 1.0,
        "{pruned}"
    );
    assert_eq!(pruned["height"], 16);
}

#[test]
fn a_prompt_is_encoded_once_and_a_batch_is_its_images_one_by_one() {
    let shell = Shell::new();
    shell.ok(&["compile", SD15, "-o", "out"]);
    let picture = |args: &[&str]| {
        let common = [
            "sample", "out", "--prompt", "hello", "--steps", "2", "--scale", "1",
        ];
        shell.ok(&[&common[..], args, &["-o", "x.png"]].concat());
        let png = std::fs::read(shell.path("x.png")).unwrap();
        planes(&png)
    };
    let both = picture(&["--count", "2", "--seed", "5"]);
    let second = picture(&["--seed", "6"]);
    // Two pictures of 16 stand side by side, a pixel apart.
    let right: Vec<f32> = both.chunks(33).flat_map(|row| row[17..].to_vec()).collect();
    let worst = right.iter().zip(&second).map(|(a, b)| (a - b).abs());
    assert!(worst.fold(0f32, f32::max) <= 1.0);
}

/// A copy of a pipeline, less a file or a folder.
fn without(shell: &Shell, [from, name]: [&str; 2], gone: &str) -> String {
    shell.copy(&fixture(&format!("pipelines/{from}")), name);
    let path = shell.path(&format!("{name}/{gone}"));
    if path.is_dir() {
        std::fs::remove_dir_all(path).unwrap();
    } else {
        std::fs::remove_file(path).unwrap();
    }
    name.to_owned()
}

/// A copy of a pipeline with another text in one of its files.
fn edited(shell: &Shell, [pipeline, name]: [&str; 2], file: &str, [from, to]: [&str; 2]) -> String {
    shell.copy(&fixture(&format!("pipelines/{pipeline}")), name);
    let path = shell.path(&format!("{name}/{file}"));
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(path, text.replace(from, to)).unwrap();
    name.to_owned()
}

#[test]
fn what_pipelines_and_prompts_can_not_be_is_refused_or_noted() {
    let shell = Shell::new();
    shell.ok(&["compile", SD15, "-o", "out"]);
    shell.ok(&["compile", &format!("{SD15}/unet"), "-o", "unet"]);
    let without = |name, gone| without(&shell, ["sd15", name], gone);
    let edited = |name, file, from, to| edited(&shell, ["sd15", name], file, [from, to]);
    let no_vae = without("no-vae", "vae");
    let flux = edited(
        "flux",
        "model_index.json",
        "StableDiffusionPipeline",
        "FluxPipeline",
    );
    let tiny = edited(
        "tiny",
        "vae/config.json",
        "AutoencoderKL",
        "AutoencoderTiny",
    );
    let shifted = edited(
        "shifted",
        "vae/config.json",
        "\"shift_factor\": null",
        "\"shift_factor\": 0.5",
    );
    let wide = edited(
        "wide",
        "text_encoder/config.json",
        "\"hidden_size\": 32",
        "\"hidden_size\": 64",
    );
    let bare = without("bare", "tokenizer/merges.txt");
    let long = "one two three four five six seven eight nine ten eleven twelve";
    let refused: [&[&str]; 9] = [
        &["compile", &no_vae, "-o", "x"],
        &["compile", &flux, "-o", "x"],
        &["compile", &tiny, "-o", "x"],
        &["compile", &wide, "-o", "x"],
        &["sample", "unet", "--prompt", "hello", "-o", "x.png"],
        &["sample", "out", "-o", "x.png"],
        &["sample", "out", "--negative-prompt", "hello", "-o", "x.png"],
        &[
            "sample",
            "out",
            "--prompt",
            "a",
            "--negative-prompt",
            "b",
            "--guidance",
            "1",
            "-o",
            "x.png",
        ],
        &[
            "sample",
            "out",
            "--prompt",
            "a",
            "--noise",
            "fixtures/pipelines/sd15/golden.safetensors",
            "-o",
            "x.png",
        ],
    ];
    let mut transcripts = Vec::new();
    for args in refused {
        let outcome = shell.dlc(args);
        assert!(
            matches!(outcome.code, Some(2 | 3)),
            "{}",
            outcome.transcript()
        );
        assert!(!shell.path("x").exists() && !shell.path("x.png").exists());
        transcripts.push(outcome.transcript());
    }
    for folder in [&shifted, &bare] {
        let out = format!("{folder}-bundle");
        transcripts.push(shell.ok(&["compile", folder, "-o", &out]).transcript());
    }
    let cut = shell.ok(&[
        "sample", "out", "--prompt", long, "--steps", "1", "-o", "x.png",
    ]);
    transcripts.push(cut.stderr.lines().next().unwrap_or_default().to_owned());
    let lost = shell.dlc(&["sample", "bare-bundle", "--prompt", "a", "-o", "y.png"]);
    transcripts.push(lost.transcript());
    snapshot!("pipeline_misfits", transcripts.join("\n"));
}

#[test]
fn parts_of_two_text_encoders_that_do_not_fit_are_refused_with_the_way_out() {
    let shell = Shell::new();
    let edited = |name: &str, file: &str, from: &str, to: &str| {
        edited(&shell, ["sdxl", name], file, [from, to])
    };
    let index = "model_index.json";
    let zeros = "\"force_zeros_for_empty_prompt\": true";
    let refiner = "\"requires_aesthetics_score\": true";
    let refiner = format!("{zeros}, {refiner}");
    let refiner = edited("refiner", index, zeros, &refiner);
    let image = edited("image", index, "XLPipeline", "XLImg2ImgPipeline");
    let odd = edited("odd", index, zeros, "\"force_zeros_for_empty_prompt\": 1");
    let swapped = edited(
        "swapped",
        index,
        "CLIPTextModelWithProjection",
        "CLIPTextModel",
    );
    let lost = without(&shell, ["sdxl", "lost"], "tokenizer_2");
    let pooled = edited(
        "pooled",
        "text_encoder_2/config.json",
        "\"projection_dim\": 10",
        "\"projection_dim\": 12",
    );
    let mut transcripts = Vec::new();
    for folder in [refiner, image, odd, swapped, lost, pooled] {
        let outcome = shell.dlc(&["compile", &folder, "-o", "x"]);
        assert!(
            matches!(outcome.code, Some(2 | 3)),
            "{}",
            outcome.transcript()
        );
        transcripts.push(outcome.transcript());
    }
    let short = edited(
        "short",
        "tokenizer_2/tokenizer_config.json",
        "\"model_max_length\": 16",
        "\"model_max_length\": 12",
    );
    let foreign = edited(
        "foreign",
        "tokenizer_2/vocab.json",
        "\"<|endoftext|>\": 601",
        "\"<|endoftext|>\": 700",
    );
    let bare = without(&shell, ["sdxl", "bare"], "tokenizer_2/merges.txt");
    let warned = shell.ok(&["compile", &bare, "-o", "bundle"]).stderr;
    transcripts.extend(
        warned
            .lines()
            .filter(|l| l.contains("tokenizer_2:"))
            .map(str::to_owned),
    );
    for folder in [short, foreign, bare] {
        shell.ok(&["compile", &folder, "-o", "bundle", "--force"]);
        let outcome = shell.dlc(&["sample", "bundle", "--prompt", "a", "-o", "x.png"]);
        assert!(
            matches!(outcome.code, Some(2 | 3)),
            "{}",
            outcome.transcript()
        );
        transcripts.push(outcome.transcript());
    }
    snapshot!("pipeline_sdxl_misfits", transcripts.join("\n"));
}

/// Every fixture of the folder is a golden, and its prompts become the tokens that diffusers reads.
#[test]
fn every_pipeline_of_the_fixtures_has_the_tokens_of_diffusers() {
    let backend = start(&BackendSearch {
        force: Some(BackendKind::Tract),
        ..BackendSearch::default()
    })
    .unwrap();
    for name in folders("pipelines") {
        let golden = PipelineGolden::all().into_iter().find(|g| g.name == name);
        let golden = golden.unwrap();
        let recorded = golden.recorded();
        let wanted = recorded.tokens();
        assert_eq!(wanted.is_empty(), recorded.prompts.is_empty(), "{name}");
        if wanted.is_empty() {
            continue;
        }
        let shell = Shell::new();
        shell.ok(&["compile", golden.folder.to_str().unwrap(), "-o", "out"]);
        let bundle = Bundle::open(&shell.path("out")).unwrap();
        let options = SessionOptions::default();
        let encoder = PromptEncoder::open(&backend, &bundle, None, &options).unwrap();
        let texts = &recorded.texts;
        for (graph, rows) in wanted {
            let rows = rows.iter().flat_map(|ids| {
                let length = ids.shape()[1];
                let ids = ids.as_i64().unwrap().chunks(length);
                ids.map(<[i64]>::to_vec).collect::<Vec<_>>()
            });
            for (text, row) in texts.iter().zip(rows) {
                let all = encoder.token_ids(text).unwrap();
                let (_, found) = all.iter().find(|(other, _)| *other == graph).unwrap();
                let found: Vec<i64> = found.iter().map(|id| i64::from(*id)).collect();
                assert_eq!(found, row, "{name} {graph} {text:?}");
            }
        }
    }
}
