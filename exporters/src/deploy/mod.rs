//! Deployment targets: the runtimes that bundles are written for. Each is a row of [`TARGETS`]: the
//! profile that it takes, and the files that it reads beside the graphs.

mod genai;

use dlc_bundle::{CacheLayout, Profile};
use dlc_ir::{Graph, Module};

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
    /// Whether its files stand in every bundle, whatever that is written for.
    pub always: bool,
    /// The names of the files that [`files`](Self::files) may give.
    pub writes: &'static [&'static str],
    /// The further files that it reads, by name.
    pub files: fn(&WrittenBundle<'_>) -> TargetFiles,
}

/// Files by name.
pub type TargetFiles = Vec<(&'static str, Vec<u8>)>;

/// Every target.
pub const TARGETS: &[DeploymentTarget] = &[
    plain("onnxruntime", "ONNX Runtime, on CPU and CUDA", Profile::Ort),
    genai::TARGET,
    plain("tensorrt", "TensorRT's ONNX parser", Profile::Portable),
    plain("openvino", "OpenVINO", Profile::Portable),
    plain("tract", "tract, also what dlc has built in", Profile::Onnx),
];

/// A target that reads nothing but the graphs.
const fn plain(name: &'static str, summary: &'static str, profile: Profile) -> DeploymentTarget {
    DeploymentTarget {
        name,
        summary,
        profile,
        always: false,
        writes: &[],
        files: |_| vec![],
    }
}

/// The target with this name.
pub fn find_target(name: &str) -> Option<&'static DeploymentTarget> {
    TARGETS.iter().find(|target| target.name == name)
}

/// What a target's files may be made of.
#[derive(Debug)]
pub struct WrittenBundle<'a> {
    pub(crate) module: &'a Module,
    pub(crate) graphs: Vec<GraphFile<'a>>,
    pub(crate) caches: CacheLayout,
    pub(crate) search: &'a SearchDefaults,
}

impl<'a> WrittenBundle<'a> {
    /// The graph called `name`.
    fn graph(&self, name: &str) -> Option<&GraphFile<'a>> {
        self.graphs.iter().find(|file| file.graph.name == name)
    }
}

/// A graph, and the ONNX file with the inputs that this really has.
#[derive(Debug)]
pub(crate) struct GraphFile<'a> {
    pub graph: &'a Graph,
    pub file: String,
    pub inputs: Vec<String>,
}
