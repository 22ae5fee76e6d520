//! The network as the scheduler and the solver evaluate it, and the scheduler's runs.

use dlc_eval::{Segment, Wanted};
use dlc_ir::ValueId;
use dlc_methods::diffusion::{SamplerState, SamplingStep};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::NAME;
use crate::context::PassContext;
use crate::error::PassError;
use crate::sampling::{Guidance, Start, WayBack};
use crate::skip::{Driver, Inputs};
use crate::sources::Prompt;

/// The guided network under its scheduler.
pub(super) struct Network<'a> {
    pub driver: &'a Driver<'a>,
    pub guidance: Guidance<'a>,
    segment: Segment<'a>,
    inputs: Inputs,
    output: ValueId,
}

/// A run of the scheduler: the latents before each of its steps and after the last one, and what
/// the network gave at each.
#[derive(Debug)]
pub(super) struct Run {
    pub start: Start,
    pub latents: Vec<Vec<f32>>,
    pub outputs: Vec<Vec<f32>>,
    clipped: Vec<Vec<bool>>,
}

impl Run {
    /// The sample.
    pub fn sample(&self) -> &[f32] {
        self.latents.last().map_or(&[], Vec::as_slice)
    }

    /// All numbers, and a byte for each number that says whether it was clipped.
    pub fn to_bytes(&self) -> Vec<u8> {
        let numbers = self.latents.iter().chain(&self.outputs).flatten();
        let numbers = numbers.flat_map(|x| x.to_le_bytes());
        let clipped = self.clipped.iter().flatten().map(|on| u8::from(*on));
        numbers.chain(clipped).collect()
    }

    /// The run that the bytes are of, if they are of one from `start`.
    pub fn from_bytes(start: &Start, steps: usize, bytes: &[u8]) -> Option<Self> {
        let n = start.noise.len().max(1);
        let (numbers, clipped) = bytes.split_at_checked((2 * steps + 1) * n * size_of::<f32>())?;
        let numbers: Vec<f32> = numbers
            .chunks_exact(size_of::<f32>())
            .map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]]))
            .collect();
        let mut rows = numbers.chunks(n).map(<[f32]>::to_vec);
        let sound = clipped.len() == steps * n && numbers.iter().all(|x| x.is_finite());
        sound.then(|| Self {
            start: start.clone(),
            latents: rows.by_ref().take(steps + 1).collect(),
            outputs: rows.collect(),
            clipped: clipped
                .chunks(n)
                .map(|row| row.iter().map(|on| *on != 0).collect())
                .collect(),
        })
    }
}

impl<'a> Network<'a> {
    /// The driver's target with its weights.
    pub fn load(driver: &'a Driver<'a>, prompts: &'a [Prompt]) -> Result<Self, PassError> {
        let graph = driver.target;
        let output = graph
            .outputs()
            .first()
            .ok_or_else(|| PassError::Unsupported {
                pass: NAME,
                problem: "the target has no output".into(),
            })?;
        let nodes = graph.nodes().map(|(id, _)| id).collect();
        Ok(Self {
            driver,
            guidance: Guidance {
                diffusion: driver.diffusion,
                prompts,
                scale: driver.guidance as f32,
            },
            segment: Segment::new(graph, driver.weights, nodes)?,
            inputs: Inputs::find(NAME, graph)?,
            output: output.value,
        })
    }

    /// The guided answer at a step of the scheduler.
    ///
    /// # Errors
    /// [`PassError::Interrupted`] if the user asked to stop, and what evaluating says.
    pub fn answer(
        &self,
        start: &Start,
        step: &SamplingStep,
        latents: &[f32],
        cx: &PassContext<'_>,
    ) -> Result<Vec<f32>, PassError> {
        if cx.progress.interrupted() {
            return Err(PassError::Interrupted);
        }
        let values = self
            .guidance
            .feed(start, step, latents)?
            .values(&self.inputs)?;
        let made = self.segment.forward(&values, &[self.output])?;
        let output = made.get(&self.output);
        let output = output.map_or(Ok(vec![]), |output| self.guidance.guided(output))?;
        if output.iter().all(|x| x.is_finite()) {
            return Ok(output);
        }
        let problem = format!(
            "the network's output at timestep {} isn't finite: some weight is NaN or infinite, or guidance={} is too strong",
            step.timestep, self.driver.guidance
        );
        Err(PassError::Options {
            pass: NAME,
            problem,
        })
    }

    /// The scheduler's run.
    pub fn run(&self, start: Start, cx: &PassContext<'_>) -> Result<Run, PassError> {
        let mut state = SamplerState::new(&self.driver.plan, &start.noise)?;
        let (mut latents, mut outputs, mut clipped) = (vec![], vec![], vec![]);
        while let Some(step) = state.step() {
            let output = self.answer(&start, step, state.latents(), cx)?;
            latents.push(state.latents().to_vec());
            clipped.push(state.clipped(&output)?);
            state.advance(&output, None)?;
            outputs.push(output);
        }
        latents.push(state.latents().to_vec());
        Ok(Run {
            start,
            latents,
            outputs,
            clipped,
        })
    }

    /// How much a disturbance of the latents before each step moves the sample, squared and in the
    /// mean over directions, by one way back from random signs; 1 for the sample itself.
    pub fn sensitivities(
        &self,
        run: &Run,
        rng: &mut ChaCha8Rng,
        cx: &PassContext<'_>,
    ) -> Result<Vec<f64>, PassError> {
        let plan = &self.driver.plan;
        let signs = run.sample().iter();
        let signs = signs.map(|_| if rng.random::<bool>() { 1.0 } else { -1.0 });
        let mut way_back = WayBack::new(plan, signs.collect());
        let wanted = Wanted {
            values: vec![self.inputs.image],
            weights: vec![],
        };
        let mut found = vec![1.0];
        for (i, step) in plan.steps.iter().enumerate().rev() {
            if cx.progress.interrupted() {
                return Err(PassError::Interrupted);
            }
            let output = way_back.output(i, &run.clipped[i]);
            let seed = (self.output, self.guidance.spread(&output)?);
            let feed = self.guidance.feed(&run.start, step, &run.latents[i])?;
            let known = feed.values(&self.inputs)?;
            let gradients = self.segment.vjp(&known, &[seed], &wanted)?;
            let Some(rows) = gradients.values.get(&self.inputs.image) else {
                let problem = "the target doesn't depend on its image".into();
                return Err(PassError::Unsupported {
                    pass: NAME,
                    problem,
                });
            };
            let gradient = way_back.input(i, rows);
            let squares: f64 = gradient.iter().map(|g| f64::from(*g).powi(2)).sum();
            found.push(squares / gradient.len().max(1) as f64);
        }
        found.reverse();
        Ok(found)
    }
}

#[cfg(test)]
impl Run {
    /// A run that no network made.
    pub fn made_up(latents: Vec<Vec<f32>>, outputs: Vec<Vec<f32>>) -> Self {
        Self {
            start: Start {
                noise: vec![],
                seed: 0,
                class: None,
                prompt: None,
            },
            clipped: vec![],
            latents,
            outputs,
        }
    }
}
