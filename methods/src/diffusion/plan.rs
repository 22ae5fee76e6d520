//! A diffusion model's sampler as a table: what a scheduler does between two evaluations of the
//! network.
//!
//! Schedulers are linear in the latents, in the network's outputs and in the noise that some draw,
//! with coefficients that depend on the number of steps alone. Compiled to numbers, a sampler needs no
//! code of its own: a runtime runs the table, an exporter unrolls it into `mul`, `add` and `clip`,
//! a pass backpropagates through it. Nothing here knows how the numbers are found.

use dlc_errors::{Fault, Faulty};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A sampling plan that can't run.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("sampling step {step}: {problem}")]
pub struct PlanError {
    /// The step, from 0.
    pub step: usize,
    /// What is wrong with it.
    pub problem: String,
}

impl Faulty for PlanError {
    fn fault(&self) -> Fault {
        Fault::BadInput
    }
}

/// A whole run of a sampler: one step for each evaluation of the network.
///
/// With `x_0` the initial noise of unit variance times `initial_scale`, and an image times
/// `image_scale`, evaluation `i` of the network gives `out_i = network(input_scale_i * x_i, timestep_i)`; [`SamplingStep`] says how
/// `x_{i+1}` follows. The last one is the sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplingPlan {
    /// What the image that a run begins from is multiplied by; 0 for runs that begin from noise.
    #[serde(default)]
    pub image_scale: f64,
    /// What the initial noise is multiplied by: diffusers' `init_noise_sigma`, or for runs of an
    /// image the level of noise that is due.
    pub initial_scale: f64,
    /// The steps, in the order in which they are taken.
    pub steps: Vec<SamplingStep>,
}

/// One evaluation of the network, and the latents that follow:
///
/// ```text
/// x_{i+1} = sum_k latents[k] * x_{i-k}  +  sum_j estimates[j] * d_{i-j}  +  output * out_i  +  noise * z_i
/// ```
///
/// where `d_i` is what [`Estimate`] makes of `x_i` and `out_i`, and `z_i` is new noise of unit
/// variance. Terms with a coefficient of 0 count
/// as absent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplingStep {
    /// What the network takes; a fraction for schedulers that interpolate between the timesteps
    /// of the training.
    pub timestep: f64,
    /// What the latents are multiplied by before the network sees them: diffusers'
    /// `scale_model_input`.
    pub input_scale: f64,
    /// What the sampler reads out of the network's answer.
    pub estimate: Estimate,
    /// Coefficients of the latents, the current ones first.
    pub latents: Vec<f64>,
    /// Coefficients of the estimates, the current one first.
    pub estimates: Vec<f64>,
    /// Coefficient of the network's output as it is. Samplers that clip their estimate, but not the
    /// noise beside it, need it.
    pub output: f64,
    /// Coefficient of the noise that the step draws; 0 where it draws none.
    #[serde(default)]
    pub noise: f64,
}

/// The quantity that a sampler combines over steps, `d = clip(latents * x + output * out)`: a
/// denoised sample, noise, or a derivative.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Coefficient of the latents `x`, as they are before `input_scale`.
    pub latents: f64,
    /// Coefficient of the network's output.
    pub output: f64,
    /// Clips the estimate to `[-clip, clip]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
}

impl Estimate {
    /// The network's output as it is.
    pub const OUTPUT: Self = Self {
        latents: 0.0,
        output: 1.0,
        clip: None,
    };
}

impl SamplingPlan {
    /// How many latents a step looks at, the current ones included: at least 1.
    pub fn latent_history(&self) -> usize {
        self.steps
            .iter()
            .map(|step| reach(&step.latents))
            .max()
            .unwrap_or(0)
            .max(1)
    }

    /// How many estimates a step looks at, the current one included; 0 if the outputs alone do.
    pub fn estimate_history(&self) -> usize {
        self.steps
            .iter()
            .map(|step| reach(&step.estimates))
            .max()
            .unwrap_or(0)
    }

