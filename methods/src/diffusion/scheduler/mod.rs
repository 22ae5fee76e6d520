//! Schedulers: diffusers' `scheduler_config.json` becomes a [`SamplingPlan`], a table that any part
//! of dlc can run.
//!
//! One file for each scheduler, which reads its own keys and makes its own rows; what they share is
//! the noise schedule (`noise.rs`), what networks predict (`prediction.rs`), the choice of timesteps (`spacing.rs`) or
//! noise levels (`levels.rs`), where a run begins (`start.rs`), and what families have in common (`exploding.rs`, `multistep.rs`). What a
//! configuration asks for beyond that is refused by name.

mod ddim;
mod ddpm;
mod deis;
mod dpm_solver;
mod error;
mod euler;
mod euler_ancestral;
mod exploding;
mod flow_match;
mod heun;
mod kind;
mod lcm;
mod levels;
mod lms;
mod multistep;
mod noise;
mod pndm;
mod prediction;
mod reader;
mod spacing;
mod start;
mod unipc;

#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

use crate::diffusion::SamplingPlan;

pub use error::{SchedulerError, SchedulerProblem};
pub use kind::SchedulerKind;

use dlc_errors::printable::shown;
use kind::{names, nearest};
use reader::ConfigReader;
use start::Run;

use crate::Result;

/// The most steps that a plan is made for.
const MOST_STEPS: usize = 10_000;

/// Schedulers of diffusers that dlc doesn't sample with, but whose noise schedule it reads.
const COMPATIBLE: [&str; 4] = [
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
];

/// What a configuration says of a scheduler, read and checked.
trait Scheduler {
    /// The table of a run, with the number of steps that the configuration was read for.
    fn plan(&self, run: Run) -> SamplingPlan;

    /// The key that asks for runs that don't begin within their steps, and why; none if they do.
    fn whole_only(&self) -> Option<(&'static str, &'static str)> {
        None
    }
}

/// The plan for `steps` steps of the scheduler that a configuration describes, or of another one on
/// the same noise schedule, as diffusers' `from_config` makes it: keys that both have keep their
/// values, others take the default of the one that samples.
///
/// A plan may have more evaluations than steps (PNDM repeats its first, or evaluates several times
/// in a step), or fewer, where `lambda_min_clipped` leaves fewer timesteps.
///
/// # Errors
/// [`SchedulerError::Class`] for a scheduler that isn't named or isn't known;
/// [`SchedulerError::Config`] with every key, and the number of steps, that is wrong or that dlc
/// can't follow; [`SchedulerError::Degenerate`] where the numbers give no sampler together.
pub fn sampling_plan(
    config: &Map<String, Value>,
    scheduler: Option<SchedulerKind>,
    steps: usize,
) -> Result<SamplingPlan> {
    plan_of(config, scheduler, Run { steps, from: None })
}

/// The same for a run that begins from an image: of `steps` steps the last `strength` (above 0, up
/// to 1) are taken, from the image with as much noise as is due there (Meng et al., *Guided Image Synthesis and Editing with Stochastic Differential Equations*; diffusers' pipelines
/// from image to image).
///
/// # Errors
/// As [`sampling_plan`], and [`SchedulerError::Strength`] for a strength that is out of range or
/// leaves no step.
pub fn image_sampling_plan(
    config: &Map<String, Value>,
    scheduler: Option<SchedulerKind>,
    steps: usize,
    strength: f64,
) -> Result<SamplingPlan> {
    let taken = (steps as f64 * strength) as usize;
    if !(strength > 0.0 && strength <= 1.0) || taken == 0 {
        return Err(SchedulerError::Strength { strength, steps }.into());
    }
    let from = Some(steps - taken.min(steps));
    plan_of(config, scheduler, Run { steps, from })
}

fn plan_of(
    config: &Map<String, Value>,
    scheduler: Option<SchedulerKind>,
    run: Run,
) -> Result<SamplingPlan> {
    let steps = run.steps;
    let own = own_scheduler(config, scheduler.is_some())?;
    let Some(kind) = scheduler.or(own) else {
        let text = format!(
            "scheduler_config.json names no `_class_name`. Say which scheduler is meant: {}",
            names(|_| true)
        );
        return Err(SchedulerError::Class(text).into());
    };
    check_kind(config, own, kind)?;
    let mut reader = ConfigReader::new(config);
    let taken = checked_steps(&mut reader, steps);
    let read = match kind {
        SchedulerKind::Ddim => ddim::read,
        SchedulerKind::Pndm => pndm::read,
        SchedulerKind::Euler => euler::read,
        SchedulerKind::Heun => heun::read,
        SchedulerKind::Lms => lms::read,
        SchedulerKind::DpmSolverPlusPlus => dpm_solver::read,
        SchedulerKind::Deis => deis::read,
        SchedulerKind::UniPc => unipc::read,
        SchedulerKind::Ddpm => ddpm::read,
        SchedulerKind::EulerAncestral => euler_ancestral::read,
        SchedulerKind::Lcm => lcm::read,
        SchedulerKind::FlowMatchEuler => flow_match::read,
    };
    let sampler = read(&mut reader, taken);
    if let Some((key, problem)) = sampler.whole_only().filter(|_| run.from.is_some()) {
        reader.unsupported(key, problem.to_owned());
    }
    reader.finish(kind.class())?;
    let plan = sampler.plan(run);
    match plan.check() {
        Ok(()) => Ok(plan),
        Err(reason) => {
            let timestep = plan
                .steps
                .get(reason.step)
                .map_or(f64::NAN, |step| step.timestep);
            Err(SchedulerError::Degenerate {
                class: kind.class(),
                steps,
                timestep,
                reason,
            }
            .into())
        }
    }
}

