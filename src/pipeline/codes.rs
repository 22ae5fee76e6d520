//! Whether matrices that a checkpoint holds as codes keep them in the bundle.

use dlc_bundle::Profile;
use dlc_ir::{DType, Module};
use dlc_passes::keep_codes;

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

/// The module with the codes that it keeps unless there is an `obstacle`.
pub(super) fn as_written(module: &Module, obstacle: Option<&str>) -> Result<Module, PipelineError> {
    let mut written = module.clone();
    keep_codes(&mut written, obstacle)?;
    Ok(written)
}
