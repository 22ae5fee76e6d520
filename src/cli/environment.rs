//! What the command takes from its environment: cache and data folders, Python's packages,
//! variables.

use std::env;
use std::path::{Path, PathBuf};

use dlc_files::temporary::Temporary;
use dlc_files::{IoError, read_text};
use dlc_runtime::BackendSearch;

use crate::http::Proxy;
use crate::hub;

/// The longest file with a token that is read.
const LONGEST_TOKEN: u64 = 1 << 12;

/// How many threads this machine runs at once.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A number of threads from a flag. Far more than cores only take time and memory from each other.
pub(super) fn threads(text: &str) -> Result<usize, String> {
    check_threads(text.parse().unwrap_or(0))
}

/// `threads`, or which numbers are allowed.
pub(super) fn check_threads(threads: usize) -> Result<usize, String> {
    let most = cores().saturating_mul(4);
    if (1..=most).contains(&threads) {
        Ok(threads)
    } else {
        Err(format!(
            "threads are a number from 1 to {most}, four times the cores here"
        ))
    }
}

/// `$XDG_CACHE_HOME/dlc`, else `~/.cache/dlc`; none if there is no home.
pub(super) fn cache_folder() -> Option<PathBuf> {
    user_folder("XDG_CACHE_HOME", ".cache").map(|f| f.join("dlc"))
}

/// Where the hashes of weights are kept that did not change since.
pub(super) fn hash_folder() -> Option<PathBuf> {
    cache_folder().map(|folder| folder.join("hashes"))
}

/// Where ONNX Runtime's library is looked for, and where `dlc setup` puts it; none if there is no
/// home.
pub(super) fn library_folder() -> Option<PathBuf> {
    user_folder("XDG_DATA_HOME", ".local/share").map(|folder| folder.join("dlc/onnxruntime"))
}

/// The index of Python packages that pip asks here.
pub(super) fn package_index() -> Option<String> {
    variable("PIP_INDEX_URL")
}

/// How repositories of the Hub are had, by the variables of `huggingface_hub`; none if there is no
/// home.
pub(super) fn hub() -> Option<hub::Settings> {
    let folder = |name: &str| variable(name).map(|path| expanded(&path));
    let home = folder("HF_HOME")
        .or_else(|| user_folder("XDG_CACHE_HOME", ".cache").map(|f| f.join("huggingface")));
    let cache = folder("HF_HUB_CACHE")
        .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| home.as_ref().map(|home| home.join("hub")))?;
    let token_file = folder("HF_TOKEN_PATH").or_else(|| Some(home?.join("token")));
    let token_file = token_file.filter(|_| !is_on(&["HF_HUB_DISABLE_IMPLICIT_TOKEN"]));
    let saved = || read_text(&token_file?, LONGEST_TOKEN).ok();
    Some(hub::Settings {
        cache,
        endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| hub::ENDPOINT.to_owned()),
        token: variable("HF_TOKEN")
            .or_else(saved)
            .map(|token| token.trim().to_owned())
            .filter(|token| !token.is_empty()),
        offline: is_on(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]),
        proxy: Proxy::try_from_env(),
    })
}

/// Whether the first of these variables that is there switches something on.
fn is_on(names: &[&str]) -> bool {
    let value = names.iter().find_map(|name| variable(name));
    value.is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.to_ascii_uppercase().as_str()))
}

/// A path that may begin with the user's home.
fn expanded(path: &str) -> PathBuf {
    let home = path.strip_prefix("~/").zip(env::home_dir());
    home.map_or_else(|| path.into(), |(rest, home)| home.join(rest))
}

/// A folder below `$TMPDIR` for bundles that nobody keeps.
pub(super) fn scratch(purpose: &str) -> Result<Temporary, IoError> {
    Temporary::scratch(&env::temp_dir(), purpose)
}

/// Where to look for ONNX Runtime, but for what flags say.
pub(super) fn backend_search() -> BackendSearch {
    BackendSearch {
        env: variable("ORT_DYLIB_PATH").map(PathBuf::from),
        beside: env::current_exe()
            .ok()
            .and_then(|exe| exe.parent().map(Path::to_owned)),
        data_dir: library_folder(),
        python_path: python_packages(),
        require_ort: variable("DLC_REQUIRE_ORT").is_some_and(|v| v != "0"),
        ..BackendSearch::default()
    }
}

/// Whether progress may be shown: `DLC_PROGRESS=never` says no.
pub(super) fn shows_progress() -> bool {
    variable("DLC_PROGRESS").is_none_or(|wanted| wanted != "never")
}

/// Bytes that are free on the disk on which `path` is, or would be; unknown where the system
/// doesn't say so.
pub(super) fn free_disk(path: &Path) -> Option<u64> {
    let there = path
        .ancestors()
        .map(|a| {
            if a.as_os_str().is_empty() {
                Path::new(".")
            } else {
                a
            }
        })
        .find(|a| a.exists())?;
    fs4::available_space(there).ok()
}

/// How many threads were busy in the last minute; unknown where the system doesn't say so, as only
/// Linux does.
pub(super) fn load_average() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg")
        .ok()?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// What to say of so much load, if it disturbs timings.
pub(super) fn busy(load: f64, cores: usize) -> Option<String> {
    /// The share of the cores from which on other programs take time from what is measured.
    const SHARE: f64 = 0.5;
    let problem = || {
        format!(
            "the machine was busy before (load {load:.1} on {cores} cores): times are longer and spread more than on a quiet one"
        )
    };
    (load > SHARE * cores as f64).then(problem)
}

/// Whether there is a GPU that ONNX Runtime could use; false where the system doesn't say so, as
/// only Linux does.
pub(super) fn has_gpu() -> bool {
    Path::new("/dev/nvidiactl").exists()
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|v| !v.is_empty())
}

fn user_folder(name: &str, fallback: &str) -> Option<PathBuf> {
    variable(name)
        .map(PathBuf::from)
        .filter(|p| p.is_absolute())
        .or_else(|| env::home_dir().map(|home| home.join(fallback)))
}

/// `site-packages` of the active environment, of the `python3` on the path, and of the user.
fn python_packages() -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"]
        .into_iter()
        .filter_map(variable)
        .map(PathBuf::from)
        .collect();
    let path = env::var_os("PATH").unwrap_or_default();
    let python = env::split_paths(&path)
        .map(|p| p.join("python3"))
        .find(|p| p.is_file())
        .and_then(|p| p.canonicalize().ok());
    roots.extend(
        python
            .as_deref()
            .and_then(Path::parent)
            .and_then(Path::parent)
            .map(Path::to_owned),
    );
    roots.extend(env::home_dir().map(|home| home.join(".local")));
    let mut folders: Vec<PathBuf> = roots
        .iter()
        .flat_map(|root| libraries(&root.join("lib")))
        .collect();
    folders.dedup();
    folders
}

fn libraries(lib: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(lib).into_iter().flatten().flatten();
    let pythons = entries.filter(|e| e.file_name().to_string_lossy().starts_with("python3"));
    let mut folders: Vec<PathBuf> = pythons
        .flat_map(|e| {
            [
                e.path().join("site-packages"),
                e.path().join("dist-packages"),
            ]
        })
        .filter(|p| p.is_dir())
        .collect();
    folders.sort();
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_machine_is_warned_of_and_a_quiet_one_is_not() {
        assert_eq!(busy(0.9, 2), None);
        assert!(busy(3.5, 2).is_some_and(|text| text.contains("load 3.5 on 2 cores")));
    }
}
