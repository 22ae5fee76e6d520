//! Runs a [`SamplingPlan`] on latents in memory, a step at a time, around whatever evaluates the
//! network.

use crate::diffusion::{SamplingPlan, SamplingStep};
use crate::{MethodError, Result};

/// A run of a sampler: the latents, and as much of their history as the plan looks at. Allocates
/// nothing after it was made.
///
/// ```
/// # use dlc_methods::diffusion::{SamplerState, parse_scheduler_config, sampling_plan};
/// # let config = parse_scheduler_config(r#"{"_class_name": "DDIMScheduler"}"#)?;
/// # let network = |x: &[f32], _timestep: f64| x.to_vec();
/// # let noise = [0.5, -1.0];
/// let plan = sampling_plan(&config, None, 10)?;
/// let mut state = SamplerState::new(&plan, &noise)?;
/// let mut input = vec![0.0; noise.len()];
/// while let Some(timestep) = state.model_input(&mut input)? {
///     state.advance(&network(&input, timestep))?;
/// }
/// # assert!(state.latents().iter().all(|x| x.abs() <= 1.0));
/// # Ok::<(), dlc_methods::MethodError>(())
/// ```
#[derive(Debug, Clone)]
pub struct SamplerState<'a> {
    plan: &'a SamplingPlan,
    taken: usize,
    /// The latents, the current ones first; one more than the plan looks at, to compute the next
    /// into.
    latents: Vec<Vec<f32>>,
    /// The estimates, the last one first.
    estimates: Vec<Vec<f32>>,
}

impl<'a> SamplerState<'a> {
    /// Starts from `noise` of unit variance.
    ///
    /// # Errors
    /// [`MethodError::Input`] for a plan that [can't run](SamplingPlan::check).
    pub fn new(plan: &'a SamplingPlan, noise: &[f32]) -> Result<Self> {
        plan.check()
            .map_err(|error| MethodError::Input(error.to_string()))?;
        let mut latents = vec![vec![0.0; noise.len()]; plan.latent_history() + 1];
        if let Some(first) = latents.first_mut() {
            add(first, plan.initial_scale, noise);
        }
        Ok(Self {
            plan,
            taken: 0,
            latents,
            estimates: vec![vec![0.0; noise.len()]; plan.estimate_history()],
        })
    }

    /// The step that is due, or nothing after the last.
    pub fn step(&self) -> Option<&'a SamplingStep> {
        self.plan.steps.get(self.taken)
    }

    /// How many steps were taken.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// The current latents: after the last step the sample.
    pub fn latents(&self) -> &[f32] {
        self.latents.first().map_or(&[], Vec::as_slice)
    }

    /// Fills `input` with what the network is given at the step that is due, and returns what it is
    /// given: the timestep. Nothing after the last step.
    ///
    /// # Errors
    /// [`MethodError::Input`] for an input of another length than the latents.
    pub fn model_input(&self, input: &mut [f32]) -> Result<Option<f64>> {
        let Some(step) = self.step() else {
            return Ok(None);
        };
        self.check_length("the network's input", input.len())?;
        input.fill(0.0);
        add(input, step.input_scale, self.latents());
        Ok(Some(step.timestep))
    }

    /// Takes the step that is due, with what the network returned for
    /// [`model_input`](Self::model_input): as many numbers as latents, so without a learned
    /// variance.
    ///
    /// # Errors
    /// [`MethodError::Input`] for an output of another length than the latents;
    /// [`MethodError::Bug`] after the last step.
    pub fn advance(&mut self, output: &[f32]) -> Result<()> {
        let Some(step) = self.step() else {
            return Err(MethodError::Bug(format!(
                "a sampler of {} steps was advanced after the last",
                self.plan.steps.len()
            )));
        };
        self.check_length("the network's output", output.len())?;
        self.estimate(step, output);
        self.latents.rotate_right(1);
        let Some((next, before)) = self.latents.split_first_mut() else {
            return Ok(());
        };
        next.fill(0.0);
        for (coefficient, latents) in step.latents.iter().zip(before.iter()) {
            add(next, *coefficient, latents);
        }
        for (coefficient, estimate) in step.estimates.iter().zip(&self.estimates) {
            add(next, *coefficient, estimate);
        }
        add(next, step.output, output);
        self.taken += 1;
        Ok(())
    }

    /// Puts this step's estimate in front of the earlier ones.
    /// Which entries of the estimate for `output` the step clips.
    pub fn clipped(&self, output: &[f32]) -> Vec<bool> {
        let Some(step) = self.step() else {
            return vec![];
        };
        let clip = step.estimate.clip.map_or(f32::INFINITY, |clip| clip as f32);
        let mut estimate = vec![0.0; output.len()];
        self.unclipped(step, output, &mut estimate);
        estimate.iter().map(|x| x.abs() > clip).collect()
    }

    fn unclipped(&self, step: &SamplingStep, output: &[f32], estimate: &mut [f32]) {
        estimate.fill(0.0);
        add(estimate, step.estimate.latents, self.latents());
        add(estimate, step.estimate.output, output);
    }

    fn estimate(&mut self, step: &SamplingStep, output: &[f32]) {
        // None is kept where no step of the plan looks at one.
        let Some(mut estimate) = self.estimates.pop() else {
            return;
        };
        self.unclipped(step, output, &mut estimate);
        if let Some(clip) = step.estimate.clip {
            let clip = clip as f32;
            for x in &mut estimate {
                *x = x.clamp(-clip, clip);
            }
        }
        self.estimates.insert(0, estimate);
    }

    fn check_length(&self, what: &str, length: usize) -> Result<()> {
        let expected = self.latents().len();
        if length == expected {
            return Ok(());
        }
        Err(MethodError::Input(format!(
            "{what} has {length} numbers, but there are {expected} latents"
        )))
    }
}

/// Adds `coefficient * term` to `sum`, unless the coefficient is 0.
fn add(sum: &mut [f32], coefficient: f64, term: &[f32]) {
    if coefficient != 0.0 {
        let coefficient = coefficient as f32;
        sum.iter_mut()
            .zip(term)
            .for_each(|(sum, x)| *sum += coefficient * x);
    }
}
