//! What compiling costs: seconds and peak memory of `dlc compile`, in one run beside another tool's exporter if that is installed.
//!
//! ```text
//! scripts/fetch_smollm2.sh
//! cargo bench --bench compile                                  # dlc alone
//! DLC_PEER_PYTHON=/path/to/venv/bin/python cargo bench ...     # beside onnxruntime-genai's model builder
//! ```
#![allow(clippy::print_stdout, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What one run took.
struct Cost {
    seconds: f64,
    /// Largest anonymous memory seen (what the process allocated), in MB.
    anonymous: f64,
    /// Largest resident memory seen, mapped files included, in MB.
    resident: f64,
}

const REPEATS: usize = 3;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let model = root.join("target/models/smollm2-135m-off-grid");
    let model = if model.is_dir() {
        model
    } else {
        println!("{} isn't there (scripts/fetch_smollm2.sh makes it); measuring fixtures/tiny-llama", model.display());
        root.join("fixtures/tiny-llama")
    };
    let out = root.join("target/bench-bundle");
    println!("{:<44} {:>9} {:>14} {:>14}", "", "seconds", "anonymous MB", "resident MB");
    let plain = ["--profile", "ort", "--dtype", "f32"];
    let best = (0..REPEATS).map(|_| compile(&model, &out, &plain)).min_by(|a, b| a.seconds.total_cmp(&b.seconds));
    if let Some(cost) = &best {
        show("dlc compile, f32, ort, no scoring", cost);
    }
    let scored = [&plain[..], &["--pass", "fit-prune:drop=3,samples=8,length=128", "--no-cache", "--threads", "1"]].concat();
    show("the same with fit-prune, 1 thread", &compile(&model, &out, &scored));
    if let (Some(python), Some(ours)) = (std::env::var_os("DLC_PEER_PYTHON"), best) {
        peer(Path::new(&python), &root.join("scripts/bench_peer.py"), &model, ours.seconds);
    }
}

fn compile(model: &Path, out: &Path, flags: &[&str]) -> Cost {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dlc"));
    command.arg("compile").arg(model).args(flags).arg("--force").arg("-o").arg(out);
    measure(command.stdout(Stdio::null()).stderr(Stdio::null()))
}

fn show(what: &str, cost: &Cost) {
    println!("{what:<44} {:>9.2} {:>14.0} {:>14.0}", cost.seconds, cost.anonymous, cost.resident);
}

/// Runs a command and watches its memory from `/proc`.
fn measure(command: &mut Command) -> Cost {
    let start = Instant::now();
    let mut child = command.spawn().expect("the command starts");
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let (mut anonymous, mut resident) = (0f64, 0f64);
    let code = loop {
        if let Some(code) = child.try_wait().expect("the command can be waited for") {
            break code;
        }
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        anonymous = anonymous.max(megabytes(&text, "RssAnon:"));
        resident = resident.max(megabytes(&text, "VmHWM:"));
        std::thread::sleep(Duration::from_millis(5));
    };
    let seconds = start.elapsed().as_secs_f64();
    assert!(code.success(), "{command:?} failed");
    Cost { seconds, anonymous, resident }
}

fn megabytes(status: &str, key: &str) -> f64 {
    let line = status.lines().find_map(|l| l.strip_prefix(key));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

fn peer(python: &Path, script: &Path, model: &Path, ours: f64) {
    let output = Command::new(python).arg(script).arg(model).output().expect("the peer's script starts");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("peer: {}", text.trim());
    let seconds = text.split("\"seconds\":").nth(1).and_then(|t| t.trim().split([',', '}', '\n']).next()?.trim().parse::<f64>().ok());
    if let Some(seconds) = seconds {
        println!("ratio peer / dlc: {:.1}", seconds / ours);
    }
}
