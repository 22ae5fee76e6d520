//! Pictures that start from a picture: `dlc sample --init-image`, and `dlc demo images`.

use std::fs;

use crate::command::{Shell, snapshot};
use crate::common::fixture;
use crate::common::pipelines::{PIXELS, PipelineGolden};
use crate::pipelines::{as_pixels, noise_file, planes};

/// An image of -1 to 1, plane by plane, as a PNG file.
fn png_of(image: &[f32], side: usize) -> Vec<u8> {
    let levels = as_pixels(image);
    let plane = side * side;
    let pixels: Vec<u8> = (0..plane)
        .flat_map(|at| [0, 1, 2].map(|c| levels[c * plane + at] as u8))
        .collect();
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, side as u32, side as u32);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&pixels).unwrap();
    writer.finish().unwrap();
    bytes
}

/// Rounding to the levels of a file moves what the encoder makes of it, so pictures may be twice as
/// far as those from recorded latents.
#[test]
fn a_picture_leads_to_the_pictures_that_diffusers_makes_from_it() {
    let shell = Shell::new();
    for golden in PipelineGolden::all() {
        let Some(recorded) = golden.recorded_of_image() else {
            continue;
        };
        let name = golden.name.as_str();
        shell.ok(&["compile", golden.folder.to_str().unwrap(), "-o", name]);
        let image = recorded.tensor("vae_encoder<images").as_f32().unwrap();
        shell.write("start.png", png_of(&image[..image.len() / 2], 16));
        let strength = recorded.image.as_ref().unwrap().1.to_string();
        let (steps, guidance) = (recorded.steps.to_string(), recorded.guidance.to_string());
        for run in recorded.runs() {
            let expected = &run.pictures[..run.pictures.len() / recorded.pictures()];
            shell.write("noise.safetensors", noise_file(recorded.noise(0)));
            let what = [
                "sample",
                name,
                "--prompt",
                &recorded.prompts[0],
                "--init-image",
                "start.png",
            ];
            let how = [
                "--strength",
                &strength,
                "--steps",
                &steps,
                "--guidance",
                &guidance,
            ];
            let more = [
                "--scheduler",
                run.scheduler,
                "--noise",
                "noise.safetensors",
                "--scale",
                "1",
            ];
            let to = ["-o", "x.png", "--backend", "tract"];
            shell.ok(&[&what[..], &how, &more, &to].concat());
            let found = planes(&fs::read(shell.path("x.png")).unwrap());
            let apart = found
                .iter()
                .zip(as_pixels(expected))
                .map(|(a, b)| (a - b).abs());
            let worst = apart.fold(0f32, f32::max);
            assert!(
                worst <= 2.0 * 255.0 * PIXELS,
                "{name} {}: {worst}",
                run.scheduler
            );
        }
    }
}

/// A photograph that lies on its side in its file, and the same turned by Pillow.
#[test]
fn photographs_are_read_the_way_up_that_the_camera_says() {
    let shell = Shell::new();
    shell.ok(&["compile", "fixtures/pipelines/sd15", "-o", "out"]);
    let picture = |file: &str| {
        let file = fixture(&format!("pictures/{file}"));
        let args = [
            "sample",
            "out",
            "--prompt",
            "hello",
            "--steps",
            "4",
            "--strength",
            "0.5",
        ];
        let from = [
            "--init-image",
            file.to_str().unwrap(),
            "--scale",
            "1",
            "-o",
            "x.png",
        ];
        let outcome = shell.ok(&[&args[..], &from].concat());
        assert!(
            outcome.stderr.contains("has 12 by 20 pixels"),
            "{}",
            outcome.stderr
        );
        planes(&fs::read(shell.path("x.png")).unwrap())
    };
    let [jpeg, png] = ["turned.jpg", "turned.png"].map(picture);
    let apart = jpeg.iter().zip(&png).map(|(a, b)| (a - b).abs());
    let mean = apart.sum::<f32>() / png.len() as f32;
    assert!(mean < 2.0, "{mean}");
}

