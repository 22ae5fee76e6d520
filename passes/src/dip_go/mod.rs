//! `dip-go`: finds by gradients through the sampler which blocks of a diffusion model must be
//! computed at which step.
//!
//! DiP-GO: *A Diffusion Pruner via Few-step Gradient Optimization* (arXiv 2410.16942, NeurIPS 2024).
//! `supernet.rs` is one evaluation with gates, `rollout.rs` the sampler around it and the way back,
//! `gates.rs` what is learned; choosing, closing and building are those of `skip`.

mod gates;
mod loss;
mod options;
mod rollout;
mod supernet;
#[cfg(test)]
mod tests;

use dlc_ir::{DType, Graph, Module, SamplingPlan, SkipSchedule};

use crate::context::{Pass, PassContext, Prompt};
use crate::error::PassError;
use crate::needs::{self, Needs};
use crate::report::PassReport;
use crate::skip::{Driver, Inputs, SkipNet, apply, close, denoiser, finish, is_guided};
use gates::Training;
use loss::Loss;
use rollout::{Sampler, Start, hard};
use supernet::SuperNet;

pub use loss::LossKind;
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

    /// What images are told beside a class.
    fn prompts(
        &self,
        target: &Graph,
        guidance: f64,
        cx: &PassContext<'_>,
    ) -> Result<Vec<Prompt>, PassError> {
        let told = Inputs::find(NAME, target)?.told;
        let inputs: Vec<(&str, DType)> = told
            .iter()
            .map(|(name, value)| (name.as_str(), target.value(*value).ty.dtype))
            .collect();
        let names: Vec<&str> = inputs.iter().map(|(name, _)| *name).collect();
        let fail = |problem: String| {
            Err(PassError::Options {
                pass: NAME,
                problem,
            })
        };
        match &self.options.embeddings {
            None if inputs.is_empty() => Ok(vec![]),
            None => fail(format!(
                "the model is told {}: give texts to learn on with embeddings=FILE, as `dlc sample --embeddings` takes it",
                names.join(", ")
            )),
            Some(_) if inputs.is_empty() => {
                fail("the model is told no text: leave embeddings out".into())
            }
            Some(file) => cx
                .samplers(NAME)?
                .prompts(file, &inputs, is_guided(guidance)),
        }
    }
}

/// What the SuperNet makes of `noise` (of unit variance, `[channels, height, width]`) under a
/// schedule, its dependencies closed, for an image that is `told` a class and a prompt: the sample.
/// The reference that the graphs of a bundle are checked against.
///
/// # Errors
/// [`PassError::Unsupported`] for models that dip-go can't train on, and what evaluating says.
pub fn supernet_sample(
    module: &Module,
    plan: &SamplingPlan,
    guidance: f64,
    schedule: &SkipSchedule,
    noise: &[f32],
    told: (Option<i64>, Option<Prompt>),
) -> Result<Vec<f32>, PassError> {
    let unsupported = || PassError::Unsupported {
        pass: NAME,
        problem: "the module is no diffusion model".into(),
    };
    let (Some(target), Some(diffusion)) = (module.graph("target"), &module.model.diffusion) else {
        return Err(unsupported());
    };
    let net = SkipNet::new(
        NAME,
        target,
        &module.weights,
        diffusion,
        schedule.granularity,
    )?;
    let supernet = SuperNet::new(NAME, &net, diffusion)?;
    let segment = supernet.load(&module.weights)?;
    let (class, prompt) = told;
    let prompts: Vec<Prompt> = prompt.into_iter().collect();
    let guidance = guidance as f32;
    let sampler = Sampler {
        net: &supernet,
        segment: &segment,
        plan,
        diffusion,
        prompts: &prompts,
        reuse: schedule.reuse,
        guidance,
    };
    let closed: Vec<Vec<bool>> = close(&net, schedule.reuse, &schedule.computed()?)
        .into_iter()
        .map(|step| step.computed)
        .collect();
    let rollout = sampler.run(
        &Start {
            noise: noise.to_vec(),
            class,
            prompt: (!prompts.is_empty()).then_some(0),
        },
        &hard(&closed),
    )?;
    Ok(rollout.sample().to_vec())
}

impl Pass for DipGo {
    fn name(&self) -> &'static str {
        NAME
    }

    fn options(&self) -> serde_json::Value {
        serde_json::to_value(&self.options).unwrap_or_default()
    }

    fn needs(&self, module: &Module) -> Needs {
        Needs {
            disk: 0,
            memory: 2 * needs::whole_weights(module),
        }
    }

    fn run(&self, module: &mut Module, cx: &mut PassContext<'_>) -> Result<PassReport, PassError> {
        let sampler = &self.options.sampler;
        let (scheduler, plan) = cx
            .samplers(NAME)?
            .plan(sampler.scheduler.as_deref(), sampler.steps)?;
        let (target, weights, diffusion) = denoiser(NAME, module)?;
        let guidance = sampler.guidance_for(NAME, diffusion)?;
        let net = SkipNet::new(NAME, target, weights, diffusion, sampler.granularity)?;
        let supernet = SuperNet::new(NAME, &net, diffusion)?;
        let segment = supernet.load(weights)?;
        let prompts = self.prompts(target, guidance, cx)?;
        let sampling = Sampler {
            net: &supernet,
            segment: &segment,
            plan: &plan,
            diffusion,
            prompts: &prompts,
            reuse: sampler.reuse,
            guidance: guidance as f32,
        };
        let shape = [diffusion.channels, diffusion.height, diffusion.width];
        let too_small = || PassError::Options {
            pass: NAME,
            problem: "loss=ssim needs images of 11 pixels or more; leave it out".into(),
        };
        let loss = Loss::new(self.options.loss, shape).ok_or_else(too_small)?;
        let learned = Training {
            net: &net,
            sampler: &sampling,
            loss: &loss,
            options: &self.options,
            pool: cx.pool,
        }
        .run(cx)?;
        let driver = Driver {
            scheduler: &scheduler,
            plan: &plan,
            diffusion,
            guidance,
        };
        let mut made = apply(NAME, &net, sampler, driver, &learned.table)?;
        made.report.fact(
            "consistency",
            format!(
                "{:.3e} from the full sampler's images ({})",
                learned.loss,
                loss.name()
            ),
        );
        Ok(finish(module, made))
    }
}
