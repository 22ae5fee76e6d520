//! Adapter goldens: a tiny model, its adapters, and what the reference made of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use dlc::pipeline::{PipelineError, module_of_bundle, parse_adapter_flag};
use dlc_bundle::Profile;
use dlc_eval::Array;
use dlc_ir::{Dim, Graph};
use dlc_runtime::{Backend, Bundle, HostTensor, Session, SessionOptions};

use super::decoding::{compile_quietly, compile_request};
use super::golden::{TOLERANCE, recorded};
use super::{fixture, folders};

/// Every adapter golden: kind of adapter and family, see `fixtures/README.md`.
pub fn all_adapters() -> impl Iterator<Item = &'static str> {
    static ADAPTERS: LazyLock<Vec<String>> = LazyLock::new(|| {
        let mut names = folders("adapters");
        assert!(names.len() >= 16, "{names:?}");
        names.sort();
        names
    });
    ADAPTERS.iter().map(String::as_str)
}

pub fn folder(golden: &str) -> PathBuf {
    fixture(&format!("adapters/{golden}"))
}

/// The adapter's folder, as a flag.
pub fn adapter(golden: &str) -> String {
    folder(golden).join("adapter").display().to_string()
}

/// The golden's adapters in order, as flags.
pub fn adapters(golden: &str) -> Vec<String> {
    match golden {
        "two-llama" => vec![
            format!("{}=0.7", adapter(golden)),
            folder(golden).join("second").display().to_string(),
        ],
        _ => vec![adapter(golden)],
    }
}

/// Compiles the golden's base with these adapters.
pub fn compile_with(
    golden: &str,
    adapters: &[String],
    profile: Profile,
    out: &Path,
) -> Result<Bundle, PipelineError> {
    let mut request = compile_request(folder(golden), profile, out.join("bundle"));
    request.adapters = adapters
        .iter()
        .map(|a| parse_adapter_flag(a).unwrap())
        .collect();
    compile_quietly(&request)?;
    Ok(Bundle::open(&request.output)?)
}

/// Logits that the reference returned: `output.logits` of the base, `output_merged.logits` with the
/// adapters.
pub fn logits(golden: &str, name: &str) -> Vec<f32> {
    recorded(&folder(golden).join("golden.safetensors"))[name]
        .as_f32()
        .unwrap()
        .to_vec()
}

/// What the reference was fed, in terms of `graph`: no padding unless recorded, and empty caches.
pub fn inputs(golden: &str, graph: &Graph) -> BTreeMap<String, Array> {
    let recorded = recorded(&folder(golden).join("golden.safetensors"));
    let [batch, n] = recorded["input.input_ids"].shape()[..] else {
        panic!("the tokens of {golden} are no matrix")
    };
    let default = |name: &str, dims: &[Dim]| match name {
        "attention_mask" => Array::i64([batch, n], vec![1; batch * n]),
        "position_ids" => Array::i64([batch, n], (0..batch).flat_map(|_| 0..n as i64).collect()),
        _ => Array::f32(
            [batch, dims[1].known().unwrap(), 0, dims[3].known().unwrap()],
            vec![],
        ),
    };
    let array = |name: &str, dims: &[Dim]| {
        recorded
            .get(&format!("input.{name}"))
            .cloned()
            .unwrap_or_else(|| default(name, dims).unwrap())
    };
    graph
        .inputs()
        .iter()
        .map(|i| {
            (
                i.name.clone(),
                array(&i.name, &graph.value(i.value).ty.shape.0),
            )
        })
        .collect()
}

pub fn largest_error(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(x, y)| (x - y).abs())
        .fold(0.0, |worst, e| {
            if e.is_nan() {
                f32::INFINITY
            } else {
                worst.max(e)
            }
        })
}

/// The merged model, exported and run by `backend`, says what the reference says.
pub fn check_adapter(backend: &Backend, golden: &str, profile: Profile) -> Result<(), String> {
    let out = tempfile::tempdir().unwrap();
    let bundle =
        compile_with(golden, &adapters(golden), profile, out.path()).map_err(|e| e.to_string())?;
    let module = module_of_bundle(&bundle).unwrap();
    let feeds = inputs(golden, &module.graphs[0]);
    let tensor = |array: &Array| match array.as_i64() {
        Some(data) => HostTensor::i64(array.shape(), data.to_vec()),
        None => HostTensor::f32(array.shape(), array.as_f32().unwrap().to_vec()),
    };
    let ports = &bundle.graph("target").unwrap().inputs;
    let tensors: Vec<(&str, HostTensor)> = ports
        .iter()
        .map(|port| (port.name.as_str(), tensor(&feeds[&port.name])))
        .collect();
    let mut session = Session::load(backend, &bundle, "target", None, &SessionOptions::default())
        .map_err(|e| e.to_string())?;
    let outputs = session.run_host(&tensors).map_err(|e| e.to_string())?;
    let found = outputs
        .iter()
        .find(|(n, _)| n == "logits")
        .unwrap()
        .1
        .to_f32()
        .unwrap();
    let error = largest_error(&found, &logits(golden, "output_merged.logits"));
    if error <= TOLERANCE {
        Ok(())
    } else {
        Err(format!(
            "{golden} {}: largest error {error:e}",
            profile.name()
        ))
    }
}
