//! What compiling costs: seconds and peak memory of `dlc compile`, in one run beside another tool's
//! exporter if that is installed.
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

use half::f16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{TensorView, serialize_to_file};
use safetensors::{Dtype, SafeTensors};

/// What one run took.
struct Cost {
    seconds: f64,
    /// Largest anonymous memory seen (what the process allocated), in MB.
    anonymous: f64,
    /// Largest resident memory seen, mapped files included, in MB.
    resident: f64,
}

const REPEATS: usize = 3;
/// Pairs of compilations with and without an adapter.
const MERGES: usize = 5;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let model = root.join("target/models/smollm2-135m-off-grid");
    let model = if model.is_dir() {
        model
    } else {
        println!(
            "{} isn't there (scripts/fetch_smollm2.sh makes it); measuring fixtures/tiny-llama",
            model.display()
        );
        root.join("fixtures/tiny-llama")
    };
    let out = root.join("target/bench-bundle");
    println!(
        "{:<44} {:>9} {:>14} {:>14}",
        "", "seconds", "anonymous MB", "resident MB"
    );
    let plain = ["--profile", "ort", "--dtype", "f32"];
    let best = (0..REPEATS)
        .map(|_| compile(&model, &out, &plain))
        .min_by(|a, b| a.seconds.total_cmp(&b.seconds));
    if let Some(cost) = &best {
        show("dlc compile, f32, ort, no scoring", cost);
    }
    let adapter = root.join("target/bench-adapter");
    dual_adapter(&model, &adapter);
    let with_adapter = [
        &plain[..],
        &["--adapter", adapter.to_str().expect("a path in UTF-8")],
    ]
    .concat();
    merged(&model, &out, &plain, &with_adapter);
    let scored = [
        &plain[..],
        &[
            "--pass",
            "fit-prune:drop=3,samples=8,length=128",
            "--no-cache",
            "--threads",
            "1",
        ],
    ]
    .concat();
    show(
        "the same with fit-prune, 1 thread",
        &compile(&model, &out, &scored),
    );
    if let (Some(python), Some(ours)) = (std::env::var_os("DLC_PEER_PYTHON"), best) {
        peer(
            Path::new(&python),
            &root.join("scripts/bench_peer.py"),
            &model,
            ours.seconds,
        );
    }
}

/// Compiles with and without the adapter in alternation, and shows the medians of each and their
/// ratio.
fn merged(model: &Path, out: &Path, plain: &[&str], with_adapter: &[&str]) {
    let pairs: Vec<[Cost; 2]> = (0..MERGES)
        .map(|_| {
            [
                compile(model, out, plain),
                compile(model, out, with_adapter),
            ]
        })
        .collect();
    let median = |which: usize, of: fn(&Cost) -> f64| {
        let mut all: Vec<f64> = pairs.iter().map(|pair| of(&pair[which])).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let cost = |which| Cost {
        seconds: median(which, |c| c.seconds),
        anonymous: median(which, |c| c.anonymous),
        resident: median(which, |c| c.resident),
    };
    let (without, with) = (cost(0), cost(1));
    show("without an adapter, in alternation with", &without);
    show("a Dual LoRA of ranks 16+16 on every projection", &with);
    println!(
        "ratio with / without: {:.2}; anonymous memory {:+.0} MB",
        with.seconds / without.seconds,
        with.anonymous - without.anonymous
    );
}

/// A random Dual LoRA of ranks 16 and 16 on every projection of the model's layers, in half
/// precision.
fn dual_adapter(model: &Path, folder: &Path) {
    const RANK: usize = 16;
    let bytes = std::fs::read(model.join("model.safetensors")).expect("the checkpoint can be read");
    let tensors = SafeTensors::deserialize(&bytes).expect("it holds tensors");
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut parts: Vec<(String, [usize; 2], Vec<u8>)> = Vec::new();
    let mut modules = std::collections::BTreeSet::new();
    for (name, view) in tensors.iter() {
        let (Some(module), &[out, inner]) = (name.strip_suffix("_proj.weight"), view.shape())
        else {
            continue;
        };
        modules.insert(format!(
            "{}_proj",
            module.rsplit('.').next().unwrap_or(module)
        ));
        for (part, shape) in [
            ("magnitude_A", [RANK, inner]),
            ("magnitude_B", [out, RANK]),
            ("direction_A", [RANK, inner]),
            ("direction_B", [out, RANK]),
        ] {
            let numbers = (0..shape[0] * shape[1])
                .flat_map(|_| f16::from_f32(rng.random_range(-0.02..0.02)).to_le_bytes());
            parts.push((
                format!("base_model.model.{module}_proj.lora_{part}.weight"),
                shape,
                numbers.collect(),
            ));
        }
    }
    std::fs::create_dir_all(folder).expect("there is room");
    let config = serde_json::json!({
        "peft_type": "DUAL_LORA", "r_magnitude": RANK, "r_direction": RANK, "lora_alpha": 16, "target_modules": modules,
    });
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).expect("there is room");
    let views = parts.iter().map(|(name, shape, bytes)| {
        (
            name,
            TensorView::new(Dtype::F16, shape.to_vec(), bytes).expect("fits"),
        )
    });
    serialize_to_file(views, None, &folder.join("adapter_model.safetensors"))
        .expect("there is room");
}

fn compile(model: &Path, out: &Path, flags: &[&str]) -> Cost {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dlc"));
    command
        .arg("compile")
        .arg(model)
        .args(flags)
        .arg("--force")
        .arg("-o")
        .arg(out);
    measure(command.stdout(Stdio::null()).stderr(Stdio::null()))
}

fn show(what: &str, cost: &Cost) {
    println!(
        "{what:<44} {:>9.2} {:>14.0} {:>14.0}",
        cost.seconds, cost.anonymous, cost.resident
    );
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
    Cost {
        seconds,
        anonymous,
        resident,
    }
}

fn megabytes(status: &str, key: &str) -> f64 {
    let line = status.lines().find_map(|l| l.strip_prefix(key));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<f64>().ok())
        .unwrap_or(0.0)
        / 1024.0
}

fn peer(python: &Path, script: &Path, model: &Path, ours: f64) {
    let output = Command::new(python)
        .arg(script)
        .arg(model)
        .output()
        .expect("the peer's script starts");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("peer: {}", text.trim());
    let seconds = text.split("\"seconds\":").nth(1).and_then(|t| {
        t.trim()
            .split([',', '}', '\n'])
            .next()?
            .trim()
            .parse::<f64>()
            .ok()
    });
    if let Some(seconds) = seconds {
        println!("ratio peer / dlc: {:.1}", seconds / ours);
    }
}
