//! Sentence Transformers with `backend="onnx"` looks for `onnx/model.onnx`, and makes a text's
//! vector of the tokens' as the checkpoint's `modules.json` says.

use dlc_bundle::Profile;
use dlc_ir::ModelInfo;

use super::{DeploymentTarget, Layout, of_images, plain};

pub(super) const TARGET: DeploymentTarget = DeploymentTarget {
    refuses,
    layout: |_| Layout {
        folder: "onnx/",
        ..Layout::FLAT
    },
    ..plain(
        "sentence-transformers",
        "Sentence Transformers with backend=\"onnx\"",
        Profile::Portable,
    )
};

fn refuses(model: &ModelInfo) -> Option<String> {
    let no_vector = || {
        model.sentence.is_none().then(|| {
            format!(
                "it takes encoders with a modules.json that says how a text's vector is made, and \
                 this {} for {} has none; use --deploy optimum",
                model.family,
                model.task.name()
            )
        })
    };
    of_images(model).or_else(no_vector)
}
