//! Files that users name, to read and to write: what stands there may be anything.

use std::fs;
use std::io::Read;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::command::{Outcome, Shell, bundles};

/// Runs; what waits for a pipe is ended, and fails.
fn promptly(shell: &Shell, args: &[&str]) -> Outcome {
    const LIMIT: Duration = Duration::from_secs(20);
    let (mut child, start) = (shell.start(args), Instant::now());
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("dlc {} doesn't end", args.join(" "));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    shell.outcome(args, &child.wait_with_output().unwrap())
}

fn pipe(shell: &Shell, name: &str) {
    fs::create_dir_all(shell.path(name).parent().unwrap()).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(shell.path(name))
            .status()
            .unwrap()
            .success()
    );
}

/// Fails unless `outcome` is a refusal that says `expected` of `file`.
fn assert_refused(outcome: &Outcome, file: &str, expected: &str) {
    let right = outcome.code == Some(2)
        && outcome.stderr.contains(file)
        && outcome.stderr.contains(expected)
        && outcome.stdout.is_empty();
    assert!(
        right,
        "expected of {file}: {expected}\n{}",
        outcome.transcript()
    );
}

/// A shell with a checkpoint, a bundle of it, and a diffusion model's.
fn shell() -> Shell {
    let shell = Shell::new();
    shell.copy(&crate::common::fixture("tiny-llama"), "model");
    shell.copy(&bundles().path("plain"), "bundle");
    shell.ok(&["compile", "fixtures/digits-dit", "-o", "digits"]);
    shell
}

const BASE: &str = "fixtures/adapters/lora-llama";
const ADAPTER: &str = "fixtures/adapters/lora-llama/adapter";

/// Each file that a command reads, by its place in [`shell`].
const INPUTS: &[(&str, &[&str])] = &[
    ("model/config.json", &["compile", "model", "-o", "out"]),
    ("model/tokenizer.json", &["compile", "model", "-o", "out"]),
    ("bundle/dlc.yaml", &["inspect", "bundle"]),
    ("bundle/model.onnx", &["inspect", "bundle"]),
    (
        "bundle/weights.bin",
        &["verify", "bundle", "--backend", "tract"],
    ),
    (
        "bundle/tokenizer.json",
        &["run", "bundle", "--prompt", "a", "--backend", "tract"],
    ),
    ("x.onnx", &["inspect", "x.onnx"]),
    ("x.onnx", &["diff", "x.onnx", "bundle/model.onnx"]),
    ("x.yaml", &["compile", "--config", "x.yaml"]),
    (
        "x.yaml",
        &[
            "compile",
            BASE,
            "--adapter",
            ADAPTER,
            "--adapter-names",
            "x.yaml",
            "-o",
            "out",
        ],
    ),
    (
        "x.jsonl",
        &[
            "compile",
            "model",
            "--pass",
            "fit-prune:drop=2,calibration=x.jsonl",
            "-o",
            "out",
        ],
    ),
    (
        "x.yaml",
        &[
            "compile",
            "model",
            "--pass",
            "auto-draft:costs=x.yaml",
            "-o",
            "out",
        ],
    ),
    (
        "x.safetensors",
        &[
            "compile",
            "model",
            "--pass",
            "fit-prune:drop=2",
            "--scores",
            "x.safetensors",
            "-o",
            "out",
        ],
    ),
    (
        "x.yaml",
        &[
            "compile",
            "fixtures/digits-dit",
            "--pass",
            "skip:schedule=x.yaml",
            "-o",
            "out",
        ],
    ),
    (
        "x.txt",
        &["run", "bundle", "--prompts", "x.txt", "--backend", "tract"],
    ),
    (
        "x.safetensors",
        &[
            "sample",
            "digits",
            "--embeddings",
            "x.safetensors",
            "-o",
            "out.png",
            "--backend",
            "tract",
        ],
    ),
    (
        "x.safetensors",
        &[
            "bench",
            "digits",
            "--classifier",
            "x.safetensors",
            "--count",
            "1",
            "--steps",
            "1",
            "--repeats",
            "1",
            "--backend",
            "tract",
        ],
    ),
    (
        "x.safetensors",
        &[
            "bench",
            "digits",
            "--statistics",
            "x.safetensors",
            "--count",
            "1",
            "--steps",
            "1",
            "--repeats",
            "1",
            "--backend",
            "tract",
        ],
    ),
];

