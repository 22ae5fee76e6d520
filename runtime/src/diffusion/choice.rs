//! Which sampler a bundle is run with: what was asked for, else what its schedule was made for,
//! else diffusers' customs.

use dlc_files::read_document;
use dlc_ir::{Sampling, SolverStep};
use dlc_methods::diffusion::{
    SamplingPlan, SchedulerKind, image_sampling_plan, parse_scheduler_config, sampling_plan,
};
use serde_json::{Map, Value};

use super::is_guided;
use crate::{Bundle, Result, RuntimeError};

const CONFIG: &str = "scheduler_config.json";
/// The largest configuration that is read: `trained_betas` of some thousand steps fit.
const CONFIG_CAP: u64 = 1 << 20;

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct SamplerWishes {
    /// Steps of the sampler.
    pub steps: Option<usize>,
    /// The scheduler, by dlc's name or by diffusers'.
    pub scheduler: Option<String>,
    /// The strength of classifier-free guidance.
    pub guidance: Option<f64>,
    /// Whether to run the whole model at every step.
    pub no_prune: bool,
    /// The share of the steps that are taken, for images that start from a picture.
    pub strength: Option<f64>,
}

/// A sampler for a bundle.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerChoice {
    /// What runs: the scheduler's table, or that of the solver that the bundle has in its place.
    pub plan: SamplingPlan,
    /// The scheduler's table.
    pub whole_plan: SamplingPlan,
    /// The scheduler's name.
    pub scheduler: &'static str,
    /// The steps that it was asked for.
    pub steps: usize,
    /// The strength of classifier-free guidance.
    pub guidance: f64,
    /// Whether the bundle's schedule says what is computed when.
    pub prune: bool,
    /// What the user should know.
    pub note: Option<String>,
}

impl SamplerChoice {
    /// Whether there is guidance.
    pub fn is_guided(&self) -> bool {
        is_guided(self.guidance)
    }
}

/// The sampler for `bundle`. A pruned one is bound to the steps and the scheduler that it was
/// pruned for.
///
/// # Errors
/// [`RuntimeError::Input`] for wishes that the schedule doesn't fit, [`RuntimeError::Unsupported`]
/// for a bundle without a `scheduler_config.json`, [`RuntimeError::Method`] for a scheduler that
/// dlc doesn't have.
pub fn choose_sampler(bundle: &Bundle, wishes: &SamplerWishes) -> Result<SamplerChoice> {
    let manifest = bundle.manifest();
    let Some(model) = &manifest.model.diffusion else {
        let (family, task) = (&manifest.model.family, manifest.model.task.name());
        return Err(RuntimeError::Input(format!(
            "the bundle is a {family} for {task}, which makes no images"
        )));
    };
    let made_for = manifest.sampling.as_ref();
    let name = wishes
        .scheduler
        .as_deref()
        .or(made_for.map(|sampling| sampling.scheduler.as_str()));
    let kind = name.map(SchedulerKind::from_name).transpose()?;
    let asked_steps = wishes.steps.or(made_for.map(|sampling| sampling.steps));
    let whole = wishes.no_prune || wishes.strength.is_some();
    let schedule = made_for.filter(|_| !whole);
    if let (Some(sampling), Some(steps)) = (schedule, asked_steps)
        && (sampling.steps != steps || SchedulerKind::from_name(&sampling.scheduler).ok() != kind)
    {
        let asked = kind.map_or("another scheduler", SchedulerKind::name);
        return Err(RuntimeError::Input(format!(
            "the bundle is {} for {} steps of {}, not for {steps} of {asked}: leave --steps and --scheduler out, sample the whole model with \
             `dlc sample --no-prune`, or compile it again",
            made(sampling),
            sampling.steps,
            sampling.scheduler
        )));
    }
    let config = config(bundle)?;
    let own = config.get("_class_name").and_then(Value::as_str);
    let own = own.and_then(|class| SchedulerKind::from_name(class).ok());
    let usual = kind.or(own).unwrap_or(SchedulerKind::Ddim).default_steps();
    let steps = asked_steps.unwrap_or(usual);
    let whole_plan = match wishes.strength {
        None => sampling_plan(&config, kind, steps)?,
        Some(strength) => image_sampling_plan(&config, kind, steps, strength)?,
    };
    let plan = match schedule {
        Some(sampling) if !sampling.solver.is_empty() => {
            let evaluations = sampling.solver.iter().map(SolverStep::parts);
            let solver = whole_plan.with_solver(evaluations);
            solver.map_err(|error| RuntimeError::Input(format!("the bundle's solver: {error}")))?
        }
        _ => whole_plan.clone(),
    };
    // A plan is there, so the configuration names a scheduler that dlc has, unless one was asked
    // for.
    let scheduler = kind.or(own).map_or("unknown", SchedulerKind::name);
    let guidance = wishes
        .guidance
        .or(made_for.map(|sampling| sampling.guidance))
        .unwrap_or_else(|| model.default_guidance());
    let note = schedule.filter(|sampling| sampling.unrolled.is_none() && sampling.guidance.to_bits() != guidance.to_bits()).map(|sampling| {
        format!("the bundle is {} for guidance {}; with {guidance} its images may differ more from the whole model's", made(sampling), sampling.guidance)
    });
    let unpruned = made_for.filter(|_| wishes.strength.is_some() && !wishes.no_prune);
    let note = note.or(unpruned.map(|sampling| {
        format!(
            "the bundle is {} for runs that start from noise; from a picture the whole model runs at every step",
            made(sampling)
        )
    }));
    Ok(SamplerChoice {
        plan,
        whole_plan,
        scheduler,
        steps,
        guidance,
        prune: schedule.is_some(),
        note,
    })
}

/// How a bundle came to its schedule.
fn made(sampling: &Sampling) -> &'static str {
    if sampling.solver.is_empty() {
        "pruned"
    } else {
        "fitted"
    }
}

/// The scheduler's configuration, as the checkpoint has it.
fn config(bundle: &Bundle) -> Result<Map<String, Value>> {
    let missing = || {
        let reason = format!("the bundle has no {CONFIG}, so its noise schedule isn't known");
        let fix = "Compile the pipeline's folder, with `scheduler/` in it, instead of the component alone";
        RuntimeError::unsupported(bundle.folder().display().to_string(), reason, fix)
    };
    let in_folder = || bundle.side_file(&format!("scheduler/{CONFIG}"));
    let path = bundle.side_file(CONFIG).or_else(in_folder);
    let path = path.ok_or_else(missing)?;
    Ok(parse_scheduler_config(&read_document(&path, CONFIG_CAP)?)?)
}