    /// Whether a step draws noise.
    pub fn draws_noise(&self) -> bool {
        self.steps.iter().any(SamplingStep::draws_noise)
    }

    /// Whether the estimate of this step counts, in it or in a later one that looks back.
    pub fn reads_estimate(&self, step: usize) -> bool {
        let later = self.steps.iter().skip(step).enumerate();
        later
            .filter_map(|(ago, step)| step.estimates.get(ago))
            .any(|coefficient| *coefficient != 0.0)
    }

    /// A multistep solver in the scheduler's place: for each evaluation of the network the step of
    /// this plan at which it is made, the coefficient of the latents, and those of the outputs so
    /// far, the last one first. It begins from the same noise, and what follows the last evaluation is
    /// the sample.
    ///
    /// # Errors
    /// [`PlanError`] for a solver that doesn't begin with the first step, goes back, or
    /// [can't run](Self::check).
    pub fn with_solver<'s>(
        &self,
        evaluations: impl IntoIterator<Item = (usize, f64, &'s [f64])>,
    ) -> Result<Self, PlanError> {
        let fail = |step: usize, problem: String| Err(PlanError { step, problem });
        let mut solver = Self {
            steps: vec![],
            ..self.clone()
        };
        let mut due = 0;
        for (number, (at, latents, outputs)) in evaluations.into_iter().enumerate() {
            if at < due || (number == 0 && at > 0) {
                let order = if number == 0 {
                    "a solver begins with step 0"
                } else {
                    "a solver's steps rise"
                };
                return fail(number, format!("it is at step {at}: {order}"));
            }
            let Some(step) = self.steps.get(at) else {
                let last = self.steps.len().saturating_sub(1);
                return fail(
                    number,
                    format!("it is at step {at} of a sampler whose last is {last}"),
                );
            };
            solver.steps.push(SamplingStep {
                timestep: step.timestep,
                input_scale: step.input_scale,
                estimate: Estimate::OUTPUT,
                latents: vec![latents],
                estimates: outputs.to_vec(),
                output: 0.0,
                noise: 0.0,
            });
            due = at + 1;
        }
        solver.check()?;
        Ok(solver)
    }

    /// Refuses a plan without steps, one whose numbers aren't finite in single precision, and steps
    /// that look back beyond the first.
    ///
    /// Plans that come from a file must pass before anything runs them.
    ///
    /// # Errors
    /// [`PlanError`] for the first of these, with its step.
    pub fn check(&self) -> Result<(), PlanError> {
        let fail = |step: usize, problem: &str| {
            Err(PlanError {
                step,
                problem: problem.to_owned(),
            })
        };
        if self.steps.is_empty() {
            return fail(0, "the plan has no steps");
        }
        if !is_single(self.initial_scale) || !is_single(self.image_scale) {
            return fail(0, "the initial scale isn't finite");
        }
        for (index, step) in self.steps.iter().enumerate() {
            if !step.numbers().all(is_single) {
                return fail(index, "a coefficient isn't finite");
            }
            if reach(&step.latents).max(reach(&step.estimates)) > index + 1 {
                return fail(index, "it looks back beyond the first step");
            }
            if step.estimate.clip.is_some_and(|clip| clip < 0.0) {
                return fail(index, "it clips to an empty range");
            }
        }
        Ok(())
    }
}

impl SamplingStep {
    /// Whether the step draws noise.
    pub fn draws_noise(&self) -> bool {
        self.noise != 0.0
    }

    /// Every number of the step.
    fn numbers(&self) -> impl Iterator<Item = f64> {
        let own = [
            self.timestep,
            self.input_scale,
            self.output,
            self.noise,
            self.estimate.latents,
            self.estimate.output,
        ];
        own.into_iter()
            .chain(self.estimate.clip)
            .chain(self.latents.iter().copied())
            .chain(self.estimates.iter().copied())
    }
}