#[test]
fn pipes_in_place_of_files_are_refused_before_they_block() {
    for (name, args) in INPUTS {
        let shell = shell();
        let _ = fs::remove_file(shell.path(name));
        pipe(&shell, name);
        assert_refused(
            &promptly(&shell, args),
            name.rsplit('/').next().unwrap(),
            "",
        );
        assert!(!shell.path("out").exists() && !shell.path("out.png").exists());
    }
}

#[test]
fn pointers_of_git_lfs_and_web_pages_are_named_for_what_they_are() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";
    let page = "<!DOCTYPE html>\n<html lang=\"en\"><head><title>Sign in</title></head></html>\n";
    let shell = shell();
    let weights: &[(&str, &[&str])] = &[(
        "model/model.safetensors",
        &["compile", "model", "-o", "out"],
    )];
    for (name, args) in INPUTS.iter().chain(weights) {
        let before = fs::read(shell.path(name)).ok();
        for (content, expected) in [(pointer, "pointer of Git LFS"), (page, "web page")] {
            // The manifest has the size of a bundle's files, which is looked at first; text may be
            // about pages.
            let sized = name.starts_with("bundle/") && !name.ends_with("dlc.yaml");
            let is_text = ["x.txt", "x.jsonl"].contains(name) && content == page;
            if sized || is_text {
                continue;
            }
            shell.write(name, content);
            assert_refused(
                &promptly(&shell, args),
                name.rsplit('/').next().unwrap(),
                expected,
            );
        }
        match before {
            Some(bytes) => shell.write(name, bytes),
            None => fs::remove_file(shell.path(name)).unwrap(),
        }
    }
}

const SAMPLE: [&str; 8] = [
    "sample",
    "digits",
    "--backend",
    "tract",
    "--steps",
    "1",
    "--class",
    "1",
];

fn sample<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    SAMPLE.into_iter().chain(flags.iter().copied()).collect()
}

const PNG: &[u8] = b"\x89PNG";

#[test]
fn images_are_written_to_what_stands_there() {
    let shell = Shell::new();
    shell.ok(&["compile", "fixtures/digits-dit", "-o", "digits"]);
    pipe(&shell, "pipe");
    let from = shell.path("pipe");
    let reader = std::thread::spawn(move || fs::read(from).unwrap());
    shell.ok(&sample(&["-o", "pipe"]));
    assert!(reader.join().unwrap().starts_with(PNG));

    shell.write("folder/target", "before");
    std::os::unix::fs::symlink("folder/target", shell.path("link.png")).unwrap();
    shell.ok(&sample(&["-o", "link.png"]));
    assert!(
        shell.path("link.png").is_symlink()
            && fs::read(shell.path("folder/target"))
                .unwrap()
                .starts_with(PNG)
    );
    std::os::unix::fs::symlink("folder/new", shell.path("dangling.png")).unwrap();
    shell.ok(&sample(&["-o", "dangling.png"]));
    assert!(
        shell.path("dangling.png").is_symlink()
            && fs::read(shell.path("folder/new")).unwrap().starts_with(PNG)
    );

    // A device like /dev/full; only root can make one.
    if Command::new("mknod")
        .args([shell.path("full.png").to_str().unwrap(), "c", "1", "7"])
        .stderr(Stdio::null())
        .status()
        .unwrap()
        .success()
    {
        let outcome = shell.dlc(&sample(&["-o", "full.png"]));
        assert_refused(&outcome, "full.png", "No space left");
        assert!(
            !fs::symlink_metadata(shell.path("full.png"))
                .unwrap()
                .is_file()
        );
    }
}

#[test]
fn one_result_goes_to_stdout_by_its_name() {
    let shell = Shell::new();
    shell.ok(&["compile", "fixtures/digits-dit", "-o", "digits"]);
    let raw = |flags: &[&str]| -> Output { shell.command(&sample(flags)).output().unwrap() };
    assert!(raw(&["-o", "-"]).stdout.starts_with(PNG));
    assert!(raw(&["-o", "/dev/stdout"]).stdout.starts_with(PNG));
    let latents = raw(&["-o", "a.png", "--latents", "-"]).stdout;
    assert!(
        safetensors::SafeTensors::deserialize(&latents).is_ok() && shell.path("a.png").is_file()
    );
    assert_refused(
        &shell.dlc(&sample(&["-o", "-", "--json"])),
        "stdout",
        "--json",
    );
    assert_refused(
        &shell.dlc(&sample(&["-o", "-", "--latents", "-"])),
        "stdout",
        "one result",
    );

    // What a shell redirected keeps what is in it.
    let log = shell.path("log");
    fs::write(&log, "before\n").unwrap();
    let file = fs::OpenOptions::new().append(true).open(&log).unwrap();
    assert!(
        shell
            .command(&sample(&["-o", "/dev/stdout"]))
            .stdout(file)
            .status()
            .unwrap()
            .success()
    );
    let mut content = Vec::new();
    fs::File::open(&log)
        .unwrap()
        .read_to_end(&mut content)
        .unwrap();
    assert!(content.starts_with(b"before\n\x89PNG"));
}

