//! Where an ONNX Runtime library may lie. Looks at file names only and loads nothing.

use std::path::{Path, PathBuf};

use super::BackendKind;

/// Where to look for ONNX Runtime, in the order of the fields, and what is demanded.
#[derive(Debug, Clone, Default)]
pub struct BackendSearch {
    /// The library named by `--ort-lib`.
    pub explicit: Option<PathBuf>,
    /// The library named by `ORT_DYLIB_PATH`.
    pub env: Option<PathBuf>,
    /// The executable's folder.
    pub beside: Option<PathBuf>,
    /// The folder that `dlc setup onnxruntime` fills.
    pub data_dir: Option<PathBuf>,
    /// `site-packages` folders that may hold the package `onnxruntime`.
    pub python_path: Vec<PathBuf>,
    /// Demands this backend.
    pub force: Option<BackendKind>,
    /// Demands ONNX Runtime: no falling back on tract.
    pub require_ort: bool,
    /// Threads of one pool for all sessions that ask for as many; None gives each session threads
    /// of its own.
    pub threads: Option<usize>,
}

/// Who pointed at a library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// `--ort-lib`.
    Explicit,
    /// `ORT_DYLIB_PATH`.
    Env,
    /// The executable's folder.
    Beside,
    /// dlc's data folder.
    DataDir,
    /// An installed Python package.
    Python,
}

impl Origin {
    /// For messages.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Explicit => "`--ort-lib`",
            Self::Env => "`ORT_DYLIB_PATH`",
            Self::Beside => "the executable's folder",
            Self::DataDir => "dlc's data folder",
            Self::Python => "an installed Python package",
        }
    }

    /// Whether a user asked for exactly this library, so that nothing else may take its place.
    pub fn is_named_by_user(self) -> bool {
        matches!(self, Self::Explicit | Self::Env)
    }
}

/// A place where the library was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Who pointed there.
    pub origin: Origin,
    /// The library, or the folder that holds none.
    pub path: PathBuf,
    /// Whether there is a file.
    pub found: bool,
}

impl BackendSearch {
    /// All places in order; in a folder the newest version first. Places without a library are
    /// listed as not found.
    pub fn find(&self) -> Vec<Candidate> {
        let named = [(Origin::Explicit, &self.explicit), (Origin::Env, &self.env)];
        let mut candidates: Vec<Candidate> = named
            .into_iter()
            .filter_map(|(origin, path)| {
                path.as_ref().map(|path| Candidate {
                    origin,
                    path: path.clone(),
                    found: path.is_file(),
                })
            })
            .collect();
        if let Some(folder) = &self.beside {
            look_into(Origin::Beside, folder, &[""], &mut candidates);
        }
        if let Some(folder) = &self.data_dir {
            look_into(
                Origin::DataDir,
                folder,
                &["", "lib", "capi"],
                &mut candidates,
            );
        }
        for folder in &self.python_path {
            look_into(
                Origin::Python,
                folder,
                &["onnxruntime/capi"],
                &mut candidates,
            );
        }
        candidates
    }
}

fn look_into(origin: Origin, folder: &Path, inside: &[&str], candidates: &mut Vec<Candidate>) {
    let before = candidates.len();
    for sub in inside {
        let entries = std::fs::read_dir(folder.join(sub))
            .into_iter()
            .flatten()
            .flatten();
        let mut libraries: Vec<PathBuf> = entries
            .map(|entry| entry.path())
            .filter(|path| is_library(path) && path.is_file())
            .collect();
        libraries.sort_by_key(|path| std::cmp::Reverse((version_key(path), path.clone())));
        candidates.extend(libraries.into_iter().map(|path| Candidate {
            origin,
            path,
            found: true,
        }));
    }
    if candidates.len() == before {
        candidates.push(Candidate {
            origin,
            path: folder.to_path_buf(),
            found: false,
        });
    }
}

/// `libonnxruntime.so`, `libonnxruntime.so.1.31.1`, `libonnxruntime.1.31.1.dylib`,
/// `onnxruntime.dll`.
fn is_library(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(rest) = name
        .strip_prefix("libonnxruntime")
        .or_else(|| name.strip_prefix("onnxruntime"))
    else {
        return false;
    };
    let rest: String = rest.chars().filter(|c| !c.is_ascii_digit()).collect();
    matches!(
        rest.trim_matches('.'),
        "so" | "so.." | "dylib" | "..dylib" | "dll"
    ) && !rest.is_empty()
}

fn version_key(path: &Path) -> Vec<u32> {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .split('.')
        .filter_map(|part| part.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_in_the_order_of_the_fields_and_at_newer_versions_first() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        let capi = at("python/onnxruntime/capi");
        for directory in [&capi, &at("data/lib"), &at("bin")] {
            std::fs::create_dir_all(directory).unwrap();
        }
        let libraries = [
            "libonnxruntime.so.1.9.0",
            "libonnxruntime.so.1.31.1",
            "libonnxruntime_providers_shared.so",
            "onnxruntime_pybind11_state.so",
        ];
        for file in libraries {
            std::fs::write(capi.join(file), "").unwrap();
        }
        std::fs::write(at("data/lib/libonnxruntime.so"), "").unwrap();
        let search = BackendSearch {
            explicit: Some(at("gone.so")),
            beside: Some(at("bin")),
            data_dir: Some(at("data")),
            python_path: vec![at("python")],
            ..BackendSearch::default()
        };
        let expected = [
            (Origin::Explicit, at("gone.so"), false),
            (Origin::Beside, at("bin"), false),
            (Origin::DataDir, at("data/lib/libonnxruntime.so"), true),
            (Origin::Python, capi.join("libonnxruntime.so.1.31.1"), true),
            (Origin::Python, capi.join("libonnxruntime.so.1.9.0"), true),
        ];
        let found: Vec<_> = search
            .find()
            .into_iter()
            .map(|c| (c.origin, c.path, c.found))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn library_names_of_all_systems_are_known() {
        for name in [
            "libonnxruntime.so",
            "libonnxruntime.so.1.31.1",
            "libonnxruntime.1.31.1.dylib",
            "libonnxruntime.dylib",
            "onnxruntime.dll",
        ] {
            assert!(is_library(Path::new(name)), "{name}");
        }
        for name in [
            "libonnxruntime_providers_cuda.so",
            "onnxruntime",
            "libonnxruntime.so.old",
            "libonnxruntime.so.1",
        ] {
            assert_eq!(
                is_library(Path::new(name)),
                name == "libonnxruntime.so.1",
                "{name}"
            );
        }
    }
}
