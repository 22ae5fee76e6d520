//! Checkpoints that are quantised already (`fixtures/quantised`), against what transformers computes
//! with the unpacked weights.

use std::path::PathBuf;

use dlc::checkpoint::Checkpoint;
use dlc::import::{ImportOptions, import};
use dlc_bundle::Profile;
use dlc_ir::Module;
use dlc_passes::{KeptCodes, keep_codes};

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

/// Every checkpoint computes the recorded logits with the codes that it keeps.
pub fn check_kept(engine: &Engine) -> Result<(), String> {
    let tolerance = match engine {
        Engine::Backend(_, Profile::Ort) => ROUNDED_ACTIVATIONS,
        _ => TOLERANCE,
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
