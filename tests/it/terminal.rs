//! What strangers write into files doesn't steer the terminal, and threads stay near the number of
//! cores.

use std::fs;

use crate::command::{Outcome, Shell, bundles};
use crate::common::fixture;

/// Sets the window's title, moves the cursor, and turns the text around.
const HOSTILE: &str = "\u{1b}]0;x\u{7}\r\u{9b}31m\u{202e}";

fn assert_tame(outcome: &Outcome) {
    let steers = |c: char| c != '\n' && c != '\t' && (c.is_control() || c == '\u{202e}');
    let text = format!("{}{}", outcome.stdout, outcome.stderr);
    assert!(!text.contains(steers), "{text:?}");
}

fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let n = bytes.len();
    [
        &[
            number << 3 | 2,
            0x80 | (n & 127) as u8,
            0x80 | (n >> 7 & 127) as u8,
            (n >> 14) as u8,
        ],
        bytes,
    ]
    .concat()
}

/// An ONNX file with one node of this operator and name.
fn onnx(operator: &str, producer: &str) -> Vec<u8> {
    let node = [
        field(2, b"y"),
        field(3, operator.as_bytes()),
        field(4, operator.as_bytes()),
    ]
    .concat();
    let port = |number| field(number, &field(1, operator.as_bytes()));
    let graph = [field(1, &node), port(11), port(12)].concat();
    [field(2, producer.as_bytes()), field(7, &graph)].concat()
}

#[test]
fn names_in_onnx_files_are_shown_escaped() {
    let shell = Shell::new();
    shell.write("x.onnx", onnx(HOSTILE, HOSTILE));
    shell.write("y.onnx", onnx("Add", "another"));
    for args in [
        &["inspect", "x.onnx"][..],
        &["inspect", "x.onnx", "--graph"],
        &["inspect", "x.onnx", "--json"],
        &["diff", "x.onnx", "y.onnx"],
        &["diff", "x.onnx", "y.onnx", "--json"],
    ] {
        let outcome = shell.ok(args);
        assert_tame(&outcome);
        assert!(
            outcome.stdout.contains("u{1b}]0;x") || outcome.stdout.contains("u001b]0;x"),
            "{}",
            outcome.transcript()
        );
    }
    // The values are what they were.
    assert!(
        shell.ok(&["inspect", "x.onnx", "--json"]).json()["operators"]
            .get(HOSTILE)
            .is_some()
    );
}

#[test]
fn long_names_are_cut_where_people_read_them() {
    let shell = Shell::new();
    shell.write("x.onnx", onnx(&"x".repeat(1 << 17), "another"));
    let outcome = shell.ok(&["inspect", "x.onnx"]);
    assert!(
        outcome
            .stdout
            .lines()
            .all(|line| line.chars().count() < 500)
            && outcome.stdout.contains("xxx..."),
        "{}",
        outcome.transcript()
    );
}

#[test]
fn errors_about_hostile_files_are_escaped_and_cut() {
    let shell = Shell::new();
    let escaped = HOSTILE
        .replace('\u{1b}', "\\u001b")
        .replace('\u{7}', "\\u0007")
        .replace('\r', "\\r");
    // An adapter's key, a manifest's, a pipeline's, and a path.
    shell.copy(&fixture("adapters/lora-llama/adapter"), "adapter");
    let config = fs::read_to_string(shell.path("adapter/adapter_config.json")).unwrap();
    shell.write(
        "adapter/adapter_config.json",
        config.replacen(
            '{',
            &format!("{{\"{escaped}\": 1, \"peft_type\": \"{escaped}\","),
            1,
        ),
    );
    shell.copy(&bundles().path("plain"), "bundle");
    let manifest = fs::read_to_string(shell.path("bundle/dlc.yaml")).unwrap();
    shell.write(
        "bundle/dlc.yaml",
        format!(
            "\"{}\": 1\n{manifest}",
            escaped.replace("\\u001b", "\\e").replace("\\u0007", "\\a")
        ),
    );
    shell.write(
        "pipeline.yaml",
        format!("\"{}{}\": 1\n", "x".repeat(1 << 17), "\\e]0;x\\a"),
    );
    let path = format!("{HOSTILE}.onnx");
    for args in [
        &[
            "merge",
            "fixtures/adapters/lora-llama",
            "--adapter",
            "adapter",
            "-o",
            "merged",
        ][..],
        &["inspect", "bundle"],
        &["compile", "--config", "pipeline.yaml"],
        &["inspect", &path],
    ] {
        let outcome = shell.dlc(args);
        assert!(
            matches!(outcome.code, Some(2 | 3)),
            "{}",
            outcome.transcript()
        );
        assert!(
            outcome.stderr.chars().count() < 6000,
            "{} characters",
            outcome.stderr.chars().count()
        );
        assert_tame(&outcome);
    }
}

#[test]
fn more_threads_than_four_times_the_cores_are_refused() {
    let shell = bundles();
    let most = 4 * std::thread::available_parallelism().unwrap().get();
    for threads in [most + 1, 1024, 65535] {
        let threads = threads.to_string();
        for args in [
            &["run", "plain", "--prompt", "a", "--backend", "tract"][..],
            &["bench", "plain"],
            &["verify", "plain"],
            &["compile", "fixtures/tiny-llama", "-o", "never"],
            &[
                "merge",
                "fixtures/tiny-llama",
                "--adapter",
                "never",
                "-o",
                "never",
            ],
            &["demo"],
            &["doctor"],
        ] {
            let outcome = shell.dlc(&[args, &["--threads", &threads]].concat());
            assert!(
                outcome.code == Some(2) && outcome.stderr.contains(&format!("from 1 to {most}")),
                "{}",
                outcome.transcript()
            );
        }
        shell.write(
            "many.yaml",
            format!(
                "model: fixtures/tiny-llama\noutput: never\nthreads: {}\n",
                threads.parse::<usize>().unwrap().min(1024)
            ),
        );
        let outcome = shell.dlc(&["compile", "--config", "many.yaml"]);
        assert!(
            outcome.code == Some(2) && outcome.stderr.contains(&format!("from 1 to {most}")),
            "{}",
            outcome.transcript()
        );
    }
    let most = most.to_string();
    shell.ok(&[
        "run",
        "plain",
        "--prompt",
        "a",
        "--max-tokens",
        "1",
        "--backend",
        "tract",
        "--threads",
        &most,
    ]);
}

#[test]
fn arguments_that_are_wrong_are_shown_escaped() {
    let shell = Shell::new();
    for args in [
        &[HOSTILE][..],
        &["run", "b", "--backend", HOSTILE],
        &["run", "b", "--threads", HOSTILE],
    ] {
        let outcome = shell.dlc(args);
        assert_eq!(outcome.code, Some(2), "{}", outcome.transcript());
        assert_tame(&outcome);
    }
}
