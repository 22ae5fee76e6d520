//! Solvers that `fit-solver` puts in a scheduler's place, from checkpoint to image.

use dlc::quality::mean_psnr;
use dlc_runtime::read_tensors;
use serde_json::Value;

use crate::command::{Outcome, Shell};

const FIT: &str = "fit-solver:steps=4,reference=12,samples=12";

fn compile(shell: &Shell, passes: &[&str], out: &str, more: &[&str]) {
    let flags: Vec<&str> = passes.iter().flat_map(|pass| ["--pass", pass]).collect();
    let args = ["compile", "fixtures/digits-dit", "-o", out, "--force"];
    shell.ok(&[&args[..], &flags, more].concat());
}

/// Eight images, and the report.
fn images(shell: &Shell, bundle: &str, flags: &[&str]) -> (Vec<Vec<f32>>, Value) {
    let args = ["sample", bundle, "--class", "7", "--count", "8", "--json"];
    let files = [
        "--latents",
        "x.safetensors",
        "-o",
        "x.png",
        "--backend",
        "tract",
    ];
    let outcome = shell.ok(&[&args[..], &files, flags].concat());
    let tensors = read_tensors(&shell.path("x.safetensors")).unwrap();
    let numbers = tensors["latents"].data.chunks(64);
    let report = serde_json::from_str(&outcome.stdout).unwrap();
    (numbers.map(<[f32]>::to_vec).collect(), report)
}

/// What comes of sampling the bundle `solved`.
fn sample(shell: &Shell, flags: &[&str]) -> Outcome {
    let args = [
        "sample",
        "solved",
        "--class",
        "7",
        "-o",
        "x.png",
        "--backend",
        "tract",
    ];
    shell.dlc(&[&args[..], flags].concat())
}

fn psnr(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    mean_psnr(a.iter().map(Vec::as_slice), b.iter().map(Vec::as_slice)).unwrap_or(f64::INFINITY)
}

#[test]
fn a_solver_makes_the_schedulers_images_in_a_third_of_the_evaluations() {
    let shell = Shell::new();
    compile(&shell, &[FIT], "solved", &[]);
    let (own, report) = images(&shell, "solved", &[]);
    assert_eq!(
        (&report["evaluations"], &report["whole_evaluations"]),
        (&4.into(), &12.into())
    );
    assert!(
        (report["macs"].as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-9,
        "{report}"
    );
    let (whole, report) = images(&shell, "solved", &["--no-prune"]);
    assert_eq!(report["evaluations"], 12);
    let (fewer, _) = images(&shell, "solved", &["--no-prune", "--steps", "4"]);
    let (fitted, plain) = (psnr(&own, &whole), psnr(&fewer, &whole));
    assert!(
        fitted > plain + 6.0,
        "{fitted:.1} dB, and 4 steps of DDIM {plain:.1} dB"
    );
    let inspected = shell.ok(&["inspect", "solved"]).stdout;
    let told = "sampled by a solver fitted for 12 steps of ddim, guidance 1.5: 4 evaluations";
    assert!(inspected.contains(told), "{inspected}");

    compile(&shell, &[&format!("{FIT},unroll=true")], "one", &[]);
    let (unrolled, _) = images(&shell, "one", &[]);
    assert!(psnr(&own, &unrolled) > 90.0);
}

#[test]
fn a_solver_is_for_its_scheduler_steps_and_guidance() {
    let shell = Shell::new();
    compile(&shell, &[FIT], "solved", &[]);
    let mut transcripts = vec![];
    for flags in [
        &["--steps", "4"][..],
        &["--scheduler", "euler"],
        &["--guidance", "3"],
        &["--init-image", "x.png"],
    ] {
        let outcome = sample(&shell, flags);
        let said = outcome
            .stderr
            .lines()
            .find(|line| line.contains("fitted") || line.contains("pruned"));
        transcripts.push(format!(
            "{}: {:?} {}",
            flags.join(" "),
            outcome.code,
            said.unwrap_or_default()
        ));
    }
    insta::assert_snapshot!(transcripts.join("\n"));
}

#[test]
fn a_fitted_bundle_is_the_same_again_whatever_the_threads() {
    let pass = "fit-solver:steps=3,reference=6,samples=5";
    let arguments = ["fixtures/digits-dit", "--pass", pass, "--no-cache"];
    Shell::new().compile_alike_on_any_threads(&arguments, "solved");
}

#[test]
fn blocks_are_skipped_within_a_solvers_evaluations() {
    let shell = Shell::new();
    let skip = "skip:steps=12,interval=2,reuse=linear";
    compile(&shell, &[FIT, skip], "both", &[]);
    let (_, report) = images(&shell, "both", &[]);
    assert_eq!(report["evaluations"], 4);
    let macs = report["macs"].as_f64().unwrap();
    assert!((0.16..0.18).contains(&macs), "{macs}");
    shell.ok(&["verify", "both"]);
}

#[test]
fn a_solver_that_a_manifest_makes_up_is_refused() {
    let shell = Shell::new();
    compile(&shell, &[FIT], "solved", &[]);
    let manifest = std::fs::read_to_string(shell.path("solved/dlc.yaml")).unwrap();
    for (from, to, part) in [
        ("- at: 0\n", "- at: 3\n", "begins with step 0"),
        ("- at: 0\n", "- at: 99\n", "begins with step 0"),
        ("latents: ", "latents: .nan #", "finite"),
    ] {
        shell.write("solved/dlc.yaml", manifest.replacen(from, to, 1));
        let outcome = sample(&shell, &[]);
        let refused = outcome.code == Some(2) && outcome.stderr.contains(part);
        assert!(refused, "{}", outcome.transcript());
    }
}
