//! Modules as bundles, and graphs on any engine: the evaluator, or a backend in a profile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dlc_bundle::{CacheLayout, Manifest, Profile, Source};
use dlc_eval::{Array, ArrayData};
use dlc_exporters::{BundleRequest, SearchDefaults, write_bundle};
use dlc_ir::{DType, Dim, Module};
use dlc_runtime::{
    Backend, BackendKind, BackendSearch, Bundle, HostTensor, Session, SessionOptions,
    SharedWeights, start,
};

/// Inputs or outputs by name.
pub type Arrays = BTreeMap<String, Array>;

/// The backend, if it is ONNX Runtime; says so where it isn't.
pub fn onnxruntime() -> Option<Backend> {
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty());
    let data = variable("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|h| h.join(".local/share")));
    let search = BackendSearch {
        env: variable("ORT_DYLIB_PATH").map(PathBuf::from),
        data_dir: data.map(|d| d.join("dlc/onnxruntime")),
        require_ort: variable("DLC_REQUIRE_ORT").is_some_and(|v| v != "0"),
        ..BackendSearch::default()
    };
    let backend = start(&search).unwrap_or_else(|e| panic!("{e}"));
    if backend.kind() == BackendKind::OnnxRuntime {
        return Some(backend);
    }
    eprintln!(
        "no ONNX Runtime library found: its tests are ignored; scripts/fetch_onnxruntime.sh fetches one"
    );
    None
}

/// Writes `module` as a bundle.
pub fn export(module: &Module, profile: Profile, out: &Path) -> Manifest {
    let source = Source {
        name: "golden".into(),
        files: BTreeMap::new(),
    };
    let request = BundleRequest {
        deploy: None,
        profile,
        source,
        passes: vec![],
        force: false,
        rewritten: BTreeMap::new(),
        search: SearchDefaults::default(),
        version: "test".into(),
    };
    write_bundle(module, &request, out, &()).unwrap()
}

/// What runs a graph.
#[derive(Debug, Clone)]
pub enum Engine {
    /// Runs the IR itself, in single precision.
    Evaluator,
    /// Runs what a profile lowers the IR to.
    Backend(Backend, Profile),
}

impl Engine {
    /// The engine's name in a test's title.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Evaluator => "evaluator",
            Self::Backend(_, profile) => profile.name(),
        }
    }

    /// The target of `module`, ready to run.
    pub fn load(&self, module: Module) -> Result<Runner, String> {
        self.load_graph(module, "target")
    }

    /// The graph of `module` called `name`, ready to run.
    pub fn load_graph(&self, module: Module, name: &'static str) -> Result<Runner, String> {
        match self {
            Self::Evaluator => Ok(Runner::Evaluator(Box::new(module), name)),
            Self::Backend(backend, profile) => {
                let loaded = load(backend, *profile, &module, name)?;
                Ok(Runner::Session(Box::new(loaded)))
            }
        }
    }
}

/// A graph that is ready to run.
pub enum Runner {
    Evaluator(Box<Module>, &'static str),
    Session(Box<Loaded>),
}

/// A graph of a bundle on a backend.
pub struct Loaded {
    graph: &'static str,
    // The session reads the mapped weights, and these the folder.
    session: Session,
    _weights: Option<Arc<SharedWeights>>,
    bundle: Bundle,
    _folder: tempfile::TempDir,
}

fn load(
    backend: &Backend,
    profile: Profile,
    module: &Module,
    graph: &'static str,
) -> Result<Loaded, String> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    export(module, profile, &out);
    let bundle = Bundle::open(&out).map_err(|e| e.to_string())?;
    let weights = SharedWeights::open(&bundle, backend).map_err(|e| e.to_string())?;
    let options = SessionOptions::default();
    let session = Session::load(backend, &bundle, graph, weights.as_ref(), &options)
        .map_err(|e| e.to_string())?;
    Ok(Loaded {
        graph,
        session,
        _weights: weights,
        bundle,
        _folder: folder,
    })
}

