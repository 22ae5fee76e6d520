//! Runs a [`SamplingPlan`] on latents in memory, a step at a time, around whatever evaluates the
//! network.

use super::arithmetic::{Numbers, add};
use super::noise::step_noise;
use crate::diffusion::{SamplingPlan, SamplingStep, Trajectory};
use crate::{MethodError, Result};

/// A run of a sampler: the latents, and as much of their history as the plan looks at.
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
///     let output = network(&input, timestep);
///     let noise = state.fresh_noise(&[7]);
///     state.advance(&output, noise.as_deref())?;
/// }
/// # assert!(state.latents().iter().all(|x| x.abs() <= 1.0));
/// # Ok::<(), dlc_methods::MethodError>(())
/// ```
#[derive(Debug, Clone)]
pub struct SamplerState<'a> {
    trajectory: Trajectory<'a, Vec<f32>>,
    numbers: Numbers,
}

impl<'a> SamplerState<'a> {
    /// Starts from `noise` of unit variance.
    ///
    /// # Errors
    /// [`MethodError::Input`] for a plan that [can't run](SamplingPlan::check), or that begins from
    /// an image.
    pub fn new(plan: &'a SamplingPlan, noise: &[f32]) -> Result<Self> {
        if plan.image_scale != 0.0 {
            let problem = "the sampler begins from an image, and got none";
            return Err(MethodError::Input(problem.to_owned()));
        }
        Self::start(plan, noise, None)
    }

    /// Starts from `noise` of unit variance and an image, both as many numbers.
    ///
    /// # Errors
    /// [`MethodError::Input`] for a plan that [can't run](SamplingPlan::check), and an image of
    /// another length than the noise.
    pub fn of_image(plan: &'a SamplingPlan, noise: &[f32], image: &[f32]) -> Result<Self> {
        if image.len() != noise.len() {
            return Err(MethodError::Input(format!(
                "the image has {} numbers, and the noise {}",
                image.len(),
                noise.len()
            )));
        }
        Self::start(plan, noise, Some(image))
    }

    fn start(plan: &'a SamplingPlan, noise: &[f32], image: Option<&[f32]>) -> Result<Self> {
        plan.check()
            .map_err(|error| MethodError::Input(error.to_string()))?;
        let mut numbers = Numbers(noise.len());
        let trajectory = Trajectory::start(plan, &mut numbers, noise, image)?;
        Ok(Self {
            trajectory,
            numbers,
        })
    }

    /// The step that is due, or nothing after the last.
    pub fn step(&self) -> Option<&'a SamplingStep> {
        self.trajectory.step()
    }

    /// How many steps were taken.
    pub fn taken(&self) -> usize {
        self.trajectory.taken()
    }

    /// The current latents: after the last step the sample.
    pub fn latents(&self) -> &[f32] {
        self.trajectory.latents().map_or(&[], Vec::as_slice)
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

    /// The noise that the step that is due draws, if it draws any: of each seed for its part of
    /// the latents, which are as many images of equal size as there are seeds.
    pub fn fresh_noise(&self, seeds: &[u64]) -> Option<Vec<f32>> {
        self.step().filter(|step| step.draws_noise())?;
        let image = self.latents().len() / seeds.len().max(1);
        let of_seed = |seed: &u64| step_noise(*seed, self.taken(), image);
        Some(seeds.iter().flat_map(of_seed).collect())
    }

    /// Takes the step that is due, with what the network returned for
    /// [`model_input`](Self::model_input), and new noise of unit variance where the step
    /// [draws](SamplingStep::draws_noise) some: each as many numbers as latents, so the output
    /// without a learned variance.
    ///
    /// # Errors
    /// [`MethodError::Input`] for an output or noise of another length than the latents;
    /// [`MethodError::Bug`] after the last step, and where there should be noise.
    pub fn advance(&mut self, output: &[f32], noise: Option<&[f32]>) -> Result<()> {
        let Some(step) = self.step() else {
            return Err(MethodError::Bug(format!(
                "a sampler was advanced after the last of its {} steps",
                self.taken()
            )));
        };
        self.check_length("the network's output", output.len())?;
        match noise {
            Some(noise) => self.check_length("the noise of the step", noise.len())?,
            None if step.draws_noise() => {
                let problem = format!(
                    "step {} of the sampler draws noise, and got none",
                    self.taken()
                );
                return Err(MethodError::Bug(problem));
            }
            None => {}
        }
        self.trajectory
            .advance(&mut self.numbers, step, output, noise)
    }

    /// Which entries of the estimate for `output` the step that is due clips.
    ///
    /// # Errors
    /// [`MethodError::Input`] for an output of another length than the latents.
    pub fn clipped(&self, output: &[f32]) -> Result<Vec<bool>> {
        let Some(step) = self.step() else {
            return Ok(vec![]);
        };
        self.check_length("the network's output", output.len())?;
        let clip = step.estimate.clip.map_or(f32::INFINITY, |clip| clip as f32);
        let mut numbers = self.numbers;
        let estimate = self.trajectory.unclipped(&mut numbers, step, output)?;
        Ok(estimate.iter().map(|x| x.abs() > clip).collect())
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
