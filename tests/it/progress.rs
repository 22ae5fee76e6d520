//! What commands say of their progress: nothing when asked for quiet, phases while they run, and
//! what each phase took.

use std::process::Output;

use crate::command::{PRUNE_TINY, Shell, bundles};

const COMPILE: &[&str] = &[
    "compile",
    "fixtures/tiny-llama",
    "--no-cache",
    "-o",
    "out",
    "--pass",
];

/// Runs with progress on; stderr is no terminal.
fn watched(shell: &Shell, args: &[&str]) -> (Output, String) {
    let output = shell
        .command(args)
        .env_remove("DLC_PROGRESS")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(output.status.success(), "{text}");
    (output, text)
}

#[test]
fn a_long_command_says_what_it_is_doing() {
    let (_, stderr) = watched(
        &Shell::new(),
        &[COMPILE, &["fit-prune:drop=4,samples=24,length=128"]].concat(),
    );
    let line = stderr
        .lines()
        .find(|line| line.starts_with("fit-prune: "))
        .unwrap_or_else(|| panic!("{stderr}"));
    assert!(line.contains('/'), "{line}");
}

#[test]
fn reading_a_prompt_says_how_far_it_is() {
    let shell = bundles();
    let prompt = "In the beginning God created the heaven and the earth. ".repeat(12);
    let args = [
        "run",
        "portable",
        "--backend",
        "tract",
        "--no-draft",
        "--max-tokens",
        "1",
        "--prompt",
        &prompt,
        "-v",
    ];
    let (_, stderr) = watched(&shell, &args);
    assert!(
        stderr
            .lines()
            .any(|line| line.starts_with("reading the prompt: ") && line.ends_with(" at most")),
        "{stderr}"
    );
}

#[test]
fn quiet_leaves_the_result_alone() {
    let (output, stderr) = watched(&Shell::new(), &[COMPILE, &[PRUNE_TINY, "--quiet"]].concat());
    assert_eq!(
        (
            stderr.as_str(),
            String::from_utf8(output.stdout).unwrap().as_str()
        ),
        ("", "out\n")
    );
}

#[test]
fn verbose_says_what_each_phase_took() {
    let (_, stderr) = watched(&Shell::new(), &[COMPILE, &[PRUNE_TINY, "-v"]].concat());
    for phase in [
        "reading the checkpoint",
        "hashing and checking weights",
        "fit-prune",
        "writing the bundle",
    ] {
        assert!(
            stderr
                .lines()
                .any(|line| line.starts_with(&format!("{phase}: ")) && line.contains(" s")),
            "{phase}\n{stderr}"
        );
    }
}

#[test]
fn the_result_carries_seconds_and_memory_of_each_phase() {
    let shell = Shell::new();
    let report = shell
        .ok(&[COMPILE, &[PRUNE_TINY, "--json"]].concat())
        .json();
    let phases = report["phases"].as_array().unwrap();
    assert!(
        phases.iter().any(|phase| phase["name"] == "fit-prune"),
        "{report}"
    );
    for phase in phases {
        assert!(
            phase["seconds"].as_f64().is_some_and(|s| s >= 0.0),
            "{phase}"
        );
        assert!(
            !cfg!(target_os = "linux")
                || phase["peak_memory"]
                    .as_u64()
                    .is_some_and(|bytes| bytes > 1 << 20),
            "{phase}"
        );
    }
}

#[test]
fn what_the_work_needs_is_said_before_it() {
    let (_, stderr) = watched(&Shell::new(), &[COMPILE, &[PRUNE_TINY]].concat());
    let line = stderr.lines().next().unwrap();
    assert!(
        line.starts_with("needs about 10 MB on disk (") && line.contains(" of memory ("),
        "{line}"
    );
}

#[test]
fn a_dry_run_says_what_is_needed_and_writes_nothing() {
    let shell = Shell::new();
    let report = shell
        .ok(&[COMPILE, &[PRUNE_TINY, "--dry-run", "--json"]].concat())
        .json();
    let weights = std::fs::metadata(shell.path("fixtures/tiny-llama/model.safetensors"))
        .unwrap()
        .len();
    // bf16 in the checkpoint, f32 in the bundle; the scores need more memory than the largest
    // weight.
    let disk = report["disk"].as_u64().unwrap();
    assert!(
        (2 * weights - 65_536..=2 * weights).contains(&disk),
        "{report}, {weights} bytes of weights"
    );
    assert!(report["memory"].as_u64().unwrap() > 1 << 20, "{report}");
    assert_eq!(shell.listing(), Vec::<String>::new());
}