impl Runner {
    /// All outputs. Inputs that the graph doesn't have are left out.
    pub fn run(&mut self, inputs: &Arrays) -> Result<Arrays, String> {
        match self {
            Self::Evaluator(module, name) => {
                let graph = module.graph(name).unwrap();
                let mut taken = inputs.clone();
                taken.retain(|name, _| graph.find_input(name).is_some());
                dlc_eval::run(graph, &module.weights, &taken).map_err(|e| e.to_string())
            }
            Self::Session(loaded) => loaded.run(inputs),
        }
    }

    /// Name, heads and width of each cache that the graph takes.
    pub fn caches(&self) -> Vec<(String, usize, usize)> {
        match self {
            Self::Evaluator(module, name) => {
                let graph = module.graph(name).unwrap();
                let caches = graph.inputs().iter().filter(|i| i.cache.is_some());
                let known = |dim: &Dim| dim.known().unwrap();
                caches
                    .map(|i| {
                        let dims = &graph.value(i.value).ty.shape.0;
                        (i.name.clone(), known(&dims[1]), known(&dims[3]))
                    })
                    .collect()
            }
            Self::Session(loaded) => {
                let ports = &loaded.bundle.graph(loaded.graph).unwrap().inputs;
                let caches = ports
                    .iter()
                    .filter(|p| p.name.starts_with("past_key_values"));
                caches
                    .map(|p| {
                        let size = |axis: usize| p.shape[axis].parse().unwrap();
                        (p.name.clone(), size(1), size(3))
                    })
                    .collect()
            }
        }
    }

    /// Whether several tokens after a past are taken for one sequence only, as
    /// `GroupQueryAttention` does.
    pub fn continues_one_sequence_only(&self) -> bool {
        match self {
            Self::Evaluator(..) => false,
            Self::Session(loaded) => loaded.bundle.manifest().caches == CacheLayout::InPlace,
        }
    }
}

impl Loaded {
    fn run(&mut self, inputs: &Arrays) -> Result<Arrays, String> {
        let ports = &self
            .bundle
            .graph(self.graph)
            .map_err(|e| e.to_string())?
            .inputs;
        let taken = ports.iter().filter_map(|port| {
            let array = inputs.get(&port.name)?;
            Some((port.name.as_str(), tensor(array, port.dtype)))
        });
        let taken: Vec<(&str, HostTensor)> = taken.collect();
        let outputs = self.session.run_host(&taken).map_err(|e| e.to_string())?;
        let array = |(name, tensor): (String, HostTensor)| {
            let numbers = tensor.to_f32().ok_or(format!("{name} isn't of floats"))?;
            Ok((name, Array::f32(tensor.shape, numbers).unwrap()))
        };
        outputs.into_iter().map(array).collect()
    }
}

fn tensor(array: &Array, dtype: DType) -> HostTensor {
    match array.data() {
        ArrayData::I64(data) => HostTensor::i64(array.shape(), data.clone()),
        ArrayData::F32(data) => HostTensor::floats(dtype, array.shape(), data),
    }
}

/// The largest distance between two numbers at the same place, infinite where one is none.
pub fn worst_error<'a>(pairs: impl IntoIterator<Item = (&'a f32, &'a f32)>) -> f32 {
    let distance = |(a, b): (&f32, &f32)| {
        if a.to_bits() == b.to_bits() {
            0.0
        } else {
            (a - b).abs()
        }
    };
    let worse = |worst: f32, e: f32| {
        if e.is_nan() {
            f32::INFINITY
        } else {
            worst.max(e)
        }
    };
    pairs.into_iter().map(distance).fold(0.0, worse)
}

/// Fails where `error` is above `tolerance`.
pub fn within(what: &str, error: f32, tolerance: f32) -> Result<(), String> {
    if error <= tolerance {
        Ok(())
    } else {
        Err(format!(
            "{what}: largest error {error:e}, allowed {tolerance:e}"
        ))
    }
}

/// Fails unless `found` is of the length of `expected` and within `tolerance` of it.
pub fn close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) -> Result<(), String> {
    same_length(what, found, expected)?;
    within(what, worst_error(found.iter().zip(expected)), tolerance)
}

/// Fails unless there are as many numbers as expected.
pub fn same_length(what: &str, found: &[f32], expected: &[f32]) -> Result<(), String> {
    if found.len() == expected.len() {
        Ok(())
    } else {
        let (found, expected) = (found.len(), expected.len());
        Err(format!("{what}: {found} numbers, not {expected}"))
    }
}
