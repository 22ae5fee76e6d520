//! Adapter goldens: a tiny llama, its adapter, and what the reference made of both.

use std::path::{Path, PathBuf};

use dlc::pipeline::{PipelineError, parse_adapter_flag};
use dlc::runtime::{Backend, Bundle, Session, SessionOptions};
use dlc_exporters::manifest::Profile;
use safetensors::SafeTensors;

use super::decoding::{compile_quietly, compile_request};
use super::fixture;
use super::golden::{Feed, TOLERANCE};
use super::session::run_once;

pub const KINDS: [&str; 4] = ["lora", "rslora", "dora", "dual"];

pub fn folder(kind: &str) -> PathBuf {
    fixture(&format!("adapters/{kind}-llama"))
}

/// The adapter's folder, as a flag.
pub fn adapter(kind: &str) -> String {
    folder(kind).join("adapter").display().to_string()
}

/// Compiles the golden's base with these adapters.
pub fn compile_with(kind: &str, adapters: &[String], profile: Profile, out: &Path) -> Result<Bundle, PipelineError> {
    let mut request = compile_request(folder(kind), profile, out.join("bundle"));
    request.adapters = adapters.iter().map(|a| parse_adapter_flag(a).unwrap()).collect();
    compile_quietly(&request)?;
    Ok(Bundle::open(&request.output)?)
}

fn recorded(kind: &str, name: &str) -> Vec<u8> {
    let bytes = std::fs::read(folder(kind).join("golden.safetensors")).unwrap();
    SafeTensors::deserialize(&bytes).unwrap().tensor(name).unwrap().data().to_vec()
}

/// Logits that the reference returned: `output.logits` of the base, `output_merged.logits` with the adapter.
pub fn logits(kind: &str, name: &str) -> Vec<f32> {
    recorded(kind, name).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// The two sequences that the reference saw.
pub fn feed(kind: &str) -> Feed {
    let ids: Vec<i64> = recorded(kind, "input.input_ids").chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    let n = ids.len() / 2;
    Feed { shape: [2, n], mask: vec![1; ids.len()], positions: (0..2).flat_map(|_| 0..n as i64).collect(), ids }
}

pub fn largest_error(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, |worst, e| if e.is_nan() { f32::INFINITY } else { worst.max(e) })
}

/// The merged model, exported and run by `backend`, says what the reference says.
pub fn check_adapter(backend: &Backend, kind: &str, profile: Profile) -> Result<(), String> {
    let out = tempfile::tempdir().unwrap();
    let bundle = compile_with(kind, &[adapter(kind)], profile, out.path()).map_err(|e| e.to_string())?;
    let mut session = Session::load(backend, &bundle, "target", None, &SessionOptions::default()).map_err(|e| e.to_string())?;
    let outputs = run_once(&bundle, &mut session, &feed(kind), &[])?;
    let found = outputs.iter().find(|(n, _)| n == "logits").unwrap().1.to_f32().unwrap();
    let error = largest_error(&found, &logits(kind, "output_merged.logits"));
    if error <= TOLERANCE { Ok(()) } else { Err(format!("{kind} {}: largest error {error:e}", profile.name())) }
}
