//! Sampling of diffusion models: schedulers, the state of a sampler, guidance, noise, and the names
//! of a denoiser's inputs.

mod arithmetic;
mod guidance;
pub mod inputs;
mod noise;
mod plan;
mod scheduler;
mod state;
mod trajectory;

pub use arithmetic::Arithmetic;
pub use guidance::{OutputLayout, guided};
pub use inputs::DenoiserInput;
pub use noise::{noise, normal_pair, step_noise};
pub use plan::{Estimate, PlanError, SamplingPlan, SamplingStep};
pub use scheduler::{
    SchedulerError, SchedulerKind, SchedulerProblem, image_sampling_plan, parse_scheduler_config,
    sampling_plan,
};
pub use state::SamplerState;
pub use trajectory::Trajectory;
