//! Which backend runs the graphs: a shared ONNX Runtime library if one is found, else the built-in
//! tract.
//!
//! The choice is made once per process, before any other call into `ort`, which would panic without
//! one. Never reads the environment, but for the library's switch for telemetry: [`BackendSearch`]
//! carries what the command line found there.

mod forecast;
mod library;
mod search;
mod telemetry;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use dlc_bundle::{Manifest, Profile};
use dlc_ir::DType;
use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::ep::ExecutionProvider;

pub use self::forecast::unrunnable;
use self::library::{Probed, probe};
pub use self::search::{BackendSearch, Candidate, Origin};
pub use self::telemetry::{disable_telemetry, telemetry_variable};
use super::{Result, RuntimeError};

/// The tract that is compiled in, as Cargo.lock has it: costs are kept under it.
const TRACT_VERSION: &str = "0.23.9";
/// The oldest ONNX Runtime that can be used: the API version that `ort` is built for.
const OLDEST_MINOR: u32 = ort::MINOR_VERSION;
const SETUP: &str = "run `dlc setup onnxruntime`";

/// What runs an ONNX file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendKind {
    /// A shared ONNX Runtime library, CPU or CUDA.
    OnnxRuntime,
    /// tract, compiled in, CPU only.
    Tract,
}

impl BackendKind {
    /// The name used in commands and output.
    pub fn name(self) -> &'static str {
        match self {
            Self::OnnxRuntime => "onnxruntime",
            Self::Tract => "tract",
        }
    }
}

/// Where a session computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Provider {
    /// The processor.
    #[default]
    Cpu,
    /// The CUDA device of this number.
    Cuda(i32),
}

/// A started backend. Cheap to clone; there is one per process.
#[derive(Debug, Clone)]
pub struct Backend {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    kind: BackendKind,
    version: String,
    library: Option<PathBuf>,
    environment: Environment,
    cuda: bool,
    /// Threads of the pool that sessions share, if there is one.
    pool: Option<usize>,
    skipped: Vec<(Candidate, String)>,
}

/// The process's backend. `ort` keeps its own choice in a static that can't be changed; this
/// remembers what it is.
static STARTED: Mutex<Option<Backend>> = Mutex::new(None);

/// Starts the backend that `search` leads to. Later calls return the first call's backend, or an
/// error if they demand another.
///
/// ONNX Runtime's telemetry is switched off, see [`disable_telemetry`].
///
/// # Errors
/// [`RuntimeError::File`] for a library that the user named and that is missing, broken or too old:
/// none takes its place, while one that was only found is skipped, and [`Backend::skipped`] says
/// why. [`RuntimeError::NoLibrary`] if one is demanded and there is none; [`RuntimeError::Input`]
/// for demands that contradict each other or the backend that runs already.
pub fn start(search: &BackendSearch) -> Result<Backend> {
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(backend) = &*started {
        return backend.serves(search).map(|()| backend.clone());
    }
    let backend = choose(search)?;
    *started = Some(backend.clone());
    Ok(backend)
}

fn choose(search: &BackendSearch) -> Result<Backend> {
    if search.force == Some(BackendKind::Tract) {
        if search.require_ort || search.explicit.is_some() {
            return Err(RuntimeError::Input(
                "the built-in tract and an ONNX Runtime library are both asked for: leave one out"
                    .to_owned(),
            ));
        }
        return start_tract(Vec::new());
    }
    disable_telemetry();
    let mut skipped = Vec::new();
    for candidate in search.find() {
        match probe(&candidate.path) {
            Ok(probed) => return start_library(probed, search.threads, skipped),
            Err(problem) if candidate.origin.is_named_by_user() => {
                return Err(RuntimeError::file(
                    &candidate.path,
                    format!(
                        "{problem} (from {}): correct the path, or leave it out",
                        candidate.origin.describe()
                    ),
                ));
            }
            Err(problem) => skipped.push((candidate, problem)),
        }
    }
    if search.require_ort || search.force == Some(BackendKind::OnnxRuntime) {
        let tried: Vec<String> = skipped
            .iter()
            .map(|(candidate, problem)| format!("{}: {problem}", candidate.path.display()))
            .collect();
        return Err(RuntimeError::NoLibrary(if tried.is_empty() {
            "nowhere to look".to_owned()
        } else {
            tried.join("; ")
        }));
    }
    start_tract(skipped)
}