#[test]
fn less_strength_stays_nearer_to_the_picture_and_takes_fewer_evaluations() {
    let shell = Shell::new();
    let pruned = ["--pass", "skip:interval=2,steps=6,scheduler=ddim"];
    let compile = ["compile", "fixtures/pipelines/sd15", "-o", "out"];
    shell.ok(&[&compile[..], &pruned].concat());
    let turned = fixture("pictures/turned.png");
    let made = |strength: &str| {
        let args = [
            "sample",
            "out",
            "--prompt",
            "hello",
            "--strength",
            strength,
            "--seed",
            "3",
        ];
        let from = ["--init-image", turned.to_str().unwrap(), "-o", "x.png"];
        let outcome = shell.ok(&[&args[..], &from, &["--json"]].concat());
        assert!(
            outcome
                .stderr
                .contains("the whole model runs at every step")
        );
        outcome.json()
    };
    let [little, much] = ["0.34", "1"].map(made);
    assert_eq!(
        (&little["evaluations"], &much["evaluations"]),
        (&2.into(), &6.into())
    );
    assert_eq!(
        (&little["pruned"], &little["strength"]),
        (&false.into(), &0.34.into())
    );
    let text = fs::read(shell.path("x.png")).unwrap();
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("Denoising strength: 1, "), "{text}");
}

#[test]
fn previews_are_for_terminals_and_change_nothing() {
    let shell = Shell::new();
    shell.ok(&["compile", "fixtures/pipelines/sd15", "-o", "out"]);
    let made = |more: &[&str]| {
        let args = ["sample", "out", "--prompt", "hello", "--steps", "4"];
        let outcome = shell.ok(&[&args[..], &["-o", "x.png"], more].concat());
        let picture = planes(&fs::read(shell.path("x.png")).unwrap());
        (picture, outcome)
    };
    let (plain, _) = made(&[]);
    let (watched, outcome) = made(&["--preview", "2"]);
    assert!(
        plain == watched && outcome.stdout == "x.png\n",
        "{}",
        outcome.transcript()
    );
    assert!(
        outcome
            .stderr
            .contains("stdout is no terminal: previews aren't shown")
    );
}

#[test]
fn pictures_that_nothing_can_start_from_are_refused() {
    let shell = Shell::new();
    shell.ok(&["compile", "fixtures/pipelines/sd15", "-o", "out"]);
    shell.ok(&["compile", "fixtures/digits-dit", "-o", "digits"]);
    let whole = fs::read(fixture("pictures/turned.jpg")).unwrap();
    shell.write("cut.jpg", &whole[..whole.len() / 2]);
    let png = fs::read(fixture("pictures/turned.png")).unwrap();
    shell.write("cut.png", &png[..png.len() / 2]);
    shell.write("text.png", "no picture");
    let turned = fixture("pictures/turned.png");
    let good = turned.to_str().unwrap();
    let commands: [&[&str]; 9] = [
        &["out", "--prompt", "hello", "--init-image", "nowhere.png"],
        &["out", "--prompt", "hello", "--init-image", "cut.jpg"],
        &["out", "--prompt", "hello", "--init-image", "cut.png"],
        &["out", "--prompt", "hello", "--init-image", "text.png"],
        &["out", "--prompt", "hello", "--strength", "0.5"],
        &[
            "out",
            "--prompt",
            "hello",
            "--init-image",
            good,
            "--strength",
            "0",
        ],
        &[
            "out",
            "--prompt",
            "hello",
            "--init-image",
            good,
            "--strength",
            "1.5",
        ],
        &[
            "out",
            "--prompt",
            "hello",
            "--init-image",
            good,
            "--steps",
            "4",
            "--strength",
            "0.2",
        ],
        &["digits", "--init-image", good],
    ];
    let mut text = String::new();
    for command in commands {
        let outcome = shell.dlc(&[&["sample"], command, &["-o", "x.png"]].concat());
        assert!(!shell.path("x.png").exists(), "{}", outcome.transcript());
        text += &outcome.transcript().replace(good, "turned.png");
    }
    snapshot!("init_image_refusals", text);
}

#[test]
fn the_demo_of_images_makes_both_pictures_and_leaves_the_file_alone() {
    let shell = Shell::new();
    // Of the repository nothing is there.
    fs::remove_file(shell.path("fixtures")).unwrap();
    let demo = [
        "demo",
        "images",
        "--prompt",
        "a dark coat",
        "--backend",
        "tract",
    ];
    let outcome = shell.ok(&demo);
    assert!(
        outcome.stdout.contains("35% of the multiply-adds")
            && outcome.stdout.contains("dlc-demo.png"),
        "{}",
        outcome.transcript()
    );
    assert_eq!(shell.listing(), ["dlc-demo.png"]);
    assert_eq!(fs::read_dir(shell.path(".env")).unwrap().count(), 1);
    let other = shell.dlc(&["demo", "images", "-o", "picture.txt"]);
    assert_eq!(other.code, Some(2), "{}", other.transcript());
}
