//! Signals: every command ends soon after one, says so, and leaves nothing behind; what no command
//! can remove is removed by the next one.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::atomic::{entries, wait_for};
use crate::command::{Outcome, Shell, assert_same_files};

/// What two seconds may become on a busy machine.
const SOON: Duration = Duration::from_secs(20);
const FAREWELL: &str = "stopping\ninterrupted; nothing was left behind\n";
/// Scoring that takes longer than any test waits.
const SCORING: [&str; 7] = [
    "compile",
    "fixtures/tiny-llama",
    "-o",
    "work/out",
    "--pass",
    "fit-prune:samples=64",
    "--no-cache",
];
const SAMPLING: [&str; 10] = [
    "sample",
    "digits",
    "--backend",
    "tract",
    "--count",
    "2000",
    "-o",
    "work/out.png",
    "--latents",
    "work/out.safetensors",
];
const CHOOSING: [&str; 9] = [
    "compile",
    "fixtures/tiny-llama",
    "--profile",
    "onnx",
    "-o",
    "work/out",
    "--pass",
    "auto-draft:samples=2,length=12",
    "--no-cache",
];

/// Waits until the command listens for signals; a shell that starts it isn't the command yet.
fn listens(child: &mut Child) {
    let status = format!("/proc/{}/status", child.id());
    // The second bit of the caught signals is SIGINT.
    let caught = || {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let mask = text
            .lines()
            .find_map(|l| l.strip_prefix("SigCgt:"))
            .and_then(|m| u64::from_str_radix(m.trim(), 16).ok());
        text.starts_with("Name:\tdlc\n") && mask.is_some_and(|m| m & 2 != 0)
    };
    assert!(wait_for(child, caught), "handles no SIGINT");
}

/// Whether what is started here isn't under nohup, where hang-ups are to be ignored.
fn hears_hang_ups() -> bool {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = text
        .lines()
        .find_map(|l| l.strip_prefix("SigIgn:"))
        .and_then(|m| u64::from_str_radix(m.trim(), 16).ok());
    ignored.is_none_or(|m| m & 1 == 0)
}

pub fn send(signal: &str, child: &Child) {
    assert!(
        Command::new("sh")
            .args(["-c", &format!("kill -{signal} {}", child.id())])
            .status()
            .unwrap()
            .success()
    );
}

/// Sends a signal, and waits for the end.
fn stop(shell: &Shell, args: &[&str], signal: &str, child: Child) -> Outcome {
    send(signal, &child);
    let asked = Instant::now();
    let outcome = shell.outcome(args, &child.wait_with_output().unwrap());
    assert!(
        asked.elapsed() < SOON,
        "took {:?}\n{}",
        asked.elapsed(),
        outcome.transcript()
    );
    outcome
}

/// Starts a command, and sends it a signal a while after it has begun to listen.
fn stop_after(shell: &Shell, args: &[&str], signal: &str, after: Duration) -> Outcome {
    let mut child = shell.start(args);
    listens(&mut child);
    sleep(after);
    stop(shell, args, signal, child)
}

/// Hidden folders of dlc in the shell's temporary folder.
fn temporaries(shell: &Shell) -> Vec<String> {
    entries(&shell.path(".env"))
        .into_iter()
        .filter(|name| name.contains("dlc-tmp") || name.starts_with(".tmp"))
        .collect()
}

/// Whether a folder holds one whose name begins so.
fn holds(folder: &Path, prefix: &str) -> bool {
    entries(folder)
        .iter()
        .any(|name| name.starts_with(prefix) && !name.contains(".lock"))
}

#[test]
fn every_signal_that_asks_to_stop_has_its_own_exit_code_and_leaves_nothing() {
    let shell = Shell::new();
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)]
        .into_iter()
        .filter(|(signal, _)| *signal != "HUP" || hears_hang_ups())
    {
        let outcome = stop_after(&shell, &SCORING, signal, Duration::from_millis(300));
        assert_eq!(
            outcome.code,
            Some(code),
            "{signal}: {}",
            outcome.transcript()
        );
        assert_eq!(
            (outcome.stdout.as_str(), outcome.stderr.as_str()),
            ("", FAREWELL),
            "{signal}"
        );
        assert!(entries(&shell.path("work")).is_empty(), "{signal}");
    }
}

