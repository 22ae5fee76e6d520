//! What the command takes from its environment: cache and data folders, Python's packages, variables.

use std::env;
use std::path::{Path, PathBuf};

use dlc_exporters::ExportError;
use dlc_exporters::temporary::Temporary;

use crate::runtime::BackendSearch;

/// How many threads this machine runs at once.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// `$XDG_CACHE_HOME/dlc`, else `~/.cache/dlc`; none if there is no home.
pub(super) fn cache_folder() -> Option<PathBuf> {
    user_folder("XDG_CACHE_HOME", ".cache").map(|f| f.join("dlc"))
}

/// A folder below `$TMPDIR` for bundles that nobody keeps.
pub(super) fn scratch(purpose: &str) -> Result<Temporary, ExportError> {
    Temporary::scratch(&env::temp_dir(), purpose)
}

/// Where to look for ONNX Runtime, but for what flags say.
pub(super) fn backend_search() -> BackendSearch {
    BackendSearch {
        env: variable("ORT_DYLIB_PATH").map(PathBuf::from),
        beside: env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned)),
        data_dir: user_folder("XDG_DATA_HOME", ".local/share").map(|f| f.join("dlc/onnxruntime")),
        python_path: python_packages(),
        require_ort: variable("DLC_REQUIRE_ORT").is_some_and(|v| v != "0"),
        ..BackendSearch::default()
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|v| !v.is_empty())
}

fn user_folder(name: &str, fallback: &str) -> Option<PathBuf> {
    variable(name).map(PathBuf::from).filter(|p| p.is_absolute()).or_else(|| env::home_dir().map(|home| home.join(fallback)))
}

/// `site-packages` of the active environment, of the `python3` on the path, and of the user.
fn python_packages() -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable).map(PathBuf::from).collect();
    let path = env::var_os("PATH").unwrap_or_default();
    let python = env::split_paths(&path).map(|p| p.join("python3")).find(|p| p.is_file()).and_then(|p| p.canonicalize().ok());
    roots.extend(python.as_deref().and_then(Path::parent).and_then(Path::parent).map(Path::to_owned));
    roots.extend(env::home_dir().map(|home| home.join(".local")));
    let mut folders: Vec<PathBuf> = roots.iter().flat_map(|root| libraries(&root.join("lib"))).collect();
    folders.dedup();
    folders
}

fn libraries(lib: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(lib).into_iter().flatten().flatten();
    let pythons = entries.filter(|e| e.file_name().to_string_lossy().starts_with("python3"));
    let mut folders: Vec<PathBuf> =
        pythons.flat_map(|e| [e.path().join("site-packages"), e.path().join("dist-packages")]).filter(|p| p.is_dir()).collect();
    folders.sort();
    folders
}