#[test]
fn outputs_that_can_not_be_written_are_refused_before_any_work() {
    let shell = Shell::new();
    shell.write("folder.png/file", "mine");
    shell.write("file", "mine");
    // There is no such bundle: the output is looked at first.
    let sample = |flags: &[&str]| shell.dlc(&[&["sample", "nowhere"], flags].concat());
    assert_refused(
        &sample(&["-o", "folder.png"]),
        "folder.png",
        "it is a folder",
    );
    assert_refused(&sample(&["-o", "new/"]), "new/", "it is a folder");
    assert_refused(
        &sample(&["-o", "missing/a.png"]),
        "missing",
        "isn't a folder",
    );
    assert_refused(&sample(&["-o", "file/a.png"]), "file", "a folder");
    assert_refused(&sample(&["-o", "a.jpg"]), "a.jpg", ".png");
    assert_refused(&sample(&["-o", "a"]), "can't write a:", ".png");
    assert_refused(
        &sample(&["-o", "a.png", "--latents", "a.npy"]),
        "a.npy",
        ".safetensors",
    );
    assert_refused(
        &sample(&["-o", "a.png", "--latents", "missing/a.safetensors"]),
        "missing",
        "isn't a folder",
    );
    for file in ["a.bin", "missing/a.safetensors", "folder.png"] {
        let outcome = shell.dlc(&["score", "nowhere", "-o", file]);
        assert_refused(&outcome, file, "can't write");
    }
    for plot in ["a.png", "missing/a.svg", "folder.png"] {
        let outcome = bundles().dlc(&["bench", "portable", "--backend", "tract", "--plot", plot]);
        assert_refused(&outcome, plot, "can't write");
    }
    assert_eq!(shell.listing(), ["file", "folder.png"]);
}

#[test]
fn plots_are_written_like_images() {
    let shell = bundles();
    let bench = [
        "bench",
        "portable",
        "--backend",
        "tract",
        "--max-tokens",
        "2",
        "--repeats",
        "1",
        "--plot",
    ];
    let work = Shell::new();
    work.write("target", "before");
    let link = work.path("link.svg");
    std::os::unix::fs::symlink(work.path("target"), &link).unwrap();
    shell.ok(&[&bench[..], &[link.to_str().unwrap()]].concat());
    assert!(
        link.is_symlink()
            && fs::read_to_string(work.path("target"))
                .unwrap()
                .contains("<svg")
    );
    let outcome = shell.ok(&[&bench[..], &["-"]].concat());
    assert!(
        outcome.stdout.starts_with("<svg") || outcome.stdout.starts_with("<?xml"),
        "{}",
        outcome.transcript()
    );
}

#[test]
fn graphs_with_weights_outside_of_the_bundles_files_are_not_given_to_a_backend() {
    use dlc_bundle::FileRecord;
    let shell = Shell::new();
    shell.copy(&bundles().path("golden"), "bundle");
    let model = shell.path("bundle/model.onnx");
    let before = FileRecord::of_file(&model).unwrap().sha256;
    let mut bytes = fs::read(&model).unwrap();
    let (old, new) = (b"weights.bin", b"weights.fif");
    while let Some(at) = bytes.windows(old.len()).position(|window| window == old) {
        bytes[at..at + old.len()].copy_from_slice(new);
    }
    fs::write(&model, bytes).unwrap();
    pipe(&shell, "bundle/weights.fif");
    // A hostile bundle's hashes are right.
    let manifest = fs::read_to_string(shell.path("bundle/dlc.yaml")).unwrap();
    shell.write(
        "bundle/dlc.yaml",
        manifest.replace(&before, &FileRecord::of_file(&model).unwrap().sha256),
    );
    assert_refused(
        &promptly(&shell, &["verify", "bundle", "--backend", "tract"]),
        "model.onnx",
        "",
    );
}
