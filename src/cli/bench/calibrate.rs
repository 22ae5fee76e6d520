//! `dlc bench --calibrate`: what passes cost here, kept for later runs, and printed for
//! `auto-draft` on other machines.

use std::process::ExitCode;

use dlc_bundle::Profile;
use dlc_ir::{DType, Module};
use dlc_methods::speculation::DraftCosts;
use dlc_passes::auto_draft::{costs_key, draft_costs};
use dlc_passes::{Machine, ScoreCache};
use dlc_runtime::BackendKind;
use serde_json::json;

use super::Args;
use crate::cli::backend::describe;
use crate::cli::drafting::{measure_costs, store_costs};
use crate::cli::failure::{Context, Failure, Result};
use crate::cli::models::Models;
use crate::cli::output::{Output, note};
use crate::cli::progress::Bar;
use crate::cli::{environment, phases};
use crate::pipeline::{BundleMachine, DiskCache, module_of_bundle};

/// Turns of all passes.
const REPEATS: usize = 40;

pub(super) fn run(args: &Args, models: &mut Models) -> Result<ExitCode> {
    let output = Output::new(args.json);
    let costs = measure_costs(models, REPEATS)?;
    store_costs(
        &models.bundle,
        &describe(&models.backend),
        args.backend.session().threads,
        &costs,
    )?;
    let module = module_of_bundle(&models.bundle)?;
    let profile = models.bundle.manifest().profile;
    let parts = if times_parts(models.backend.kind(), profile, module.model.dtype) {
        Some(parts(args, models, &module)?)
    } else {
        None
    };
    let text = parts
        .as_ref()
        .map_or_else(|| serde_yaml::to_string(&costs), serde_yaml::to_string)
        .map_err(Failure::bug)?;
    let draft = models
        .draft
        .as_ref()
        .map(|_| format!("# a step of this bundle's draft: {:.3}\n", costs.draft));
    output.result(&format!(
        "# costs in passes of the target over one token\n{}{text}",
        draft.unwrap_or_default()
    ))?;
    output.json(&json!({"draft": costs.draft, "verify": costs.verify, "parts": parts}))?;
    Ok(ExitCode::SUCCESS)
}

/// Whether quantised drafts run in such a bundle.
fn times_parts(backend: BackendKind, profile: Profile, dtype: DType) -> bool {
    match dtype {
        DType::F32 => backend == BackendKind::OnnxRuntime || profile == Profile::Portable,
        DType::F16 => profile == Profile::Ort,
        DType::Bf16 | DType::I64 | DType::U8 => false,
    }
}

/// What the parts of a draft's step cost, which auto-draft chooses by.
fn parts(args: &Args, models: &Models, module: &Module) -> Result<DraftCosts> {
    let bar = Bar::new();
    let scratch = environment::scratch("calibration")
        .context("can't make a temporary folder for a bundle; point TMPDIR to one with room")?;
    let machine = BundleMachine {
        profile: models.bundle.manifest().profile,
        backend: &args.backend.search(),
        threads: args
            .backend
            .session()
            .threads
            .unwrap_or_else(environment::cores),
        scratch: scratch.path().to_owned(),
        monitor: &bar,
    };
    note("timing drafts of the target, quantised and without some of its blocks")?;
    let costs = draft_costs(module, &machine)?;
    phases::pause();
    if let (Some(folder), Some(target)) = (environment::cache_folder(), module.graph("target")) {
        DiskCache::new(folder).put(
            &costs_key(module, target, &machine.name()?),
            &serde_json::to_string(&costs).map_err(Failure::bug)?,
        );
    }
    Ok(costs)
}
