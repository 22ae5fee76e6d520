//! The last changes before a module is written: constants are folded, and matrices that a checkpoint
//! holds as codes keep them or not.

use dlc_bundle::Profile;
use dlc_ir::{DType, Module};
use dlc_passes::{KeptCodes, fold_constants, keep_codes};

use super::error::PipelineError;

/// Why no matrix keeps its codes in such a bundle, if none does.
pub(super) fn obstacle(profile: Profile, dtype: DType, dequantize: bool) -> Option<&'static str> {
    match (profile, dtype) {
        _ if dequantize => Some("--dequantize says so"),
        (Profile::Portable, _) => {
            Some("profile portable has no product with codes; --profile ort has")
        }
        (Profile::Onnx | Profile::Ort, DType::F32) => None,
        _ => Some("products with codes are computed in f32; leave --dtype out"),
    }
}

/// Makes of a module that no pass will see any more what the bundle holds: constants are folded, and
/// codes are kept unless there is an `obstacle`.
pub(super) fn finish(
    module: &mut Module,
    obstacle: Option<&str>,
) -> Result<KeptCodes, PipelineError> {
    fold_constants(module)?;
    Ok(keep_codes(module, obstacle)?)
}

/// What the bundle holds of the module if no pass changes it.
pub(super) fn as_written(module: &Module, obstacle: Option<&str>) -> Result<Module, PipelineError> {
    let mut written = module.clone();
    finish(&mut written, obstacle)?;
    Ok(written)
}
