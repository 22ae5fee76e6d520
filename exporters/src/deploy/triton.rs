//! A model of Triton Inference Server, for its ONNX Runtime backend: the bundle's folder is the
//! model's folder in a model repository, with one version.

use std::fmt::Write;

use dlc_bundle::{PortRecord, Profile};
use dlc_ir::{DType, ModelInfo, Task};

use super::{DeploymentTarget, Layout, TargetFiles, WrittenBundle, plain};

const FILE: &str = "config.pbtxt";

pub(super) const TARGET: DeploymentTarget = DeploymentTarget {
    refuses,
    layout: |_| Layout {
        folder: "1/",
        ..Layout::FLAT
    },
    writes: &[FILE],
    files,
    ..plain(
        "triton",
        "a model of Triton Inference Server",
        Profile::Portable,
    )
};

fn refuses(model: &ModelInfo) -> Option<String> {
    (model.task == Task::TextGeneration).then(|| {
        "its ONNX Runtime backend keeps no caches between requests, and this model needs them for \
         every token; use --deploy genai or --deploy onnxruntime"
            .to_owned()
    })
}

fn files(bundle: &WrittenBundle<'_>) -> TargetFiles {
    let Some(target) = bundle.graph("target") else {
        return vec![];
    };
    // No size of a batch: every axis stands in `dims`, as the ONNX file has it.
    let mut text = "backend: \"onnxruntime\"\nmax_batch_size: 0\n".to_owned();
    for (field, ports) in [("input", &target.inputs), ("output", &target.outputs)] {
        for port in ports {
            text += &entry(field, port);
        }
    }
    vec![(FILE, text.into_bytes())]
}

/// An input or output; an axis without a fixed size is -1.
fn entry(field: &str, port: &PortRecord) -> String {
    let dims: Vec<&str> = port
        .shape
        .iter()
        .map(|dim| dim.parse::<u64>().map_or("-1", |_| dim.as_str()))
        .collect();
    let mut text = format!("{field} [\n  {{\n");
    let _ = writeln!(text, "    name: \"{}\"", port.name);
    let _ = writeln!(text, "    data_type: {}", data_type(port.dtype));
    let _ = writeln!(text, "    dims: [ {} ]", dims.join(", "));
    text + "  }\n]\n"
}

fn data_type(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "TYPE_FP32",
        DType::F16 => "TYPE_FP16",
        DType::Bf16 => "TYPE_BF16",
        DType::I64 => "TYPE_INT64",
        DType::U8 => "TYPE_UINT8",
    }
}
