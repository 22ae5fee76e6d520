//! Deployment targets: the runtimes that bundles are written for. Each is a row of [`TARGETS`]: the
//! profile that it takes, the models that it runs, where it looks for the ONNX files, and the files
//! that it reads beside them.

mod docker;
mod genai;
mod json;
mod layout;
mod optimum;
mod sentence_transformers;
mod transformers_js;
mod triton;

use std::collections::BTreeMap;

use dlc_bundle::{CacheLayout, GraphRecord, Profile};
use dlc_ir::{ModelInfo, Module, Task};

pub use layout::Layout;

use crate::error::ExportError;
use crate::search::SearchDefaults;

/// A runtime that bundles are written for.
#[derive(Debug)]
pub struct DeploymentTarget {
    /// Its name in commands and files.
    pub name: &'static str,
    /// What it is, in a line.
    pub summary: &'static str,
    /// The operators that it takes.
    pub profile: Profile,
    /// Why it can't run a model, if it can't; the way out stands there too.
    pub refuses: fn(&ModelInfo) -> Option<String>,
    /// Where it looks for the files of a model.
    pub layout: fn(&ModelInfo) -> Layout,
    /// How it takes the graphs of a model, where that isn't how dlc does.
    pub fit: fn(&Module) -> Result<Option<Fitted>, ExportError>,
    /// Whether its files stand in every bundle, whatever that is written for.
    pub always: bool,
    /// The names of the files that [`files`](Self::files) may give.
    pub writes: &'static [&'static str],
    /// The further files that it reads, by name.
    pub files: fn(&WrittenBundle<'_>) -> TargetFiles,
    /// The files of the checkpoint, by their places in the bundle, in which it reads other entries
    /// than the checkpoint has. Every other byte stays.
    pub edits: &'static [(&'static str, FileEdit)],
}

/// A module as a target takes it.
#[derive(Debug)]
pub struct Fitted {
    /// The module, with the ports that the target knows.
    pub module: Module,
    /// Whether its text encoders take no mask where they are shown every token.
    pub whole_texts: bool,
    /// What latents are divided by before the graphs of these names take them.
    pub latents_divisors: BTreeMap<String, f32>,
}

/// Files by name.
pub type TargetFiles = Vec<(&'static str, Vec<u8>)>;

/// A change of the text of a file beside the graphs of a module. Fails with what is wrong with the
/// file.
pub type FileEdit = fn(&str, &Module) -> Result<String, String>;

/// Every target.
pub const TARGETS: &[DeploymentTarget] = &[
    plain("onnxruntime", "ONNX Runtime, on CPU and CUDA", Profile::Ort),
    genai::TARGET,
    optimum::TARGET,
    transformers_js::TARGET,
    sentence_transformers::TARGET,
    triton::TARGET,
    plain("tensorrt", "TensorRT's ONNX parser", Profile::Portable),
    plain("openvino", "OpenVINO", Profile::Portable),
    docker::TARGET,
    plain(
        "tract",
        "tract, also what dlc has built in",
        Profile::Portable,
    ),
];

/// A target that runs every model, from the bundle's own folder, and reads nothing but the graphs.
const fn plain(name: &'static str, summary: &'static str, profile: Profile) -> DeploymentTarget {
    DeploymentTarget {
        name,
        summary,
        profile,
        refuses: |_| None,
        layout: |_| Layout::FLAT,
        fit: |_| Ok(None),
        always: false,
        writes: &[],
        files: |_| vec![],
        edits: &[],
    }
}

/// Refuses diffusion models, for runtimes of text.
fn of_images(model: &ModelInfo) -> Option<String> {
    (model.task == Task::ImageGeneration).then(|| {
        format!(
            "it runs models of text, and {} makes images; use --deploy onnxruntime",
            model.family
        )
    })
}

/// The target with this name.
pub fn find_target(name: &str) -> Option<&'static DeploymentTarget> {
    TARGETS.iter().find(|target| target.name == name)
}

impl DeploymentTarget {
    /// Checks that the target runs a model.
    ///
    /// # Errors
    /// [`ExportError::Target`], with the reason.
    pub fn check(&self, model: &ModelInfo) -> Result<(), ExportError> {
        (self.refuses)(model).map_or(Ok(()), |problem| {
            Err(ExportError::Target {
                target: self.name,
                problem,
            })
        })
    }
}

/// What a target's files may be made of.
#[derive(Debug)]
pub struct WrittenBundle<'a> {
    pub(crate) module: &'a Module,
    /// The graphs as the ONNX files have them.
    pub(crate) graphs: &'a [GraphRecord],
    pub(crate) caches: CacheLayout,
    pub(crate) search: &'a SearchDefaults,
}

impl WrittenBundle<'_> {
    /// The graph called `name`.
    fn graph(&self, name: &str) -> Option<&GraphRecord> {
        self.graphs.iter().find(|graph| graph.name == name)
    }
}
