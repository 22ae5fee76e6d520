//! An image of a container that serves the bundle: the bundle's folder is what the image is built
//! of, on top of an image that has `dlc serve`.

use dlc_bundle::Profile;
use dlc_ir::{ModelInfo, Task};

use super::{DeploymentTarget, TargetFiles, WrittenBundle, plain};

const FILE: &str = "Dockerfile";

pub(super) const TARGET: DeploymentTarget = DeploymentTarget {
    refuses,
    writes: &[FILE],
    files,
    ..plain(
        "docker",
        "an image of a container that runs dlc serve",
        Profile::Ort,
    )
};

fn refuses(model: &ModelInfo) -> Option<String> {
    let serves = match model.task {
        Task::TextGeneration | Task::FeatureExtraction => true,
        Task::ImageGeneration => model.prompts.is_some(),
        Task::TextClassification => model.is_cross_encoder(),
        Task::FillMask | Task::TokenClassification | Task::QuestionAnswering => false,
    };
    (!serves).then(|| {
        format!(
            "dlc serve continues texts, makes vectors of them, ranks them and makes images of \
             prompts, and this is a {} for {}; use --deploy onnxruntime",
            model.family,
            model.task.name()
        )
    })
}

fn files(_: &WrittenBundle<'_>) -> TargetFiles {
    vec![(FILE, include_bytes!("docker/Dockerfile").to_vec())]
}
