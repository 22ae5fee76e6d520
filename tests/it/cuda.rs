//! Which nodes ONNX Runtime's CUDA provider leaves to the CPU, as its kernels say: of every golden,
//! op, profile and element type. `scripts/check_cuda.py` asks ONNX Runtime itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use dlc_bundle::Profile;
use dlc_exporters::cuda_report;
use dlc_ir::{DType, Module};

use crate::command::Shell;
use crate::common::folders;
use crate::common::golden::module;
use crate::common::ops::Sample;

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

/// Every golden in one element type.
fn goldens(dtype: DType) -> Vec<(String, Module)> {
    let mut names = folders("goldens");
    names.sort();
    names
        .into_iter()
        .map(|name| {
            let module = module(&name, dtype);
            (name, module)
        })
        .collect()
}

#[test]
fn nodes_without_a_cuda_kernel_are_these() {
    let mut modules = DTYPES.map(|dtype| (dtype, goldens(dtype)));
    let ops = Sample::all().into_iter();
    modules[0]
        .1
        .extend(ops.map(|sample| (format!("op {}", sample.name), sample.module)));
    for profile in Profile::ALL {
        let mut listing = String::new();
        for (dtype, modules) in &modules {
            let mut found: BTreeMap<String, Vec<&str>> = BTreeMap::new();
            for (name, module) in modules {
                for node in cuda_report(module, profile).unwrap().cpu_nodes {
                    let kind = format!("{} {} {}", node.operator, node.since, node.types);
                    let names = found.entry(kind).or_default();
                    if names.last() != Some(&name.as_str()) {
                        names.push(name);
                    }
                }
            }
            writeln!(listing, "{dtype}: {} models", modules.len()).unwrap();
            for (kind, names) in found {
                let count = names.len();
                writeln!(listing, "  {kind}\n    {count}: {}", names.join(", ")).unwrap();
            }
        }
        insta::assert_snapshot!(format!("cuda_{}", profile.name()), listing);
    }
}

#[test]
fn f16_leaves_none_where_it_is_said_to() {
    let half: BTreeMap<String, Module> = goldens(DType::F16).into_iter().collect();
    for dtype in [DType::F32, DType::Bf16] {
        for (name, module) in goldens(dtype) {
            for profile in Profile::ALL {
                let said = cuda_report(&module, profile).unwrap().f16_leaves_none;
                let found = cuda_report(&half[&name], profile).unwrap().cpu_nodes;
                assert_eq!(
                    said,
                    found.is_empty(),
                    "{name} {dtype} {}: {found:?}",
                    profile.name()
                );
            }
        }
    }
}

#[test]
fn compiling_for_cuda_names_the_nodes_left_to_the_cpu() {
    let shell = Shell::new();
    let compile = |args: &[&str]| {
        let model = ["compile", "fixtures/tiny-llama", "--force", "-o", "out"];
        shell.ok(&[&model, args].concat())
    };
    let warned = compile(&["--profile", "ort", "--provider", "cuda", "--json"]);
    for part in [
        "leaves nodes to the CPU",
        "com.microsoft.GroupQueryAttention",
        "`--dtype f16` or `--profile portable` or `--profile onnx` leaves it none",
    ] {
        assert!(warned.stderr.contains(part), "{}", warned.transcript());
    }
    let summary: serde_json::Value = serde_json::from_str(&warned.stdout).unwrap();
    let nodes = summary["cpu_nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 12, "{summary}");
    assert!(
        nodes.iter().all(|node| node["graph"] == "target"
            && node["operator"] == "com.microsoft.GroupQueryAttention")
    );

    let fine = compile(&["--profile", "ort", "--dtype", "f16", "--provider", "cuda"]);
    assert!(!fine.stderr.contains("to the CPU"), "{}", fine.transcript());
    let silent = compile(&["--profile", "ort"]);
    assert!(
        !silent.stderr.contains("to the CPU"),
        "{}",
        silent.transcript()
    );
    shell.write("pipeline.yaml", "profile: ort\nprovider: cuda\n");
    let by_file = compile(&["--config", "pipeline.yaml"]);
    assert!(
        by_file.stderr.contains("to the CPU"),
        "{}",
        by_file.transcript()
    );
    // A flag decides over the file.
    let over = compile(&["--config", "pipeline.yaml", "--provider", "cpu"]);
    assert!(!over.stderr.contains("to the CPU"), "{}", over.transcript());
}