/// Entries up to the last one that isn't 0.
fn reach(coefficients: &[f64]) -> usize {
    coefficients
        .iter()
        .rposition(|c| *c != 0.0)
        .map_or(0, |last| last + 1)
}

fn is_single(x: f64) -> bool {
    (x as f32).is_finite()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(latents: &[f64], estimates: &[f64]) -> SamplingStep {
        let estimate = Estimate::OUTPUT;
        SamplingStep {
            timestep: 1.0,
            input_scale: 1.0,
            estimate,
            latents: latents.to_vec(),
            estimates: estimates.to_vec(),
            output: 0.0,
            noise: 0.0,
        }
    }

    fn plan(steps: Vec<SamplingStep>) -> SamplingPlan {
        SamplingPlan {
            image_scale: 0.0,
            initial_scale: 1.0,
            steps,
        }
    }

    #[test]
    fn histories_end_at_the_last_coefficient_that_counts() {
        let plan = plan(vec![
            step(&[1.0], &[1.0, 0.0]),
            step(&[0.0, 1.0, 0.0], &[0.5, 0.5]),
        ]);
        assert_eq!((plan.latent_history(), plan.estimate_history()), (2, 2));
        assert_eq!(plan.check(), Ok(()));
    }

    #[test]
    fn latents_are_kept_even_where_no_step_looks_at_them() {
        assert_eq!(plan(vec![step(&[], &[1.0])]).latent_history(), 1);
    }

    #[test]
    fn a_solver_evaluates_at_steps_of_the_scheduler() {
        let timed = |(i, timestep)| SamplingStep {
            timestep,
            input_scale: 1.0 + f64::from(i),
            ..step(&[1.0], &[0.5])
        };
        let scheduler = plan((0..).zip([9.0, 6.0, 3.0]).map(timed).collect());
        let outputs = [&[0.25][..], &[-0.5, 0.125]];
        let given = [(0, 0.75, outputs[0]), (2, 0.5, outputs[1])];
        let solver = scheduler.with_solver(given).unwrap();
        let read = solver
            .steps
            .iter()
            .map(|step| (step.timestep, step.input_scale));
        assert_eq!(read.collect::<Vec<_>>(), [(9.0, 1.0), (3.0, 3.0)]);
        assert_eq!(solver.steps[1].latents, [0.5]);
        assert_eq!(solver.steps[1].estimates, outputs[1]);
        let one = [0.5];
        for (steps, step, part) in [
            (&[][..], 0, "no steps"),
            (&[1], 0, "begins with step 0"),
            (&[0, 0], 1, "steps rise"),
            (&[0, 3], 1, "whose last is 2"),
        ] {
            let given = steps.iter().map(|&at| (at, 1.0, &one[..]));
            let error = scheduler.with_solver(given).unwrap_err();
            assert!(
                error.step == step && error.problem.contains(part),
                "{error}"
            );
        }
    }

    #[test]
    fn plans_that_cannot_run_are_refused_with_the_step() {
        let clipped = Estimate {
            clip: Some(-1.0),
            ..Estimate::OUTPUT
        };
        let cases = [
            (plan(vec![]), 0, "no steps"),
            (
                SamplingPlan {
                    initial_scale: f64::INFINITY,
                    ..plan(vec![step(&[1.0], &[])])
                },
                0,
                "initial scale",
            ),
            (
                plan(vec![step(&[1.0], &[]), step(&[1e39], &[])]),
                1,
                "finite",
            ),
            (plan(vec![step(&[1.0], &[0.5, 0.5])]), 0, "looks back"),
            (
                plan(vec![SamplingStep {
                    estimate: clipped,
                    ..step(&[1.0], &[])
                }]),
                0,
                "empty range",
            ),
        ];
        for (plan, expected, part) in cases {
            let Err(PlanError { step, problem }) = plan.check() else {
                panic!("{part}: was accepted")
            };
            assert!(
                step == expected && problem.contains(part),
                "step {step}: {problem}"
            );
        }
    }
}
