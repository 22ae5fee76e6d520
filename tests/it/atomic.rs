//! A compilation that is stopped leaves nothing half-made, and nothing that the next one trips
//! over.

use std::path::Path;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::command::{Shell, assert_same_files};

const COMPILE: [&str; 4] = ["compile", "fixtures/tiny-llama", "-o", "work/out"];

/// Entries of a folder, hidden ones too.
pub fn entries(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Waits until `seen`; false if the process ended before, or after a while.
pub fn wait_for(child: &mut Child, seen: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(30) {
        if seen() {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        sleep(Duration::from_micros(200));
    }
    false
}

#[test]
fn a_killed_compilation_leaves_no_bundle_and_a_rerun_cleans_up() {
    let shell = Shell::new();
    let scoring = [
        &COMPILE[..],
        &["--pass", "fit-prune:samples=64", "--no-cache"],
    ]
    .concat();
    // In the middle of scoring, and, without a pass, at moments spread over import, hashing and
    // writing.
    let stops = [(&scoring[..], 50), (&scoring, 400)]
        .into_iter()
        .chain((0..12).map(|i| (&COMPILE[..], 4 * i)));
    for (args, milliseconds) in stops {
        let mut child = shell.start(args);
        sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        let killed = !child.wait().unwrap().success();
        let finished = shell.path("work/out").exists();
        assert!(killed || finished);
        if finished {
            // It came in time: then it is whole.
            shell.ok(&["inspect", "work/out"]);
            std::fs::remove_dir_all(shell.path("work/out")).unwrap();
        }
    }
    shell.ok(&COMPILE);
    assert_eq!(entries(&shell.path("work")), ["out"]);
    shell.ok(&["verify", "work/out", "--backend", "tract"]);
}

#[test]
fn a_compilation_killed_while_writing_leaves_the_old_bundle() {
    let shell = Shell::new();
    shell.ok(&COMPILE);
    shell.ok(&["compile", "fixtures/tiny-llama", "-o", "before"]);
    let mut seen = 0;
    for delay in 0..8u64 {
        let mut child = shell.start(&[&COMPILE[..], &["--force", "--dtype", "f16"]].concat());
        let work = shell.path("work");
        let writing = wait_for(&mut child, || {
            entries(&work).iter().any(|n| n.contains(".dlc-tmp-"))
        });
        sleep(Duration::from_micros(delay * 1500));
        child.kill().unwrap();
        child.wait().unwrap();
        seen += u32::from(writing);
        if shell.ok(&["inspect", "work/out"]).stdout.contains("f16") {
            shell.ok(&[&COMPILE[..], &["--force"]].concat());
        }
        assert_same_files(&shell.path("before"), &shell.path("work/out"));
    }
    assert!(seen > 0, "never seen writing");
    shell.ok(&[&COMPILE[..], &["--force"]].concat());
    assert_eq!(entries(&shell.path("work")), ["out"]);
}
