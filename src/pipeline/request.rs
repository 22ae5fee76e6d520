//! What `dlc compile` is asked for.

use std::num::NonZero;
use std::path::PathBuf;

use dlc_bundle::Profile;
use dlc_exporters::DeploymentTarget;
use dlc_ir::{DType, Task};
use dlc_passes::registry::PassSpec;
use dlc_runtime::BackendSearch;

use super::adapters::AdapterSpec;
use super::codes::obstacle;

/// What to compile, and how.
#[derive(Debug, Clone)]
pub struct CompileRequest {
    /// The checkpoint: a folder or a `.safetensors` file.
    pub model: PathBuf,
    /// What the manifest calls the checkpoint; its folder's name if absent.
    pub model_name: Option<String>,
    /// The adapters to merge, in order. The pass `merge-adapter` runs first unless it stands among
    /// the passes.
    pub adapters: Vec<AdapterSpec>,
    /// A YAML file that says what the adapters' trainer calls things, if it wasn't PEFT.
    pub adapter_names: Option<PathBuf>,
    /// The passes, in order.
    pub passes: Vec<PassSpec>,
    /// Files of scores, one of each shard, that a pass takes instead of computing them; none if it
    /// computes them.
    pub scores: Vec<PathBuf>,
    /// The operators to restrict the graphs to.
    pub profile: Profile,
    /// The runtime that the bundle is written for, if one was named.
    pub deploy: Option<&'static DeploymentTarget>,
    /// What the model is compiled for; what its configuration says if absent.
    pub task: Option<Task>,
    /// Element type of weights and activations; f32 if absent.
    pub dtype: Option<DType>,
    /// Whether matrices that the checkpoint holds as codes become numbers, although the profile has
    /// products with codes.
    pub dequantize: bool,
    /// The bundle's folder.
    pub output: PathBuf,
    /// Keys of the configuration that change nothing, though they look as if they did.
    pub ignore_keys: Vec<String>,
    /// Whether an existing bundle is replaced.
    pub force: bool,
    /// Whether NaN and infinite weights are taken.
    pub allow_nan: bool,
    /// Whether the bundle is for a CUDA device: then nodes that ONNX Runtime has no CUDA kernel for
    /// are named.
    pub cuda: bool,
    /// Where a runtime is looked for, if a pass has to time steps.
    pub backend: BackendSearch,
    /// How many threads to use.
    pub threads: usize,
}

impl CompileRequest {
    /// Without adapters and passes, in f32 and profile `portable`, on every core; a bundle that
    /// exists isn't replaced.
    pub fn new(model: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            model_name: None,
            adapters: vec![],
            adapter_names: None,
            passes: vec![],
            scores: vec![],
            profile: Profile::Portable,
            deploy: None,
            task: None,
            dtype: None,
            dequantize: false,
            output: output.into(),
            ignore_keys: vec![],
            force: false,
            allow_nan: false,
            cuda: false,
            backend: BackendSearch::default(),
            threads: std::thread::available_parallelism().map_or(1, NonZero::get),
        }
    }

    /// Why no matrix keeps its codes, if none does.
    pub(super) fn codes_become_numbers(&self) -> Option<&'static str> {
        obstacle(
            self.profile,
            self.dtype.unwrap_or(DType::F32),
            self.dequantize,
        )
    }
}
