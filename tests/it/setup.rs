//! `dlc setup` without a network: what is there already, and what it says when nothing can be
//! downloaded. Downloads are tested beside the code, with wheels of their own.

use crate::command::Shell;

/// An address at which nobody listens.
const NOWHERE: &str = "http://127.0.0.1:9/simple";

#[cfg(target_os = "linux")]
#[test]
fn a_build_that_is_there_is_not_downloaded_again() {
    let shell = Shell::new();
    let version = include_str!("../../scripts/fetch_onnxruntime.sh");
    let version = version.split("\nversion=").nth(1).unwrap();
    let version = version.lines().next().unwrap();
    let setup = ["setup", "onnxruntime", "--index", NOWHERE];
    for (build, gpu) in [("onnxruntime", false), ("onnxruntime-gpu", true)] {
        for folder in [".env/data/dlc/onnxruntime", "libraries"] {
            shell.write(
                &format!("{folder}/.fetched"),
                format!("{build} {version}\nlibonnxruntime.so\n"),
            );
            shell.write(&format!("{folder}/libonnxruntime.so"), "");
        }
        let more: &[&str] = if gpu { &["--gpu"] } else { &[] };
        let outcome = shell.ok(&[&setup[..], more].concat());
        assert_eq!(
            outcome.stdout.trim_end(),
            "[TMP]/.env/data/dlc/onnxruntime/libonnxruntime.so"
        );
        assert_eq!(outcome.stderr, "");
        let outcome = shell.ok(&[&setup[..], more, &["--dest", "libraries", "--json"]].concat());
        assert_eq!(
            outcome.json(),
            serde_json::json!({
                "package": build,
                "version": version,
                "library": "[TMP]/libraries/libonnxruntime.so",
                "downloaded": false,
            })
        );
        assert!(
            outcome.stderr.contains("ORT_DYLIB_PATH"),
            "{}",
            outcome.transcript()
        );
        // Of the other build nothing is taken for this one's.
        let other: &[&str] = if gpu { &[] } else { &["--gpu"] };
        let outcome = shell.dlc(&[&setup[..], other].concat());
        assert_eq!(outcome.code, Some(2), "{}", outcome.transcript());
    }
}

#[test]
fn without_a_network_nothing_is_left_and_ways_out_are_named() {
    let shell = Shell::new();
    let outcome = shell.dlc(&["setup", "onnxruntime", "--index", NOWHERE]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.transcript());
    for part in [
        "can't read http://127.0.0.1:9/simple/onnxruntime/",
        "HTTPS_PROXY",
        "--index",
        "Python package onnxruntime",
    ] {
        assert!(outcome.stderr.contains(part), "{}", outcome.transcript());
    }
    assert_eq!(shell.listing(), Vec::<String>::new());
    assert!(!shell.path(".env/data").exists());
    // The variable of pip is followed, and the option decides over it.
    let mut command = shell.command(&["setup", "onnxruntime"]);
    let output = command.env("PIP_INDEX_URL", "nowhere").output().unwrap();
    let outcome = shell.outcome(&[], &output);
    assert!(
        outcome.code == Some(2) && outcome.stderr.contains("begins with https://"),
        "{}",
        outcome.transcript()
    );
}