/// A `scheduler_config.json`, in which Python may have written `NaN`, `Infinity` and `-Infinity`,
/// which JSON doesn't have: they become strings.
///
/// # Errors
/// [`SchedulerError::Json`] for text that is no JSON object.
pub fn parse_scheduler_config(text: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(&quote_constants(text))
        .map_err(|error| SchedulerError::Json(error.to_string()).into())
}

/// The scheduler that a configuration names, if it names one and dlc has it. Others are refused,
/// except compatible ones if `replaced`.
fn own_scheduler(
    config: &Map<String, Value>,
    replaced: bool,
) -> Result<Option<SchedulerKind>, SchedulerError> {
    let Some(value) = config.get("_class_name").filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let Some(class) = value.as_str() else {
        return Err(SchedulerError::Class(format!(
            "scheduler_config.json: `_class_name` is {}; it must be a string",
            reader::show(value)
        )));
    };
    if let Some(kind) = SchedulerKind::ALL
        .into_iter()
        .find(|kind| kind.class() == class)
    {
        return Ok(Some(kind));
    }
    match COMPATIBLE.into_iter().find(|known| *known == class) {
        Some(_) if replaced => Ok(None),
        Some(class) => {
            let text = format!(
                "scheduler_config.json is for {class}, which is none of dlc's samplers. Choose one that is, on the same noise schedule: {}",
                names(|kind| !kind.flows())
            );
            Err(SchedulerError::Class(text))
        }
        None => {
            let known = SchedulerKind::ALL
                .iter()
                .map(|kind| kind.class())
                .chain(COMPATIBLE);
            let near = nearest(class, known)
                .map(|near| format!(" (the nearest that it knows is {near})"))
                .unwrap_or_default();
            let classes: Vec<_> = SchedulerKind::ALL.iter().map(|kind| kind.class()).collect();
            let (class, classes) = (shown(class), classes.join(", "));
            Err(SchedulerError::Class(format!(
                "scheduler_config.json is for `{class}`, which dlc doesn't know{near}. It samples with {classes}"
            )))
        }
    }
}

/// Refuses to sample models trained by flow matching as others, and others as those.
fn check_kind(
    config: &Map<String, Value>,
    own: Option<SchedulerKind>,
    kind: SchedulerKind,
) -> Result<(), SchedulerError> {
    let Some(class) = config.get("_class_name").and_then(Value::as_str) else {
        return Ok(());
    };
    let trained = |flows: bool| {
        if flows {
            "by flow matching"
        } else {
            "on a noise schedule"
        }
    };
    let flows = own.is_some_and(SchedulerKind::flows);
    if flows == kind.flows() {
        return Ok(());
    }
    Err(SchedulerError::Class(format!(
        "scheduler_config.json is for {}, so the model was trained {}; {} is for models trained {}. Leave the scheduler out",
        shown(class),
        trained(flows),
        kind.name(),
        trained(kind.flows())
    )))
}

/// The number of steps, or 1 with a report where there can't be so many.
fn checked_steps(reader: &mut ConfigReader<'_>, steps: usize) -> usize {
    let train = reader
        .get("num_train_timesteps")
        .and_then(Value::as_u64)
        .map_or(1000, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let most = train.clamp(1, MOST_STEPS);
    if (1..=most).contains(&steps) {
        return steps;
    }
    reader.bad("steps", format!("is {steps}; it must be a whole number from 1 to {most} (`num_train_timesteps` is {train})"));
    1
}

/// Puts the constants that only Python's JSON has into quotes, where they don't stand in a string.
fn quote_constants(text: &str) -> String {
    const CONSTANTS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    let mut quoted = String::with_capacity(text.len());
    let mut rest = text;
    let (mut in_string, mut escaped) = (false, false);
    while let Some(c) = rest.chars().next() {
        let constant = CONSTANTS
            .into_iter()
            .find(|constant| !in_string && rest.starts_with(constant));
        let length = constant.map_or(c.len_utf8(), str::len);
        if let Some(constant) = constant {
            quoted.extend(['"'].into_iter().chain(constant.chars()).chain(['"']));
        } else {
            quoted.push(c);
        }
        in_string ^= c == '"' && !escaped;
        escaped = in_string && c == '\\' && !escaped;
        rest = &rest[length..];
    }
    quoted
}