/// Hands a library to `ort` and makes its environment. With a number of threads, sessions share a
/// pool whose idle threads watch for work: watching pays while one pass follows the other, but not
/// if the threads of several pools take the cores from each other.
fn start_library(
    probed: Probed,
    threads: Option<usize>,
    skipped: Vec<(Candidate, String)>,
) -> Result<Backend> {
    let fails = |error: String| {
        RuntimeError::file(&probed.path, format!("ONNX Runtime doesn't start: {error}"))
    };
    let builder = ort::init_from(&probed.path).map_err(|error| fails(error.to_string()))?;
    let environment = (|| {
        let builder = builder.with_name("dlc").with_telemetry(false);
        let Some(threads) = threads else {
            return builder.build();
        };
        let pool = GlobalThreadPoolOptions::default()
            .with_intra_threads(threads)?
            .with_inter_threads(1)?
            .with_spin_control(true)?;
        builder.with_global_thread_pool(pool).build()
    })();
    let environment = environment.map_err(|error: ort::Error| fails(error.to_string()))?;
    let cuda = ort::ep::CUDA::is_available().unwrap_or(false);
    let inner = Inner {
        kind: BackendKind::OnnxRuntime,
        version: probed.version,
        library: Some(probed.path),
        environment,
        cuda,
        pool: threads,
        skipped,
    };
    Ok(Backend {
        inner: Arc::new(inner),
    })
}

fn start_tract(skipped: Vec<(Candidate, String)>) -> Result<Backend> {
    if !ort::set_api(ort_tract::api()) {
        return Err(RuntimeError::Bug(
            "an ONNX backend was started outside of the runtime".to_owned(),
        ));
    }
    let environment = ort::init()
        .with_name("dlc")
        .build()
        .map_err(|error| RuntimeError::Bug(format!("tract doesn't start: {error}")))?;
    let inner = Inner {
        kind: BackendKind::Tract,
        version: TRACT_VERSION.to_owned(),
        library: None,
        environment,
        cuda: false,
        pool: None,
        skipped,
    };
    Ok(Backend {
        inner: Arc::new(inner),
    })
}

impl Backend {
    /// Which one it is.
    pub fn kind(&self) -> BackendKind {
        self.inner.kind
    }

    /// Its version.
    pub fn version(&self) -> &str {
        &self.inner.version
    }

    /// The shared library, if it is one.
    pub fn library(&self) -> Option<&Path> {
        self.inner.library.as_deref()
    }

