//! `dlc setup`.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use dlc_errors::Fault;
use dlc_files::IoError;
use dlc_files::temporary::Temporary;
use dlc_passes::Progress;
use serde_json::json;

use super::download::{Index, PYPI, check_interruption};
use super::environment;
use super::failure::{Context, Failure, Result};
use super::library_folder::LibraryFolder;
use super::output::{Output, note};
use super::progress::Bar;
use super::room::{check_room, size};
use super::wheel::{Libraries, VERSION, Wheel, platform};

/// Download ONNX Runtime, which runs bundles faster
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    component: Component,
}

#[derive(Debug, clap::Subcommand)]
enum Component {
    /// Download ONNX Runtime's shared library from PyPI, and print its path
    ///
    /// The library's wheel is checked against the SHA-256 that dlc knows. Nothing is downloaded if
    /// this build is there already. The variables `HTTPS_PROXY`, `NO_PROXY` and `SSL_CERT_FILE` are
    /// followed.
    Onnxruntime(OnnxRuntimeArgs),
}

#[derive(Debug, clap::Args)]
struct OnnxRuntimeArgs {
    /// The CUDA build, for Linux and Windows: a few hundred MB. It needs CUDA's own libraries
    #[arg(long)]
    gpu: bool,
    /// Where the library goes [default: dlc's data folder, where every command looks]
    #[arg(long, value_name = "DIR")]
    dest: Option<PathBuf>,
    /// Another index of Python packages, in JSON [default: `PIP_INDEX_URL`, else PyPI]
    #[arg(long, value_name = "URL")]
    index: Option<String>,
    /// Download again, and replace files that no setup put there
    #[arg(long)]
    force: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let Component::Onnxruntime(args) = &args.component;
    let platform = platform();
    let wheel = Wheel::pinned(&platform, args.gpu).ok_or_else(|| no_wheel(&platform, args.gpu))?;
    let folder = args
        .dest
        .clone()
        .or_else(environment::library_folder)
        .context("there is no home folder; name a folder with --dest")?;
    let folder = LibraryFolder::open(&folder)?;
    let is_there = folder.holds(&wheel.build()) && !args.force;
    let library = if is_there {
        folder.library()
    } else {
        let index = args.index.clone().or_else(environment::package_index);
        let index = Index::new(index.as_deref().unwrap_or(PYPI))?;
        note(&format!(
            "downloading {}, {}",
            wheel.build(),
            size(wheel.bytes)
        ))?;
        let bar = Bar::new();
        let library = fetch(&index, &wheel, folder, args.force, &bar)?;
        bar.finish();
        library
    };
    if let Some(hint) = hint(args) {
        note(&hint)?;
    }
    let output = Output::new(args.json);
    output.result(&library.display().to_string())?;
    output.json(&json!({
        "package": wheel.package,
        "version": VERSION,
        "library": library,
        "downloaded": !is_there,
    }))?;
    Ok(ExitCode::SUCCESS)
}

/// Downloads a wheel, and installs its libraries; returns the path of ONNX Runtime's. The folder is
/// not touched before all of it is there.
fn fetch(
    index: &Index,
    wheel: &Wheel,
    folder: LibraryFolder,
    force: bool,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    progress.phase("downloading");
    let scratch = environment::scratch("setup")
        .context("can't make a temporary folder; name another by the variable TMPDIR")?;
    check_room(scratch.path(), wheel.bytes, "TMPDIR")?;
    let path = index.download(wheel, scratch.path(), progress)?;
    let libraries = Libraries::find(&path, wheel)?;
    if !force {
        folder.check_replaced(libraries.names())?;
    }
    progress.phase("unpacking");
    check_room(folder.path(), libraries.bytes, "--dest")?;
    fs::create_dir_all(folder.path()).map_err(IoError::of("create", folder.path()))?;
    let staged = Temporary::scratch(folder.path(), "setup")?;
    let names = libraries.unpack(wheel, staged.path())?;
    check_interruption(progress)?;
    folder.install(&wheel.build(), staged.path(), &names)
}

/// Where a library is found that doesn't lie in dlc's data folder.
fn hint(args: &OnnxRuntimeArgs) -> Option<String> {
    let elsewhere = args.dest.is_some() && args.dest != environment::library_folder();
    elsewhere.then(|| {
        "dlc takes this library if --ort-lib or the variable ORT_DYLIB_PATH names it".to_owned()
    })
}

fn no_wheel(platform: &str, gpu: bool) -> Failure {
    let (what, way_out) = if gpu {
        ("CUDA build of ONNX Runtime", "leave --gpu out")
    } else {
        ("ONNX Runtime", "bundles run on the built-in tract")
    };
    Failure::of(
        Fault::Unsupported,
        format!(
            "PyPI has no {what} {VERSION} for {platform}: {way_out}, or name a library that you built with --ort-lib"
        ),
    )
}

#[cfg(test)]
mod tests;