#[test]
fn ctrl_c_ends_the_scoring_of_a_shard_and_leaves_nothing() {
    let shell = Shell::new();
    shell.write("work/part.safetensors", "mine");
    let args = [
        "score",
        "fixtures/tiny-llama",
        "--pass",
        "fit-prune:samples=64",
        "--shard",
        "1/2",
        "--no-cache",
        "--force",
        "-o",
        "work/part.safetensors",
    ];
    let outcome = stop_after(&shell, &args, "INT", Duration::from_millis(300));
    assert_eq!(
        (outcome.code, outcome.stderr.as_str()),
        (Some(130), FAREWELL),
        "{}",
        outcome.transcript()
    );
    assert_eq!(entries(&shell.path("work")), ["part.safetensors"]);
    assert_eq!(
        std::fs::read(shell.path("work/part.safetensors")).unwrap(),
        b"mine"
    );
}

#[test]
fn ctrl_c_ends_sampling_between_two_steps_and_leaves_nothing() {
    let shell = Shell::new();
    shell.ok(&["compile", "fixtures/digits-dit", "-o", "digits"]);
    shell.write("work/out.png", "mine");
    let outcome = stop_after(&shell, &SAMPLING, "INT", Duration::from_millis(300));
    assert_eq!(
        (outcome.code, outcome.stderr.as_str()),
        (Some(130), FAREWELL),
        "{}",
        outcome.transcript()
    );
    assert_eq!(entries(&shell.path("work")), ["out.png"]);
    assert_eq!(std::fs::read(shell.path("work/out.png")).unwrap(), b"mine");
}

