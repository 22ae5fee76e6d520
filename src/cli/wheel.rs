//! The wheels of PyPI that hold ONNX Runtime's shared library: which one fits, and what is taken
//! out of it. Downloads nothing.

use std::env::consts::{ARCH, OS};
use std::fs::{self, File};
use std::io;
use std::path::Path;

use dlc_files::IoError;
use regex::Regex;
use zip::ZipArchive;

use super::failure::{Context, Failure, Result, bail};

/// The version of ONNX Runtime, which `scripts/fetch_onnxruntime.sh` names too.
pub(super) const VERSION: &str = "1.31.1";

/// A wheel, as PyPI describes it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wheel {
    /// The project's name on the index: `onnxruntime`, or `onnxruntime-gpu` for the CUDA build.
    pub package: &'static str,
    pub file: &'static str,
    pub bytes: u64,
    pub sha256: &'static str,
}

/// Platform, package, file, bytes and SHA-256 of the wheels of [`VERSION`].
#[rustfmt::skip]
const WHEELS: [(&str, &str, &str, u64, &str); 8] = [
    ("linux-x86_64", "onnxruntime", "onnxruntime-1.31.1-cp313-cp313-manylinux_2_28_x86_64.whl", 23_760_717, "74a6a52994616c4d18b33db1e13c226333a70a6ba07480a5cab9c2a50dff1430"),
    ("linux-aarch64", "onnxruntime", "onnxruntime-1.31.1-cp313-cp313-manylinux_2_28_aarch64.whl", 21_420_628, "dcaedc50333876f3829ab966b242147f0e548229e29c36fe44622ecf748c25ee"),
    ("macos-aarch64", "onnxruntime", "onnxruntime-1.31.1-cp313-cp313-macosx_14_0_arm64.whl", 20_881_825, "e4ad067d36e2220218e085d7223283b2ee1bc73d887e811fd14d21cf901a11ee"),
    ("windows-x86_64", "onnxruntime", "onnxruntime-1.31.1-cp313-cp313-win_amd64.whl", 14_888_304, "0558f29d5f6ac09957390c9c5495931485ee8ae7f0ce781ccee86a0ae5c2348b"),
    ("windows-aarch64", "onnxruntime", "onnxruntime-1.31.1-cp313-cp313-win_arm64.whl", 14_740_772, "075147c2e2430b4b29c436bffa78537b902a6ed58ed66f99ae3c6795e2081cb5"),
    ("linux-x86_64", "onnxruntime-gpu", "onnxruntime_gpu-1.31.1-cp313-cp313-manylinux_2_28_x86_64.whl", 255_567_609, "f659529e07c21ec6b6179fd1bfaf82ffb7c3dc9c0916e18f6f313f9a690891be"),
    ("linux-aarch64", "onnxruntime-gpu", "onnxruntime_gpu-1.31.1-cp313-cp313-manylinux_2_34_aarch64.whl", 212_353_242, "ca5e4446e271e57e325d7fd41c90707c19c9f9615d1f8499837ee856f5705ad9"),
    ("windows-x86_64", "onnxruntime-gpu", "onnxruntime_gpu-1.31.1-cp313-cp313-win_amd64.whl", 168_097_596, "1a667241591c89c516b43689a0ae38c4d99d0cb45a2220e95a9f822aeb6887c4"),
];

impl Wheel {
    /// The wheel with the CUDA build or the one for processors, if the platform has one.
    pub fn pinned(platform: &str, gpu: bool) -> Option<Self> {
        let wanted = if gpu {
            "onnxruntime-gpu"
        } else {
            "onnxruntime"
        };
        WHEELS
            .iter()
            .find(|(of, package, ..)| *of == platform && *package == wanted)
            .map(|&(_, package, file, bytes, sha256)| Self {
                package,
                file,
                bytes,
                sha256,
            })
    }

    /// What the folder's manifest calls it: package and version.
    pub fn build(&self) -> String {
        format!("{} {VERSION}", self.package)
    }

    fn has_providers(&self) -> bool {
        self.package.ends_with("-gpu")
    }
}

/// The machine's system and processor. A system whose C library loads no library of a wheel has a
/// name of its own.
pub(super) fn platform() -> String {
    let variant = if cfg!(target_env = "musl") {
        "-musl"
    } else {
        ""
    };
    format!("{OS}{variant}-{ARCH}")
}

/// The libraries in a wheel: ONNX Runtime's, and of the CUDA build those of its providers.
#[derive(Debug)]
pub(super) struct Libraries {
    archive: ZipArchive<File>,
    /// Indices in the archive; beside them the names without their folder.
    members: Vec<usize>,
    names: Vec<String>,
    /// What they take on disk.
    pub bytes: u64,
}

impl Libraries {
    /// Finds the libraries in the wheel at `path`.
    pub fn find(path: &Path, wheel: &Wheel) -> Result<Self> {
        let file = File::open(path).map_err(IoError::of("read", path))?;
        let mut archive = ZipArchive::new(file).map_err(|error| damaged(wheel, &error))?;
        let providers = if wheel.has_providers() {
            r"|(?:lib)?onnxruntime_providers_\w+\.(?:so|dll)"
        } else {
            ""
        };
        let wanted = Regex::new(&format!(r"^onnxruntime/capi/({LIBRARY}{providers})$"))
            .map_err(Failure::bug)?;
        let (mut members, mut names, mut bytes) = (Vec::new(), Vec::new(), 0);
        for index in 0..archive.len() {
            let member = archive
                .by_index(index)
                .map_err(|error| damaged(wheel, &error))?;
            let name = member.name().map_err(|error| damaged(wheel, &error))?;
            if let Some(name) = wanted.captures(&name).and_then(|found| found.get(1)) {
                bytes += member.size();
                members.push(index);
                names.push(name.as_str().to_owned());
            }
        }
        if !names.iter().any(|name| is_library(name)) {
            bail!("{} holds no shared library of ONNX Runtime", wheel.file);
        }
        Ok(Self {
            archive,
            members,
            names,
            bytes,
        })
    }

    /// Names of the libraries.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Writes the libraries into `folder`, and returns their names.
    pub fn unpack(mut self, wheel: &Wheel, folder: &Path) -> Result<Vec<String>> {
        for (index, name) in self.members.iter().zip(&self.names) {
            let path = folder.join(name);
            let mut member = self
                .archive
                .by_index(*index)
                .map_err(|error| damaged(wheel, &error))?;
            let mut file = File::create_new(&path).map_err(IoError::of("create", &path))?;
            io::copy(&mut member, &mut file).map_err(IoError::of("write", &path))?;
            make_executable(&file).with_context(|| format!("{}", path.display()))?;
        }
        Ok(self.names)
    }
}

/// Names of ONNX Runtime's library in wheels of all platforms.
const LIBRARY: &str = r"libonnxruntime\.so\.[\d.]+|libonnxruntime\.[\d.]+\.dylib|onnxruntime\.dll";

/// Whether a file of a wheel is ONNX Runtime's library, and not a provider's.
pub(super) fn is_library(name: &str) -> bool {
    name == "onnxruntime.dll" || name.starts_with("libonnxruntime.") && !name.contains("providers")
}

fn damaged(wheel: &Wheel, error: &zip::result::ZipError) -> Failure {
    Failure::usage(format!("{} can't be unpacked: {error}", wheel.file))
}

#[cfg(unix)]
fn make_executable(file: &File) -> io::Result<()> {
    file.set_permissions(<fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755))
}

#[cfg(not(unix))]
fn make_executable(_file: &File) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
