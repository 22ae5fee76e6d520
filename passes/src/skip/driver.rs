//! What drives the network that passes skip blocks of: a scheduler, or a solver that an earlier pass
//! fitted in its place.

use dlc_ir::{Diffusion, Graph, Module, Sampling, SolverStep, WeightTable};
use dlc_methods::diffusion::SamplingPlan;

use super::net::SkipNet;
use super::options::SamplerOptions;
use crate::error::PassError;
use crate::sources::Sources;

/// A sampler, the model that it drives, and the strength of guidance.
#[derive(Debug)]
pub(crate) struct Driver<'m> {
    pub scheduler: String,
    pub plan: SamplingPlan,
    /// What stands in the scheduler's place in the plan, if anything does.
    pub solver: Vec<SolverStep>,
    /// Evaluations of the scheduler's steps.
    pub whole: usize,
    pub target: &'m Graph,
    pub weights: &'m WeightTable,
    pub diffusion: &'m Diffusion,
    pub guidance: f64,
}

impl<'m> Driver<'m> {
    /// The sampler that `options` ask for; that of an earlier pass where one fitted a solver.
    ///
    /// # Errors
    /// [`PassError::Unsupported`] for a module that is no diffusion model or has a schedule
    /// already, [`PassError::Options`] for options that the solver wasn't fitted for, and those of
    /// [`Samplers::plan`](crate::Samplers::plan).
    pub fn new(
        pass: &'static str,
        module: &'m Module,
        options: &SamplerOptions,
        sources: &Sources<'_>,
    ) -> Result<Self, PassError> {
        let samplers = sources.samplers(pass)?;
        let fitted = module.sampling.as_ref().filter(|made| is_solver(made));
        let asked = options.scheduler.as_deref();
        let asked = asked.or(fitted.map(|made| made.scheduler.as_str()));
        let (scheduler, mut plan) = samplers.plan(asked, options.steps)?;
        let (target, weights, diffusion) = denoiser(pass, module)?;
        let guidance = match (options.guidance, fitted) {
            (None, Some(made)) => made.guidance,
            _ => options.guidance_for(pass, diffusion)?,
        };
        let whole = plan.steps.len();
        let mut solver = vec![];
        if let Some(made) = fitted {
            let for_it = (made.scheduler.as_str(), made.steps, made.guidance.to_bits());
            if for_it != (scheduler.as_str(), options.steps, guidance.to_bits()) {
                let problem = format!(
                    "the solver is fitted for {} steps of {} with guidance {}, and this pass for {} of {scheduler} with {guidance}; ask for the same in both",
                    made.steps, made.scheduler, made.guidance, options.steps
                );
                return Err(PassError::Options { pass, problem });
            }
            solver.clone_from(&made.solver);
            plan = solved(pass, &plan, &solver)?;
        }
        Ok(Self {
            scheduler,
            plan,
            solver,
            whole,
            target,
            weights,
            diffusion,
            guidance,
        })
    }

    /// The network with what may be skipped of it.
    ///
    /// # Errors
    /// [`PassError::Unsupported`] for a target without blocks.
    pub fn net(
        &self,
        pass: &'static str,
        options: &SamplerOptions,
    ) -> Result<SkipNet<'m>, PassError> {
        let granularity = options.granularity.0;
        SkipNet::new(pass, self.target, self.weights, self.diffusion, granularity)
    }
}

/// The plan of a solver in the place of a scheduler's.
pub(crate) fn solved(
    pass: &'static str,
    plan: &SamplingPlan,
    solver: &[SolverStep],
) -> Result<SamplingPlan, PassError> {
    plan.with_solver(solver.iter().map(SolverStep::parts))
        .map_err(|error| PassError::Options {
            pass,
            problem: format!("the solver: {error}"),
        })
}

/// Whether nothing but a solver was made yet.
fn is_solver(sampling: &Sampling) -> bool {
    sampling.unrolled.is_none()
        && !sampling.solver.is_empty()
        && sampling.evaluations.iter().all(|e| e.graph == TARGET)
}

const TARGET: &str = "target";

/// The graph that predicts noise, its weights, and what it makes images of.
///
/// # Errors
/// [`PassError::Unsupported`] for a module that is no diffusion model, or has a schedule already.
fn denoiser<'m>(
    pass: &'static str,
    module: &'m Module,
) -> Result<(&'m Graph, &'m WeightTable, &'m Diffusion), PassError> {
    let unsupported = |problem: &str| PassError::Unsupported {
        pass,
        problem: problem.into(),
    };
    let Some(diffusion) = &module.model.diffusion else {
        return Err(unsupported(
            "the model is no diffusion model, so it has no steps to skip blocks at",
        ));
    };
    let made = module.sampling.as_ref();
    if made.is_some_and(|made| !is_solver(made)) {
        return Err(unsupported(
            "the module has a schedule already; ask for one pass that makes one",
        ));
    }
    let target = module
        .graph(TARGET)
        .ok_or_else(|| unsupported("the module has no graph `target`"))?;
    Ok((target, &module.weights, diffusion))
}