#[test]
fn commands_that_look_at_nothing_are_ended_all_the_same() {
    let shell = Shell::new();
    // It waits for its first line.
    let mut child = shell
        .command(&["run", "fixtures/none", "--chat"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(2));
    shell.ok(&[
        "compile",
        "fixtures/tiny-llama",
        "--profile",
        "onnx",
        "-o",
        "bundle",
    ]);
    for signal in ["INT", "TERM"] {
        let outcome = stop_after(
            &shell,
            &["verify", "bundle", "--backend", "tract"],
            signal,
            Duration::from_millis(20),
        );
        assert_eq!(
            outcome.code,
            Some(if signal == "INT" { 130 } else { 143 }),
            "{}",
            outcome.transcript()
        );
        assert!(
            outcome
                .stderr
                .ends_with("interrupted; nothing was left behind\n"),
            "{}",
            outcome.transcript()
        );
    }
}

#[test]
fn learning_of_long_rounds_ends_soon_too() {
    let shell = Shell::new();
    let learning = "dip-go:macs=0.5,steps=50,rounds=2,iterations=0,batch=64";
    let args = [
        "compile",
        "fixtures/digits-dit",
        "-o",
        "work/out",
        "--pass",
        learning,
        "--no-cache",
    ];
    let outcome = stop_after(&shell, &args, "INT", Duration::from_millis(1500));
    assert_eq!(
        (outcome.code, outcome.stderr.as_str()),
        (Some(130), FAREWELL),
        "{}",
        outcome.transcript()
    );
    assert!(entries(&shell.path("work")).is_empty());
}

#[test]
fn a_second_ctrl_c_ends_at_once_and_cleans_up_too() {
    let shell = Shell::new();
    let mut child = shell.start(&CHOOSING);
    let work = shell.path("work");
    assert!(wait_for(&mut child, || holds(&work, ".dlc-probes")));
    send("INT", &child);
    sleep(Duration::from_millis(50));
    let outcome = stop(&shell, &CHOOSING, "INT", child);
    assert_eq!(
        (outcome.code, outcome.stderr.as_str()),
        (Some(130), FAREWELL),
        "{}",
        outcome.transcript()
    );
    assert!(entries(&work).is_empty(), "{:?}", entries(&work));
}

#[test]
fn what_auto_draft_times_is_removed_when_it_is_stopped_or_by_the_next_run_when_it_is_killed() {
    let shell = Shell::new();
    let work = shell.path("work");
    for signal in ["TERM", "KILL"] {
        let mut child = shell.start(&CHOOSING);
        assert!(
            wait_for(&mut child, || holds(&work, ".dlc-probes")),
            "never seen timing"
        );
        let outcome = stop(&shell, &CHOOSING, signal, child);
        match signal {
            "KILL" => assert!(holds(&work, ".dlc-probes")),
            _ => assert!(
                entries(&work).is_empty(),
                "{signal}: {:?}\n{}",
                entries(&work),
                outcome.transcript()
            ),
        }
    }
    // Another bundle in the same folder.
    shell.ok(&["compile", "fixtures/tiny-llama", "-o", "work/other"]);
    assert_eq!(entries(&work), ["other"]);
}

#[test]
fn what_the_demo_writes_is_removed_when_it_is_stopped_or_by_the_next_demo_when_it_is_killed() {
    let shell = Shell::new();
    let args = [
        "demo",
        "--model",
        "fixtures/tiny-llama",
        "--backend",
        "tract",
    ];
    let temporary = shell.path(".env");
    for signal in ["TERM", "KILL"] {
        let mut child = shell.start(&args);
        assert!(
            wait_for(&mut child, || holds(&temporary, ".dlc-demo")),
            "never seen writing"
        );
        sleep(Duration::from_millis(100));
        let outcome = stop(&shell, &args, signal, child);
        assert_eq!(
            outcome.code,
            (signal == "TERM").then_some(143),
            "{}",
            outcome.transcript()
        );
        assert_eq!(
            temporaries(&shell).is_empty(),
            signal == "TERM",
            "{:?}",
            temporaries(&shell)
        );
    }
    let left = temporaries(&shell);
    let mut child = shell.start(&args);
    assert!(wait_for(&mut child, || !temporaries(&shell)
        .iter()
        .any(|name| left.contains(name))));
    stop(&shell, &args, "INT", child);
    assert_eq!(temporaries(&shell), [""; 0]);
}

#[test]
fn a_hang_up_that_was_to_be_ignored_is() {
    let shell = Shell::new();
    let dlc = env!("CARGO_BIN_EXE_dlc");
    let command = shell.command(&[]);
    let mut ignoring = Command::new("/bin/sh");
    ignoring.args(["-c", &format!("trap '' HUP; exec {dlc} compile fixtures/tiny-llama --pass fit-prune:samples=2,length=32 -o out")]);
    ignoring
        .current_dir(command.get_current_dir().unwrap())
        .envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
    let mut child = ignoring
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    listens(&mut child);
    send("HUP", &child);
    let outcome = shell.outcome(&[], &child.wait_with_output().unwrap());
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
}

#[test]
fn a_folder_for_probes_that_can_not_be_made_is_named() {
    let shell = Shell::new();
    let args = [
        "compile",
        "fixtures/tiny-llama",
        "--profile",
        "onnx",
        "-o",
        "/proc/work/out",
        "--pass",
        "auto-draft:samples=2,length=12",
    ];
    let outcome = shell.dlc(&args);
    assert_eq!(outcome.code, Some(2), "{}", outcome.transcript());
    assert!(
        outcome
            .stderr
            .contains("can't make a temporary folder in /proc/work"),
        "{}",
        outcome.transcript()
    );
}

#[test]
fn what_was_scored_is_kept_and_the_next_run_goes_on_from_there() {
    let shell = Shell::new();
    let args = |out| {
        [
            "compile",
            "fixtures/tiny-llama",
            "-o",
            out,
            "--pass",
            "fit-prune:samples=16",
            "--state",
            "kept",
        ]
    };
    let outcome = {
        let args = args("work/out");
        let mut child = shell.start(&args);
        let kept = shell.path("kept");
        assert!(
            wait_for(&mut child, || entries(&kept)
                .iter()
                .filter(|name| name.contains(".json"))
                .count()
                > 2),
            "never seen keeping"
        );
        stop(&shell, &args, "INT", child)
    };
    assert_eq!(outcome.code, Some(130), "{}", outcome.transcript());
    let kept = "stopping\ninterrupted; nothing was left behind; the work so far is kept in kept, and the same command goes on from there\n";
    assert_eq!(outcome.stderr, kept);
    assert!(entries(&shell.path("work")).is_empty());
    shell.ok(&args("work/out"));
    // Of what was kept, the scores are left.
    assert_eq!(entries(&shell.path("kept")).len(), 1);
    shell.ok(&[
        "compile",
        "fixtures/tiny-llama",
        "-o",
        "work/whole",
        "--pass",
        "fit-prune:samples=16",
        "--no-cache",
    ]);
    assert_same_files(&shell.path("work/out"), &shell.path("work/whole"));
}

#[test]
fn costs_that_are_not_measured_to_the_end_are_no_error() {
    let shell = Shell::new();
    let args = ["bench", "out", "--calibrate", "--backend", "tract"];
    shell.ok(&[
        "compile",
        "fixtures/tiny-llama",
        "--profile",
        "portable",
        "-o",
        "out",
    ]);
    let mut child = shell.start(&args);
    let temporary = shell.path(".env");
    assert!(
        wait_for(&mut child, || holds(&temporary, ".dlc-calibration")),
        "never seen timing drafts"
    );
    let outcome = stop(&shell, &args, "INT", child);
    assert_eq!(outcome.code, Some(130), "{}", outcome.transcript());
    assert!(
        // Whether timing is told before or after the signal is heard is chance.
        outcome.stderr.contains("stopping\n")
            && outcome
                .stderr
                .ends_with("interrupted; nothing was left behind\n")
            && !outcome.stderr.contains("error"),
        "{}",
        outcome.transcript()
    );
    assert_eq!(temporaries(&shell), [""; 0]);
}
