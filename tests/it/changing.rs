//! Files that change while dlc reads them: cut short, written to, replaced.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Child;
use std::thread::sleep;
use std::time::Duration;

use crate::atomic::{entries, wait_for};
use crate::command::{Outcome, Shell};
use crate::common::fixture;

const SCORING: [&str; 7] = [
    "compile",
    "model",
    "-o",
    "work/out",
    "--pass",
    "fit-prune:samples=64",
    "--no-cache",
];

/// A shell with a checkpoint of its own in `model`.
fn shell() -> Shell {
    let shell = Shell::new();
    shell.copy(&fixture("tiny-llama"), "model");
    shell
}

/// Waits until the command has mapped a file.
fn maps(child: &mut Child, file: &Path) -> bool {
    let (maps, file) = (
        format!("/proc/{}/maps", child.id()),
        file.display().to_string(),
    );
    wait_for(child, || {
        fs::read_to_string(&maps)
            .unwrap_or_default()
            .contains(&file)
    })
}

fn cut(file: &Path) {
    OpenOptions::new()
        .write(true)
        .open(file)
        .unwrap()
        .set_len(30_000)
        .unwrap();
}

/// Starts a command, does something to a file once it is mapped, and waits for the end.
fn meanwhile(shell: &Shell, args: &[&str], file: &str, change: impl Fn(&Path)) -> Outcome {
    let mut child = shell.start(args);
    let path = fs::canonicalize(shell.path(file)).unwrap();
    if maps(&mut child, &path) {
        change(&path);
    }
    shell.outcome(args, &child.wait_with_output().unwrap())
}

#[test]
fn a_checkpoint_that_is_cut_short_while_it_is_scored_is_named() {
    let shell = shell();
    let outcome = meanwhile(&shell, &SCORING, "model/model.safetensors", cut);
    assert_eq!(outcome.code, Some(2), "{}", outcome.transcript());
    assert!(
        outcome
            .stderr
            .contains("error: model/model.safetensors was cut short while it was read"),
        "{}",
        outcome.transcript()
    );
    assert!(!shell.path("work/out").exists());
    // What it may have left is removed by the next run.
    shell.ok(&["compile", "fixtures/tiny-llama", "-o", "work/out"]);
    assert_eq!(entries(&shell.path("work")), ["out"]);
}

#[test]
fn weights_that_are_cut_short_end_no_command_without_a_word() {
    let shell = Shell::new();
    shell.ok(&[
        "compile",
        "fixtures/tiny-llama",
        "--profile",
        "onnx",
        "-o",
        "good",
    ]);
    shell.ok(&[
        "compile",
        "fixtures/tiny-llama",
        "--profile",
        "onnx",
        "-o",
        "other",
        "--dtype",
        "f16",
    ]);
    let commands: [&[&str]; 3] = [
        &["verify", "bundle", "--backend", "tract"],
        &["diff", "bundle", "other"],
        &[
            "run",
            "bundle",
            "--backend",
            "tract",
            "--prompt",
            "In the beginning",
            "--max-tokens",
            "64",
        ],
    ];
    let mut named = 0;
    for args in commands {
        for delay in [0, 20, 60, 150, 400] {
            shell.copy(&shell.path("good"), "bundle");
            let outcome = meanwhile(&shell, args, "bundle/weights.bin", |path| {
                sleep(Duration::from_millis(delay));
                cut(path);
            });
            // It may have read all that it needs by then, or have noticed another way.
            let code = outcome
                .code
                .unwrap_or_else(|| panic!("{delay} ms: {}", outcome.transcript()));
            assert!(code <= 2, "{delay} ms: {}", outcome.transcript());
            assert!(
                code == 0 || outcome.stdout.len() + outcome.stderr.len() > 0,
                "{delay} ms: {}",
                outcome.transcript()
            );
            named += u32::from(outcome.stderr.contains("was cut short while it was read"));
        }
    }
    assert!(named > 0, "never seen");
}

#[test]
fn a_checkpoint_that_changes_while_it_is_compiled_is_refused() {
    let write: fn(&Path) = |path| {
        let mut file = OpenOptions::new().write(true).open(path).unwrap();
        file.seek(SeekFrom::End(-4)).unwrap();
        file.write_all(&1f32.to_le_bytes()).unwrap();
    };
    let replace: fn(&Path) = |path| {
        let new = path.with_file_name("new");
        fs::copy(path, &new).unwrap();
        fs::rename(new, path).unwrap();
    };
    for (what, change) in [("written", write), ("replaced", replace)] {
        let shell = shell();
        let args = [
            "compile",
            "model",
            "-o",
            "work/out",
            "--pass",
            "fit-prune:samples=4",
            "--no-cache",
        ];
        let outcome = meanwhile(&shell, &args, "model/model.safetensors", change);
        assert_eq!(outcome.code, Some(2), "{what}: {}", outcome.transcript());
        assert!(
            outcome
                .stderr
                .contains("model/model.safetensors changed while it was read"),
            "{what}: {}",
            outcome.transcript()
        );
        assert!(entries(&shell.path("work")).is_empty(), "{what}");
    }
}

#[test]
fn a_tokenizer_that_changes_meanwhile_is_refused_too() {
    let shell = shell();
    let tokenizer = shell.path("model/tokenizer.json");
    let args = [
        "compile",
        "model",
        "-o",
        "work/out",
        "--pass",
        "fit-prune:samples=32",
        "--no-cache",
    ];
    let outcome = meanwhile(&shell, &args, "model/model.safetensors", |_| {
        sleep(Duration::from_millis(500));
        let text = fs::read(&tokenizer).unwrap();
        fs::write(&tokenizer, text).unwrap();
    });
    assert_eq!(outcome.code, Some(2), "{}", outcome.transcript());
    assert!(
        outcome
            .stderr
            .contains("model/tokenizer.json changed while it was read"),
        "{}",
        outcome.transcript()
    );
    assert!(entries(&shell.path("work")).is_empty());
}
