//! One ONNX graph, loaded and ready to run on named tensors.
//!
//! Knows no cache and no tokens; [`super::DecoderSession`] is built on it. Options that a backend
//! lacks are left out there, never an error.

mod placed;
mod tensor;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ort::logging::LogLevel;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{SessionInputValue, SessionOutputs};
use ort::value::DynValue;

pub(super) use self::placed::{device, memory, value_over};
pub(super) use self::tensor::float_value;
pub use self::tensor::{HostData, HostTensor};
use super::{Backend, BackendKind, Bundle, Provider, Result, RuntimeError, SharedWeights};

/// How a session is loaded.
#[derive(Debug, Clone, Default)]
pub struct SessionOptions {
    /// Threads inside an operator; None leaves it to the backend. tract always uses one.
    pub threads: Option<usize>,
    /// Where it computes.
    pub provider: Provider,
}

/// A loaded graph.
#[derive(Debug)]
pub struct Session {
    /// Declared before the weights it borrows: dropped before them.
    inner: ort::session::Session,
    graph: String,
    file: PathBuf,
    provider: Provider,
    _weights: Option<Arc<SharedWeights>>,
}

impl Session {
    /// Loads the graph `name` of a bundle, after checking that the backend runs it. `weights` are
    /// the shared ones of this bundle.
    ///
    /// # Errors
    /// As [`Backend::check`], [`Bundle::graph`] and [`Bundle::check_graph`]; and
    /// [`RuntimeError::Graph`] if the backend refuses the graph.
    pub fn load(
        backend: &Backend,
        bundle: &Bundle,
        name: &str,
        weights: Option<&Arc<SharedWeights>>,
        options: &SessionOptions,
    ) -> Result<Self> {
        backend.check(bundle.manifest(), options.provider)?;
        let graph = bundle.graph(name)?;
        bundle.check_graph(graph)?;
        // A GPU copies its weights into its own memory: nothing to share.
        let weights = weights
            .filter(|_| options.provider == Provider::Cpu)
            .cloned();
        let path = bundle.graph_path(graph);
        let inner = build(backend, &path, name, weights.as_deref(), options)
            .map_err(|error| failed(name, &path, "load", &error))?;
        Ok(Self {
            inner,
            graph: name.to_owned(),
            file: path,
            provider: options.provider,
            _weights: weights,
        })
    }

    /// Names of the inputs, in the file's order.
    pub fn input_names(&self) -> Vec<&str> {
        self.inner
            .inputs()
            .iter()
            .map(ort::value::Outlet::name)
            .collect()
    }

    /// Names of the outputs, in the file's order.
    pub fn output_names(&self) -> Vec<&str> {
        self.inner
            .outputs()
            .iter()
            .map(ort::value::Outlet::name)
            .collect()
    }

    /// Runs the graph on tensors in host memory and copies all outputs there.
    ///
    /// # Errors
    /// [`RuntimeError::Port`] for inputs that are missing, unknown or unfit, and for outputs that
    /// can't be copied; [`RuntimeError::Graph`] if the backend fails.
    pub fn run_host(&mut self, inputs: &[(&str, HostTensor)]) -> Result<Vec<(String, HostTensor)>> {
        let known = self.input_names();
        if let Some((name, _)) = inputs.iter().find(|(name, _)| !known.contains(name)) {
            return Err(RuntimeError::port(
                &self.graph,
                name,
                format!("there is no such input, but {}", known.join(", ")),
            ));
        }
        if let Some(missing) = known
            .iter()
            .find(|name| !inputs.iter().any(|(given, _)| given == *name))
        {
            return Err(RuntimeError::port(
                &self.graph,
                missing,
                "the input is missing",
            ));
        }
        let mut values: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::new();
        for (name, tensor) in inputs {
            let value = tensor
                .to_value()
                .map_err(|problem| RuntimeError::port(&self.graph, name, problem))?;
            values.push((Cow::Borrowed(*name), value.into()));
        }
        let graph = self.graph.clone();
        let outputs = self.run(values)?;
        outputs
            .iter()
            .map(|(name, value)| {
                Ok((
                    name.to_owned(),
                    HostTensor::from_value(&value)
                        .map_err(|problem| RuntimeError::port(&graph, name, problem))?,
                ))
            })
            .collect()
    }

    /// Runs the graph; all outputs end up in host memory.
    pub(super) fn run(
        &mut self,
        inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)>,
    ) -> Result<SessionOutputs<'_>> {
        let Self {
            inner, graph, file, ..
        } = self;
        inner
            .run(inputs)
            .map_err(|error| failed(graph, file, "run", &error))
    }

    /// Runs the graph with outputs chosen and placed by `options`.
    pub(super) fn run_into<'s>(
        &'s mut self,
        inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)>,
        options: &'s ort::session::RunOptions<ort::session::HasSelectedOutputs>,
    ) -> Result<SessionOutputs<'s>> {
        let Self {
            inner, graph, file, ..
        } = self;
        inner
            .run_with_options(inputs, options)
            .map_err(|error| failed(graph, file, "run", &error))
    }

    /// The `ort` session, for bindings and allocators.
    pub(super) fn ort(&mut self) -> &mut ort::session::Session {
        &mut self.inner
    }

    pub(super) fn provider(&self) -> Provider {
        self.provider
    }

    /// An error of the backend with this graph's name and file.
    pub(super) fn failed(&self, error: &ort::Error) -> RuntimeError {
        failed(&self.graph, &self.file, "run", error)
    }
}

fn failed(graph: &str, file: &Path, action: &'static str, error: &ort::Error) -> RuntimeError {
    RuntimeError::Graph {
        graph: graph.to_owned(),
        file: file.to_path_buf(),
        action,
        message: error.message().to_owned(),
    }
}

fn build(
    backend: &Backend,
    path: &Path,
    graph: &str,
    weights: Option<&SharedWeights>,
    options: &SessionOptions,
) -> ort::Result<ort::session::Session> {
    let mut builder = ort::session::Session::builder(backend.environment())?
        .with_optimization_level(GraphOptimizationLevel::All)?;
    if backend.kind() == BackendKind::OnnxRuntime {
        // Errors are returned; ONNX Runtime would print them too.
        builder = builder.with_log_level(LogLevel::Fatal)?;
        if !backend.shares_threads(options.threads) {
            // Target and draft take turns: the idle one's threads, spinning for work, would take
            // the cores from the other.
            builder = builder
                .with_independent_thread_pool()?
                .with_intra_op_spinning(false)?;
            if let Some(threads) = options.threads {
                builder = builder.with_intra_threads(threads)?;
            }
        }
        if let Provider::Cuda(device) = options.provider {
            let cuda = ort::ep::CUDA::default()
                .with_device_id(device)
                .build()
                .error_on_failure();
            builder = builder.with_execution_providers([cuda])?;
        }
        if let Some(weights) = weights {
            builder = weights.attach(graph, builder)?;
        }
    }
    builder.commit_from_file(path)
}

/// Another handle on the same value: nothing is copied.
pub(super) fn share(value: &DynValue) -> Result<DynValue> {
    value
        .view()
        .try_upgrade()
        .map_err(|_| RuntimeError::Bug("a cache value is borrowed".to_owned()))
}
