//! What can't be run on this machine, said before anybody tries: by what is found, without starting
//! anything.

use dlc_bundle::Manifest;
use dlc_ir::DType;

use super::{SETUP, foreign_to_tract};

/// Why no runtime that was found here can run a bundle, and the way out; none if one can. `library`
/// is whether an ONNX Runtime library was found.
pub fn unrunnable(manifest: &Manifest, library: bool, gpu: bool) -> Option<String> {
    if manifest.model.dtype == DType::Bf16 && !gpu {
        let why = "neither ONNX Runtime nor tract computes in bf16 on the CPU, and no GPU is found";
        return Some(format!(
            "nothing here can run the bundle: {why}; compile with `--dtype f32` to run it here"
        ));
    }
    if !library && let Some((why, profile)) = foreign_to_tract(manifest) {
        return Some(format!(
            "nothing here can run the bundle: no ONNX Runtime library is found, and {why}; {SETUP}, or compile with `--profile {profile}`"
        ));
    }
    None
}
