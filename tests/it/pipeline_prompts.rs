//! The command on pipelines: many prompts, sizes, what a picture's file says of itself, and dip-go
//! on prompts.

use dlc_eval::Array;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use serde_json::Value;

use crate::command::{Shell, snapshot};
use crate::common::pipelines::PipelineGolden;

const SD15: &str = "fixtures/pipelines/sd15";

/// The numbers that a sampler left, image after image.
fn latents(shell: &Shell, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(shell.path(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor("latents").unwrap();
    let numbers = tensor.data().chunks_exact(4);
    let numbers = numbers.map(|x| f32::from_le_bytes(x.try_into().unwrap()));
    (tensor.shape().to_vec(), numbers.collect())
}

#[test]
fn prompts_of_a_file_make_images_of_their_own() {
    let shell = Shell::new();
    shell.ok(&["compile", SD15, "-o", "out"]);
    shell.write(
        "prompts.jsonl",
        "{\"prompt\": \"hello\"}\n{\"prompt\": \"one two\"}\n",
    );
    let make = |args: &[&str]| {
        let common = [
            "sample",
            "out",
            "--steps",
            "2",
            "-o",
            "x.png",
            "--latents",
            "x.safetensors",
            "--json",
        ];
        let report = shell.ok(&[&common[..], args].concat()).json();
        (report, latents(&shell, "x.safetensors"))
    };
    let (report, (shape, both)) = make(&["--prompts", "prompts.jsonl", "--count", "2"]);
    assert_eq!(shape, [4, 4, 8, 8]);
    assert_eq!(report["prompts"], serde_json::json!(["hello", "one two"]));
    for (image, prompt) in ["hello", "hello", "one two", "one two"].iter().enumerate() {
        let seed = image.to_string();
        let (_, (_, alone)) = make(&["--prompt", prompt, "--seed", &seed]);
        let own = &both[image * alone.len()..][..alone.len()];
        let worst = own.iter().zip(&alone).map(|(a, b)| (a - b).abs());
        assert!(worst.fold(0f32, f32::max) < 1e-3, "{image}");
    }
}

/// The texts in a PNG, by keyword.
fn texts(png: &[u8]) -> Vec<(String, String)> {
    let reader = png::Decoder::new(std::io::Cursor::new(png))
        .read_info()
        .unwrap();
    let texts = reader.info().utf8_text.iter();
    texts
        .map(|chunk| (chunk.keyword.clone(), chunk.get_text().unwrap()))
        .collect()
}

#[test]
fn sizes_are_pixels_and_a_picture_says_how_it_was_made() {
    let shell = Shell::new();
    shell.ok(&["compile", SD15, "-o", "out"]);
    let sample = [
        "sample",
        "out",
        "--prompt",
        "déjà vu",
        "--negative-prompt",
        "a boot",
        "--steps",
        "2",
        "--scale",
        "1",
    ];
    let report = shell.ok(&[&sample[..], &["--height", "24", "-o", "x.png", "--json"]].concat());
    let report = report.json();
    assert_eq!(
        (&report["height"], &report["width"]),
        (&Value::from(24), &Value::from(16))
    );
    assert_eq!(report["guidance"], 7.5);
    let png = std::fs::read(shell.path("x.png")).unwrap();
    let about = texts(&png);
    assert_eq!(about.len(), 1);
    let (keyword, text) = &about[0];
    let (text, hash) = (text.clone(), {
        let from = text.find("Model hash: ").unwrap() + "Model hash: ".len();
        text[from..].split(',').next().unwrap().to_owned()
    });
    assert_eq!((keyword.as_str(), hash.len()), ("parameters", 64));
    snapshot!("pipeline_png_text", text.replace(&hash, "[HASH]"));
    let odd = shell.dlc(&[&sample[..], &["--width", "15", "-o", "y.png"]].concat());
    assert!(odd.code == Some(2) && !shell.path("y.png").exists());
    snapshot!("pipeline_odd_size", odd.transcript());
}

/// The hidden states of two prompts and of the empty text, as a file of embeddings.
fn embeddings(golden: &PipelineGolden) -> Vec<u8> {
    let recorded = golden.recorded();
    let file = |array: &Array, rows: usize| {
        let shape = [rows, array.shape()[1], array.shape()[2]];
        let numbers = &array.as_f32().unwrap()[..shape.iter().product()];
        (
            shape.to_vec(),
            numbers
                .iter()
                .flat_map(|x| x.to_le_bytes())
                .collect::<Vec<u8>>(),
        )
    };
    let (shape, told) = file(recorded.tensor("text_hidden"), 2);
    let (none, empty) = file(recorded.tensor("text_hidden_empty"), 1);
    let view = |shape, bytes| TensorView::new(Dtype::F32, shape, bytes).unwrap();
    let tensors = [
        ("encoder_hidden_states", view(shape, &told)),
        ("negative_encoder_hidden_states", view(none, &empty)),
    ];
    serialize(tensors, None).unwrap()
}

/// What dip-go does on prompts is what it does on their hidden states, as transformers made them.
#[test]
fn dip_go_learns_on_prompts_and_on_pictures() {
    let shell = Shell::new();
    let golden = PipelineGolden::all().into_iter().find(|g| g.name == "sd15");
    let golden = golden.unwrap();
    shell.write("texts.safetensors", embeddings(&golden));
    shell.write("prompts.txt", golden.recorded().prompts[..2].join("\n"));
    let learn = |options: &str, out: &str| {
        let pass = format!("dip-go:steps=4,rounds=1,iterations=1,batch=1,{options}");
        shell.ok(&["compile", SD15, "--pass", &pass, "-o", out]);
        let manifest = std::fs::read_to_string(shell.path(&format!("{out}/dlc.yaml"))).unwrap();
        serde_yaml::from_str::<Value>(&manifest).unwrap()
    };
    let on_prompts = learn("macs=0.6,prompts=prompts.txt", "a");
    let on_states = learn("macs=0.6,embeddings=texts.safetensors", "b");
    let schedule = |manifest: &Value| manifest["sampling"]["schedule"].clone();
    assert_eq!(schedule(&on_prompts), schedule(&on_states));
    assert_eq!(on_prompts["sampling"]["guidance"], 7.5);
    let consistency = |manifest: &Value| manifest["passes"][0]["report"]["consistency"].to_string();
    let pictures = consistency(&on_prompts);
    assert!(pictures.contains("(1 - SSIM of pictures)"), "{pictures}");
    let in_latents = consistency(&learn("macs=0.6,prompts=prompts.txt,loss=latent", "c"));
    assert!(in_latents.contains("(mean square)"), "{in_latents}");
    let as_stages = learn("macs=0.574,granularity=stage,loss=image,distance=mse", "d");
    assert_eq!(as_stages["sampling"]["schedule"]["granularity"], "layer");
    let distance = consistency(&as_stages);
    assert!(distance.contains("(mean square of pictures)"), "{distance}");
    shell.ok(&["sample", "a", "--prompt", "hello", "-o", "x.png"]);
    let bench = [
        "bench",
        "a",
        "--prompts",
        "prompts.txt",
        "--count",
        "3",
        "--repeats",
        "1",
        "--json",
    ];
    let bench = shell.ok(&bench).json();
    for figure in ["psnr", "ssim", "encoding_seconds", "speedup"] {
        assert!(
            bench[figure].as_f64().is_some_and(f64::is_finite),
            "{figure}: {bench}"
        );
    }
    assert!(bench["pruned"]["decoding_seconds"].as_f64().unwrap() > 0.0);
}

#[test]
fn prompts_that_dip_go_can_not_learn_on_are_refused() {
    let shell = Shell::new();
    shell.write("empty.txt", "\n\n");
    shell.write("bad.jsonl", "{\"prompt\": \"a\"}\n{\"text\": 3}\n");
    let mut transcripts = Vec::new();
    for (model, options) in [
        (SD15, "prompts=empty.txt"),
        (SD15, "prompts=bad.jsonl"),
        (SD15, "prompts=nowhere.txt"),
        (SD15, "prompts=empty.txt,embeddings=texts.safetensors"),
        ("fixtures/pipelines/sd15/unet", "loss=image"),
        ("fixtures/digits-dit", "prompts=empty.txt"),
    ] {
        let pass = format!("dip-go:{options}");
        let outcome = shell.dlc(&["compile", model, "--pass", &pass, "-o", "out"]);
        assert!(
            matches!(outcome.code, Some(2 | 3)),
            "{}",
            outcome.transcript()
        );
        assert!(!shell.path("out").exists());
        transcripts.push(outcome.transcript());
    }
    snapshot!("pipeline_dip_go_refusals", transcripts.join("\n"));
}
