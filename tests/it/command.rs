//! Runs the built `dlc` in a temporary folder with a clean environment, in which only tract can be
//! found.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, Weak};

use tempfile::TempDir;

use crate::common::fixture;

/// Options that make `fit-prune` quick on the goldens, which have no tokenizer.
pub const PRUNE_GOLDEN: &str = "fit-prune:drop=2,calibration=fixtures/calibration-tokens.jsonl";
/// A quick `fit-prune` of tiny-llama.
pub const PRUNE_TINY: &str = "fit-prune:drop=4,samples=1,length=32";

/// A folder to work in. `fixtures/` in it is the repository's.
pub struct Shell {
    folder: TempDir,
}

/// What a command said.
pub struct Outcome {
    pub args: Vec<String>,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Shell {
    pub fn new() -> Self {
        let shell = Self {
            folder: tempfile::Builder::new()
                .prefix("dlc-it-")
                .tempdir()
                .unwrap(),
        };
        fs::create_dir_all(shell.path(".env/bin")).unwrap();
        std::os::unix::fs::symlink(fixture(""), shell.path("fixtures")).unwrap();
        shell
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file, and the folders above it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Copies a folder of files.
    pub fn copy(&self, from: &Path, to: &str) {
        for (name, bytes) in contents(from) {
            self.write(&format!("{to}/{name}"), bytes);
        }
    }

    /// What lies in the folder, but for what the harness put there.
    pub fn listing(&self) -> Vec<String> {
        let names = fs::read_dir(self.folder.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|n| n != ".env" && n != "fixtures").collect();
        names.sort();
        names
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dlc"));
        let home = self.path(".env");
        command
            .args(args)
            .current_dir(self.folder.path())
            .env_clear()
            .stdin(Stdio::null());
        command.env("PATH", home.join("bin")).env("HOME", &home);
        command
            .env("XDG_CACHE_HOME", home.join("cache"))
            .env("XDG_DATA_HOME", home.join("data"))
            .env("TMPDIR", &home)
            // No test asks the Hub itself.
            .env("HF_ENDPOINT", "http://127.0.0.1:9")
            .env("DLC_PROGRESS", "never");
        command
    }

    pub fn start(&self, args: &[&str]) -> Child {
        self.command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Runs to the end, whatever that is.
    pub fn dlc(&self, args: &[&str]) -> Outcome {
        self.outcome(args, &self.command(args).output().unwrap())
    }

    /// Runs, and fails unless the exit code is 0.
    pub fn ok(&self, args: &[&str]) -> Outcome {
        let outcome = self.dlc(args);
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
        outcome
    }

    /// Compiles into `out` on one thread, and beside it on two: the bundles must be the same.
    pub fn compile_alike_on_any_threads(&self, arguments: &[&str], out: &str) {
        let other = format!("{out}-on-two");
        for (out, threads) in [(out, "1"), (&*other, "2")] {
            let placed = ["--threads", threads, "-o", out];
            self.ok(&[&["compile"], arguments, &placed].concat());
        }
        assert_same_files(&self.path(out), &self.path(&other));
    }

    /// Output without the temporary folder's name.
    pub fn outcome(&self, args: &[&str], output: &Output) -> Outcome {
        let text = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec())
                .unwrap()
                .replace(self.folder.path().to_str().unwrap(), "[TMP]")
        };
        let args = args.iter().map(ToString::to_string).collect();
        // What is free depends on the machine.
        let stderr = text(&output.stderr)
            .split_inclusive('\n')
            .filter(|line| !line.starts_with("needs about "))
            .collect();
        Outcome {
            args,
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr,
        }
    }
}

impl Outcome {
    /// The command, its exit code and its words, as a terminal would show them.
    pub fn transcript(&self) -> String {
        let code = self
            .code
            .map_or_else(|| "a signal".to_owned(), |c| c.to_string());
        let mut text = format!("$ dlc {}\nexit {code}\n", self.args.join(" "));
        for (name, part) in [("stdout", &self.stdout), ("stderr", &self.stderr)]
            .iter()
            .filter(|(_, part)| !part.is_empty())
        {
            text += &format!("--- {name}\n{}\n", part.trim_end());
        }
        text
    }

