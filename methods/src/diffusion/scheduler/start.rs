//! Where a run begins: at its first step, from noise, or later, from an image with as much noise as is
//! due there (Meng et al., *Guided Image Synthesis and Editing with Stochastic
//! Differential Equations*, section 3).

use crate::diffusion::{SamplingPlan, SamplingStep};

/// A run of a sampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Steps of the whole run.
    pub(super) steps: usize,
    /// The step that a run of an image begins with; none for runs that begin from noise.
    pub(super) from: Option<usize>,
}

/// What latents are made of at a level of noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Mix {
    /// Coefficient of the image.
    pub(super) image: f64,
    /// Coefficient of noise of unit variance.
    pub(super) noise: f64,
}

impl Run {
    /// The same, where each step evaluates the network so many times.
    pub(super) fn of_evaluations(self, each: usize) -> Self {
        Self {
            from: self.from.map(|step| step * each),
            ..self
        }
    }

    /// How many steps were taken in this run before the one with this number.
    pub(super) fn taken(self, index: usize) -> usize {
        index.saturating_sub(self.from.unwrap_or(0))
    }

    /// The first step of a run of so many.
    pub(super) fn first(self, steps: usize) -> usize {
        self.from.unwrap_or(0).min(steps)
    }

    /// The plan with these rows, of which those before the first are left out. `initial_scale` is
    /// that of runs from noise, `mix` what latents are at a row.
    pub(super) fn plan(
        self,
        initial_scale: f64,
        mut rows: Vec<SamplingStep>,
        mix: impl FnOnce(usize) -> Mix,
    ) -> SamplingPlan {
        let rest = rows.split_off(self.first(rows.len()));
        self.plan_of_rest(initial_scale, rest, mix)
    }

    /// The same with the rows from the first on.
    pub(super) fn plan_of_rest(
        self,
        initial_scale: f64,
        steps: Vec<SamplingStep>,
        mix: impl FnOnce(usize) -> Mix,
    ) -> SamplingPlan {
        let (image_scale, initial_scale) = match self.from {
            Some(first) if !steps.is_empty() => {
                let Mix { image, noise } = mix(first);
                (image, noise)
            }
            _ => (0.0, initial_scale),
        };
        SamplingPlan {
            image_scale,
            initial_scale,
            steps,
        }
    }
}
