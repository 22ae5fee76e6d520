//! `dip-go`: finds by gradients through the sampler which blocks of a diffusion model must be computed at which step.
//!
//! DiP-GO: *A Diffusion Pruner via Few-step Gradient Optimization* (arXiv 2410.16942, NeurIPS 2024). `supernet.rs` is one evaluation with gates,
//! `rollout.rs` the sampler around it and the way back, `gates.rs` what is learned; choosing, closing and building are those of `skip`.

mod gates;
mod options;
mod rollout;
mod supernet;
#[cfg(test)]
mod tests;

use dlc_ir::{Module, SamplingPlan, SkipSchedule};

use crate::context::{Pass, PassContext};
use crate::error::PassError;
use crate::report::PassReport;
use crate::skip::{Driver, SkipNet, apply, close, denoiser, finish};
use gates::Training;
use rollout::{Sampler, Start, hard};
use supernet::SuperNet;

pub use options::DipGoOptions;

const NAME: &str = "dip-go";

/// The pass.
#[derive(Debug)]
pub struct DipGo {
    options: DipGoOptions,
}

impl DipGo {
    /// The pass with these options.
    ///
    /// # Errors
    /// [`PassError::Options`] for options that contradict each other or are out of range.
    pub fn new(options: DipGoOptions) -> Result<Self, PassError> {
        options.check()?;
        Ok(Self { options })
    }
}

/// What the SuperNet makes of `noise` (of unit variance, `[channels, height, width]`) under a schedule, its dependencies closed: the sample. The
/// reference that the graphs of a bundle are checked against.
///
/// # Errors
/// [`PassError::Unsupported`] for models that dip-go can't train on, and what evaluating says.
pub fn supernet_sample(
    module: &Module,
    plan: &SamplingPlan,
    guidance: f64,
    schedule: &SkipSchedule,
    noise: &[f32],
    class: Option<i64>,
) -> Result<Vec<f32>, PassError> {
    let unsupported = || PassError::Unsupported { pass: NAME, problem: "the module is no diffusion model".into() };
    let (Some(target), Some(diffusion)) = (module.graph("target"), &module.model.diffusion) else { return Err(unsupported()) };
    let net = SkipNet::new(NAME, target, &module.weights, schedule.granularity)?;
    let supernet = SuperNet::new(NAME, &net, diffusion)?;
    let segment = supernet.load(&module.weights)?;
    let sampler = Sampler { net: &supernet, segment: &segment, plan, diffusion, reuse: schedule.reuse, guidance: guidance as f32 };
    let closed: Vec<Vec<bool>> = close(&net, schedule.reuse, &schedule.computed()?).into_iter().map(|step| step.computed).collect();
    let rollout = sampler.run(&Start { noise: noise.to_vec(), class }, &hard(&closed))?;
    Ok(rollout.sample().to_vec())
}

impl Pass for DipGo {
    fn name(&self) -> &'static str {
        NAME
    }

    fn options(&self) -> serde_json::Value {
        serde_json::to_value(&self.options).unwrap_or_default()
    }

    fn run(&self, module: &mut Module, cx: &mut PassContext<'_>) -> Result<PassReport, PassError> {
        let sampler = &self.options.sampler;
        let (scheduler, plan) = cx.samplers(NAME)?.plan(sampler.scheduler.as_deref(), sampler.steps)?;
        let (target, weights, diffusion) = denoiser(NAME, module)?;
        let net = SkipNet::new(NAME, target, weights, sampler.granularity)?;
        let supernet = SuperNet::new(NAME, &net, diffusion)?;
        let segment = supernet.load(weights)?;
        let sampling = Sampler { net: &supernet, segment: &segment, plan: &plan, diffusion, reuse: sampler.reuse, guidance: sampler.guidance as f32 };
        let training = Training { net: &net, sampler: &sampling, options: &self.options, pool: cx.pool };
        let learned = training.run(cx)?;
        let driver = Driver { scheduler: &scheduler, plan: &plan, diffusion };
        let mut made = apply(NAME, &net, sampler, driver, &learned.table)?;
        made.report.fact("consistency", format!("{:.3e} mean square from the full sampler's images", learned.loss));
        Ok(finish(module, made))
    }
}
