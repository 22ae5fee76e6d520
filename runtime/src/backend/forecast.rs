//! What can't be run on this machine, said before anybody tries: by what is found, without starting
//! anything.

use dlc_bundle::{Manifest, Profile};
use dlc_ir::DType;

use super::SETUP;

/// Why no runtime that was found here can run a bundle, and the way out; none if one can. `library`
/// is whether an ONNX Runtime library was found.
pub fn unrunnable(manifest: &Manifest, library: bool, gpu: bool) -> Option<String> {
    let (profile, dtype) = (manifest.profile, manifest.model.dtype);
    if dtype == DType::Bf16 && !gpu {
        let why = "neither ONNX Runtime nor tract computes in bf16 on the CPU, and no GPU is found";
        return Some(format!(
            "nothing here can run the bundle: {why}; compile with `--dtype f32` to run it here"
        ));
    }
    if profile == Profile::Ort && !library {
        let why = "no ONNX Runtime library is found, and the built-in tract doesn't run its own operators";
        return Some(format!(
            "nothing here can run the bundle: {why}; {SETUP}, or compile with `--profile onnx`"
        ));
    }
    None
}
