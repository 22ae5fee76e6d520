//! The flags that choose a backend.

use std::path::PathBuf;

use clap::ValueEnum;
use dlc_runtime::{Backend, BackendKind, BackendSearch, Provider, SessionOptions};

use super::environment;
use super::failure::{Result, bail};

/// Flags of every command that runs a bundle.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct BackendArgs {
    /// What runs the ONNX files; auto takes ONNX Runtime if its library is found, else the built-in
    /// tract
    #[arg(long, value_enum, default_value_t = Choice::Auto, help_heading = "Backend")]
    backend: Choice,
    /// ONNX Runtime's shared library
    #[arg(long, value_name = "FILE", help_heading = "Backend")]
    ort_lib: Option<PathBuf>,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = Device::Cpu, help_heading = "Backend")]
    provider: Device,
    /// Number of the CUDA device [default: 0]
    #[arg(long, value_name = "N", help_heading = "Backend")]
    device: Option<i32>,
    /// Threads within an operator [default: all cores]
    #[arg(long, value_name = "N", value_parser = environment::threads, help_heading = "Backend")]
    threads: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    Auto,
    Onnxruntime,
    Tract,
}

/// Where a bundle computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Device {
    Cpu,
    Cuda,
}

impl BackendArgs {
    /// The search that the flags and the environment lead to.
    pub fn search(&self) -> BackendSearch {
        let force = match self.backend {
            Choice::Auto => None,
            Choice::Onnxruntime => Some(BackendKind::OnnxRuntime),
            Choice::Tract => Some(BackendKind::Tract),
        };
        let found = environment::backend_search();
        // Asking for tract by name is stronger than a variable that demands ONNX Runtime of every
        // test.
        let require_ort = found.require_ort && force != Some(BackendKind::Tract);
        BackendSearch {
            explicit: self.ort_lib.clone(),
            force,
            require_ort,
            threads: self.session().threads,
            ..found
        }
    }

    /// Starts the backend.
    pub fn start(&self) -> Result<Backend> {
        if self.device.is_some() && self.provider == Device::Cpu {
            bail!("--device has no effect on the CPU; add --provider cuda, or leave it out");
        }
        Ok(dlc_runtime::start(&self.search())?)
    }

    /// How sessions are loaded.
    pub fn session(&self) -> SessionOptions {
        let provider = match self.provider {
            Device::Cpu => Provider::Cpu,
            Device::Cuda => Provider::Cuda(self.device.unwrap_or(0)),
        };
        SessionOptions {
            threads: Some(self.threads.unwrap_or_else(environment::cores)),
            provider,
        }
    }
}

/// `ONNX Runtime 1.31.1 (/path)`, `tract 0.23.9 (built in)`.
pub(super) fn describe(backend: &Backend) -> String {
    let place = backend
        .library()
        .map_or_else(|| "built in".to_owned(), |p| p.display().to_string());
    format!("{} {} ({place})", backend.kind().name(), backend.version())
}
