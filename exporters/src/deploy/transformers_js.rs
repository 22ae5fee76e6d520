//! transformers.js looks for `onnx/model.onnx`, with a suffix for other element types than f32, and
//! for the weights in one file of the same name with `_data`, if `config.json` says that there is
//! one.

use dlc_bundle::Profile;
use dlc_ir::{DType, ModelInfo, Module};

use super::json::with_entries;
use super::{DeploymentTarget, Layout, of_images, plain};

/// The object of `config.json` that transformers.js reads, and no other library.
const KEY: &str = "transformers.js_config";

pub(super) const TARGET: DeploymentTarget = DeploymentTarget {
    refuses,
    layout: |model| Layout {
        folder: "onnx/",
        ..if model.dtype == DType::F16 {
            HALF
        } else {
            SINGLE
        }
    },
    edits: &[("config.json", config)],
    ..plain("transformers.js", "transformers.js", Profile::Portable)
};

const SINGLE: Layout = Layout {
    weights: "model.onnx_data",
    ..Layout::FLAT
};

const HALF: Layout = Layout {
    suffix: "_fp16.onnx",
    weights: "model_fp16.onnx_data",
    ..Layout::FLAT
};

fn refuses(model: &ModelInfo) -> Option<String> {
    let unnamed = || {
        let dtype = model.dtype;
        (!matches!(dtype, DType::F32 | DType::F16)).then(|| {
            format!("it has no file name for {dtype}; compile with --dtype f32 or --dtype f16")
        })
    };
    of_images(model).or_else(unnamed)
}

/// Says that the weights lie in a file of their own, and which element type there is: the key
/// replaces the default, f32, and what the checkpoint says of other files.
fn config(text: &str, module: &Module) -> Result<String, String> {
    let name = if module.model.dtype == DType::F16 {
        "fp16"
    } else {
        "fp32"
    };
    with_entries(
        text,
        &[KEY],
        &[
            ("dtype", format!("\"{name}\"")),
            ("use_external_data_format", "true".to_owned()),
        ],
    )
}