    /// Names of the execution providers that sessions can ask for: `cpu` always, `cuda` if the
    /// library is built with it.
    pub fn providers(&self) -> Vec<&'static str> {
        if self.inner.cuda {
            vec!["cpu", "cuda"]
        } else {
            vec!["cpu"]
        }
    }

    /// The profiles whose operators it runs; tract those of `onnx` without quantised matrices.
    pub fn profiles(&self) -> &'static [Profile] {
        match self.kind() {
            BackendKind::OnnxRuntime => &Profile::ALL,
            BackendKind::Tract => &[Profile::Portable, Profile::Onnx],
        }
    }

    /// Libraries that were found but couldn't be used, and why.
    pub fn skipped(&self) -> &[(Candidate, String)] {
        &self.inner.skipped
    }

    /// Refuses a bundle that can't run here.
    ///
    /// # Errors
    /// [`RuntimeError::Unsupported`] with the reason and the command that would fix it.
    pub fn check(&self, manifest: &Manifest, provider: Provider) -> Result<()> {
        self.check_provider(provider)?;
        let what = format!(
            "bundle of `{}`, profile {}, {}",
            manifest.source.name,
            manifest.profile.name(),
            manifest.model.dtype
        );
        if self.kind() == BackendKind::Tract
            && let Some((reason, profile)) = foreign_to_tract(manifest)
        {
            return Err(RuntimeError::unsupported(
                what,
                reason,
                format!("Compile again with `--profile {profile}`, or {SETUP}"),
            ));
        }
        let bf16 = manifest.model.dtype == DType::Bf16
            || manifest
                .graphs
                .iter()
                .flat_map(|graph| &graph.inputs)
                .any(|port| port.dtype == DType::Bf16);
        if bf16 && provider == Provider::Cpu {
            let reason = match self.kind() {
                BackendKind::OnnxRuntime => "ONNX Runtime has no bf16 MatMul on the CPU",
                BackendKind::Tract => "tract doesn't read bf16 weights",
            };
            return Err(RuntimeError::unsupported(
                what,
                reason,
                "Compile again with `--dtype f32`",
            ));
        }
        Ok(())
    }

    fn check_provider(&self, provider: Provider) -> Result<()> {
        match (provider, self.kind()) {
            (Provider::Cuda(_), BackendKind::Tract) => Err(RuntimeError::unsupported(
                "CUDA",
                "the built-in tract runs on the CPU only",
                "Leave CUDA out, or run `dlc setup onnxruntime --gpu`",
            )),
            (Provider::Cuda(_), BackendKind::OnnxRuntime) if !self.inner.cuda => {
                let library = self
                    .library()
                    .map_or_else(String::new, |path| path.display().to_string());
                Err(RuntimeError::unsupported(
                    "CUDA",
                    format!("{library} is built without it"),
                    "Leave CUDA out, run `dlc setup onnxruntime --gpu`, or name another library with `--ort-lib`",
                ))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn environment(&self) -> &Environment {
        &self.inner.environment
    }

    /// Whether sessions of so many threads share a pool.
    pub(super) fn shares_threads(&self, threads: Option<usize>) -> bool {
        threads.is_some() && threads == self.inner.pool
    }

    /// Whether a later [`start`] can be answered with this backend.
    fn serves(&self, search: &BackendSearch) -> Result<()> {
        let other_kind = search.force.is_some_and(|kind| kind != self.kind())
            || (search.require_ort && self.kind() != BackendKind::OnnxRuntime);
        let other_library = search
            .explicit
            .as_deref()
            .is_some_and(|path| std::path::absolute(path).ok().as_deref() != self.library());
        if other_kind || other_library {
            let library = self
                .library()
                .map_or_else(String::new, |path| format!(" ({})", path.display()));
            return Err(RuntimeError::Input(format!(
                "the backend {}{library} is already running, and a process can run only one: start a new process",
                self.kind().name()
            )));
        }
        Ok(())
    }
}

/// Why tract doesn't run a bundle's operators, and the profile whose operators it runs; none if it
/// runs these.
fn foreign_to_tract(manifest: &Manifest) -> Option<(&'static str, &'static str)> {
    match (manifest.profile, manifest.has_codes()) {
        (Profile::Ort, codes) => Some((
            "the built-in tract doesn't run ONNX Runtime's own operators, such as GroupQueryAttention with several tokens on a past",
            if codes { "portable" } else { "onnx" },
        )),
        (Profile::Onnx, true) => Some((
            "the built-in tract doesn't run DequantizeLinear in blocks, which is how profile onnx multiplies by quantised matrices",
            "portable",
        )),
        (Profile::Onnx, false) | (Profile::Portable, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_library_that_is_missing_is_an_error() {
        for search in [
            BackendSearch {
                explicit: Some("/nowhere/libonnxruntime.so".into()),
                ..BackendSearch::default()
            },
            BackendSearch {
                env: Some("/nowhere/libonnxruntime.so".into()),
                ..BackendSearch::default()
            },
        ] {
            let error = choose(&search).unwrap_err().to_string();
            assert!(
                error.contains("/nowhere/libonnxruntime.so") && error.contains("no such file"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_file_that_is_no_library_is_an_error_when_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libonnxruntime.so");
        std::fs::write(&path, "no library").unwrap();
        let error = choose(&BackendSearch {
            explicit: Some(path),
            ..BackendSearch::default()
        })
        .unwrap_err()
        .to_string();
        assert!(error.contains("doesn't load"), "{error}");
    }

    #[test]
    fn a_demanded_library_that_is_not_there_says_where_it_was_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("libonnxruntime.so"), "no library").unwrap();
        let search = BackendSearch {
            beside: Some(folder.path().into()),
            require_ort: true,
            ..BackendSearch::default()
        };
        let error = choose(&search).unwrap_err();
        assert!(
            error.to_string().contains("libonnxruntime.so")
                && error.to_string().contains("dlc setup onnxruntime"),
            "{error}"
        );
        assert_eq!(
            dlc_errors::Faulty::fault(&error),
            dlc_errors::Fault::Unsupported
        );
    }

    #[test]
    fn contradicting_demands_are_refused() {
        let search = BackendSearch {
            force: Some(BackendKind::Tract),
            require_ort: true,
            ..BackendSearch::default()
        };
        assert!(choose(&search).is_err());
    }
}