    /// stdout as one JSON document.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}\n{}", self.transcript()))
    }
}

/// Name and bytes of every file of a folder, and of the folders in it.
pub fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(Result::unwrap);
    let mut files = Vec::new();
    for entry in entries {
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            let inner = contents(&entry.path()).into_iter();
            files.extend(inner.map(|(file, bytes)| (format!("{name}/{file}"), bytes)));
        } else {
            files.push((name, fs::read(entry.path()).unwrap()));
        }
    }
    files.sort();
    files
}

/// Fails, naming the files, unless two folders hold the same.
pub fn assert_same_files(a: &Path, b: &Path) {
    let (a, b) = (contents(a), contents(b));
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|f| f.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(&a), names(&b));
    let differing: Vec<&str> = a
        .iter()
        .zip(&b)
        .filter(|(x, y)| x.1 != y.1)
        .map(|(x, _)| x.0.as_str())
        .collect();
    assert!(differing.is_empty(), "{differing:?} differ");
}

/// A shell that tests share, with the bundles `portable`, `onnx` and `ort` (pruned tiny-llama),
/// `plain` (without a draft) and `golden` (without a tokenizer). Tests only read them. It is
/// removed when no test holds it any more.
pub fn bundles() -> Arc<Shell> {
    static SHARED: Mutex<Weak<Shell>> = Mutex::new(Weak::new());
    let mut shared = SHARED
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(shell) = shared.upgrade() {
        return shell;
    }
    let shell = Arc::new(Shell::new());
    for profile in ["portable", "onnx", "ort"] {
        shell.ok(&[
            "compile",
            "fixtures/tiny-llama",
            "--pass",
            PRUNE_TINY,
            "--profile",
            profile,
            "-o",
            profile,
        ]);
    }
    shell.ok(&["compile", "fixtures/tiny-llama", "-o", "plain"]);
    shell.ok(&[
        "compile",
        "fixtures/goldens/llama",
        "--pass",
        PRUNE_GOLDEN,
        "-o",
        "golden",
    ]);
    *shared = Arc::downgrade(&shell);
    shell
}

/// Replaces what changes from run to run, or from version to version.
pub fn settings() -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.set_omit_expression(true);
    for (pattern, replacement) in [
        (r"\d+\.\d+(e-?\d+)? nats", "[LOSS] nats"),
        (r"█+ *( +\d\.\d+e-?\d+)+", "[SCORES]"),
        (r"compiled in \d+\.\d s.*;", "compiled in [TIME] s;"),
        (r"converted in \d+\.\d s", "converted in [TIME] s"),
        (r"\d+\.\d tokens/s", "[SPEED] tokens/s"),
        (r"(?m)(\.onnx +)\d+(  [0-9a-f]{16})$", "$1[SIZE]$2"),
        (r"(?m)(  )[0-9a-f]{16}$", "$1[SHA256]"),
        (r"\.dlc-tmp-\d+-", ".dlc-tmp-[PID]-"),
        (r"threads    \d+", "threads    [N]"),
        (r"from 1 to \d+, four times", "from 1 to [N], four times"),
        (r"\S+/target/\S+", "[TARGET]"),
        (
            &format!("dlc {}", env!("CARGO_PKG_VERSION").replace('.', r"\.")),
            "dlc [VERSION]",
        ),
    ] {
        settings.add_filter(pattern, replacement);
    }
    settings
}

/// Compares with a snapshot of the calling file.
macro_rules! snapshot {
    ($name:expr, $text:expr) => {
        $crate::command::settings().bind(|| insta::assert_snapshot!($name, $text))
    };
}
pub(crate) use snapshot;
