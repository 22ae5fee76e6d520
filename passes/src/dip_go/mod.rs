//! `dip-go`: finds by gradients through the sampler which blocks of a diffusion model must be
//! computed at which step.
//!
//! DiP-GO: *A Diffusion Pruner via Few-step Gradient Optimization* (arXiv 2410.16942, NeurIPS 2024).
//! `supernet.rs` is one evaluation with gates, `rollout.rs` the sampler around it and the way back,
//! `view.rs` what images are compared as, `gates.rs` what is learned; choosing, closing and building are those of `skip`.

mod gates;
mod loss;
mod options;
mod rollout;
mod supernet;
#[cfg(test)]
mod tests;
mod view;

use dlc_ir::{Diffusion, Module, SkipSchedule};
use dlc_methods::diffusion::SamplingPlan;
use gates::Training;
use rollout::{Sampler, hard};
use supernet::SuperNet;
use view::ViewPlan;

use crate::context::{Pass, PassContext};
use crate::error::PassError;
use crate::needs::{self, Needs};
use crate::report::PassReport;
use crate::sampling::{Guidance, Start};
use crate::skip::{Driver, SkipNet, apply, close, finish};
use crate::sources::{Prompt, Sources};

pub use loss::{Distance, similarity};
pub use options::DipGoOptions;
pub use view::Space;

const NAME: &str = "dip-go";

/// The pass.
#[derive(Debug)]
pub struct DipGo<'a> {
    sources: Sources<'a>,
    options: DipGoOptions,
}

impl<'a> DipGo<'a> {
    /// The pass with these options.
    ///
    /// # Errors
    /// [`PassError::Options`] for options that contradict each other or are out of range.
    pub fn new(options: DipGoOptions, sources: Sources<'a>) -> Result<Self, PassError> {
        options.check()?;
        Ok(Self { sources, options })
    }

    fn view<'m>(
        &self,
        module: &'m Module,
        diffusion: &Diffusion,
    ) -> Result<ViewPlan<'m>, PassError> {
        let DipGoOptions { loss, distance, .. } = self.options;
        let decoder = module.graph(Diffusion::IMAGE_DECODER);
        ViewPlan::new(decoder, &module.weights, diffusion, loss, distance)
    }
}

/// What the SuperNet makes of `noise` (of unit variance, `[channels, height, width]`), and of what
/// the sampler draws later with `seed`, under a schedule, its dependencies closed, for an image with this `conditioning`, a class and a prompt:
/// the sample. The reference that the graphs of a bundle are checked against.
///
/// # Errors
/// [`PassError::Unsupported`] for models that dip-go can't train on, and what evaluating says.
pub fn supernet_sample(
    module: &Module,
    plan: &SamplingPlan,
    guidance: f64,
    schedule: &SkipSchedule,
    (noise, seed): (&[f32], u64),
    conditioning: (Option<i64>, Option<Prompt>),
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
    let (class, prompt) = conditioning;
    let prompts: Vec<Prompt> = prompt.into_iter().collect();
    let sampler = Sampler {
        net: &supernet,
        segment: &segment,
        plan,
        guidance: Guidance {
            diffusion,
            prompts: &prompts,
            scale: guidance as f32,
        },
        reuse: schedule.reuse,
    };
    let closed: Vec<Vec<bool>> = close(&net, schedule.reuse, &schedule.computed()?)
        .into_iter()
        .map(|step| step.computed)
        .collect();
    let rollout = sampler.run(
        &Start {
            noise: noise.to_vec(),
            seed,
            class,
            prompt: (!prompts.is_empty()).then_some(0),
        },
        &hard(&closed),
    )?;
    Ok(rollout.sample().to_vec())
}

impl Pass for DipGo<'_> {
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

    fn rehearse(&self, module: &mut Module) -> Result<(), PassError> {
        let sampler = &self.options.sampler;
        let driver = Driver::new(NAME, module, sampler, &self.sources)?;
        let (diffusion, guidance) = (driver.diffusion, driver.guidance);
        let net = driver.net(NAME, sampler)?;
        SuperNet::new(NAME, &net, diffusion)?;
        self.options
            .texts()
            .read(&self.sources, module, guidance)?
            .check(module)?;
        self.view(module, diffusion)?;
        // Which blocks are skipped is learned.
        let whole = vec![vec![true; net.units.len()]; driver.plan.steps.len()];
        let made = apply(NAME, &net, sampler, &driver, &whole)?;
        finish(module, made);
        Ok(())
    }

    fn run(&self, module: &mut Module, cx: &mut PassContext<'_>) -> Result<PassReport, PassError> {
        let sampler = &self.options.sampler;
        let driver = Driver::new(NAME, module, sampler, &self.sources)?;
        let (diffusion, guidance) = (driver.diffusion, driver.guidance);
        let net = driver.net(NAME, sampler)?;
        let supernet = SuperNet::new(NAME, &net, diffusion)?;
        // The text encoders' weights go before the denoiser's come.
        let texts = self.options.texts().read(&self.sources, module, guidance)?;
        let prompts = texts.encode(module, guidance, cx)?;
        let segment = supernet.load(driver.weights)?;
        let sampling = Sampler {
            net: &supernet,
            segment: &segment,
            plan: &driver.plan,
            guidance: Guidance {
                diffusion,
                prompts: &prompts,
                scale: guidance as f32,
            },
            reuse: sampler.reuse,
        };
        let view = self.view(module, diffusion)?.load()?;
        let learned = Training {
            net: &net,
            sampler: &sampling,
            view: &view,
            options: &self.options,
            pool: cx.pool,
        }
        .run(cx)?;
        let mut made = apply(NAME, &net, sampler, &driver, &learned.table)?;
        made.report.fact(
            "consistency",
            format!(
                "{:.3e} from the full sampler's images ({})",
                learned.loss,
                view.name()
            ),
        );
        Ok(finish(module, made))
    }
}
