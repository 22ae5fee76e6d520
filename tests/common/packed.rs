//! Checkpoints that are quantised already (`fixtures/quantised`), against what transformers computes
//! with the unpacked weights.

use std::path::PathBuf;

use dlc::checkpoint::Checkpoint;
use dlc::import::{ImportOptions, import};
use dlc::pipeline::{Check, module_of_bundle, parse_pass_flag, verify_bundle};
use dlc_bundle::Profile;
use dlc_ir::Module;
use dlc_passes::{KeptCodes, keep_codes};
use dlc_runtime::{Backend, Bundle, SessionOptions};

use super::decoding::{compile_quietly, compile_request};
use super::fixture;
use super::golden::{CASES, Golden, TOLERANCE};
use super::session::Engine;
use super::suite::check_module;

pub const FOLDER: &str = "quantised";
/// Each with a golden.
pub const NAMES: [&str; 6] = [
    "gptq-llama",
    "gptq-llama-8",
    "gptq-qwen2",
    "awq-llama",
    "awq-qwen2",
    "gguf-llama",
];

/// How far logits may be where `MatMulNBits` rounds activations to 8 bits; the largest are about 3.
const ROUNDED_ACTIVATIONS: f32 = 0.1;

/// Where a checkpoint lies.
pub fn place(name: &str) -> PathBuf {
    let folder = fixture(&format!("{FOLDER}/{name}"));
    let file = folder.join("model.gguf");
    if file.exists() { file } else { folder }
}

/// The checkpoint with its matrices as numbers.
pub fn module(name: &str) -> Module {
    let checkpoint = Checkpoint::open(&place(name)).unwrap();
    import(&checkpoint, &ImportOptions::default()).unwrap()
}

/// The checkpoint with the codes that can be kept, and what became of the others.
pub fn kept(name: &str) -> (Module, KeptCodes) {
    let mut module = module(name);
    let codes = keep_codes(&mut module, None).unwrap();
    (module, codes)
}

/// Text of the vocabularies of all checkpoints.
const TOKENS: &str =
    "{\"tokens\": [3, 14, 15, 9, 26, 5, 35, 8]}\n{\"tokens\": [27, 18, 28, 1, 8, 2, 8, 45]}\n";

/// Every checkpoint is compiled with a pruned draft, and both run as the evaluator says of the same
/// codes.
pub fn check_compiled(backend: &Backend, profile: Profile) -> Result<(), String> {
    for name in NAMES {
        let folder = tempfile::tempdir().unwrap();
        let calibration = folder.path().join("tokens.jsonl");
        std::fs::write(&calibration, TOKENS).unwrap();
        let prune = format!("fit-prune:drop=1,calibration={}", calibration.display());
        let mut request = compile_request(place(name), profile, folder.path().join("bundle"));
        request.passes = vec![parse_pass_flag(&prune).unwrap()];
        compile_quietly(&request).map_err(|e| format!("{name}: {e}"))?;
        let bundle = Bundle::open(&request.output).map_err(|e| format!("{name}: {e}"))?;
        let module = module_of_bundle(&bundle).map_err(|e| format!("{name}: {e}"))?;
        let checks = verify_bundle(&bundle, &module, backend, &SessionOptions::default(), None)
            .map_err(|e| format!("{name}: {e}"))?;
        let failed: Vec<&Check> = checks.iter().filter(|check| !check.passed()).collect();
        let keeps = !kept(name).1.kept.is_empty();
        if !failed.is_empty() || bundle.manifest().has_codes() != keeps {
            return Err(format!("{name}: of {} checks {failed:?}", checks.len()));
        }
    }
    Ok(())
}

/// Every checkpoint computes the recorded logits with the codes that it keeps.
pub fn check_kept(engine: &Engine) -> Result<(), String> {
    let tolerance = match engine {
        Engine::Backend(_, Profile::Onnx | Profile::Ort) => ROUNDED_ACTIVATIONS,
        Engine::Backend(_, Profile::Portable) | Engine::Evaluator => TOLERANCE,
    };
    for name in NAMES {
        let golden = Golden::read_of(FOLDER, name);
        let (module, _) = kept(name);
        for case in CASES {
            check_module(engine, module.clone(), &golden, case, tolerance)?;
        }
    }
    Ok(())
}
