//! Sampling of diffusion models: schedulers, the state of a sampler, guidance and noise.

mod guidance;
mod noise;
mod plan;
mod scheduler;
mod state;

pub use guidance::OutputLayout;
pub use noise::{noise, normal_pair};
pub use plan::{Estimate, PlanError, SamplingPlan, SamplingStep};
pub use scheduler::{
    SchedulerError, SchedulerKind, SchedulerProblem, parse_scheduler_config, sampling_plan,
};
pub use state::SamplerState;
