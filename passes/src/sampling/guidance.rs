//! What the network is fed for an image, once or with guidance twice, and what a sampler reads out
//! of its answer.

use dlc_eval::{Array, Values};
use dlc_ir::Diffusion;
use dlc_methods::diffusion::{OutputLayout, SamplingStep, normal_pair};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::error::PassError;
use crate::skip::{Inputs, is_guided};
use crate::sources::Prompt;

/// An image that is to be made: noise, the seed of the noise that the sampler draws later, the class
/// that the image is to be of, and which of the prompts it is conditioned on.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    pub noise: Vec<f32>,
    pub seed: u64,
    pub class: Option<i64>,
    pub prompt: Option<usize>,
}

/// A model's images: of what they are, and with what guidance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guidance<'a> {
    pub diffusion: &'a Diffusion,
    /// What images may be conditioned on beside a class; none for models that take nothing else.
    pub prompts: &'a [Prompt],
    pub scale: f32,
}

/// What the network is fed at one step.
#[derive(Debug, Clone)]
pub(crate) struct Feed<'a> {
    /// `[rows, channels, height, width]`.
    pub latents: Array,
    pub timestep: f64,
    pub labels: Vec<i64>,
    /// What the image is conditioned on beside its class.
    pub conditioning: Option<&'a Prompt>,
}

impl<'a> Guidance<'a> {
    /// An image at random; `draws` says whether its sampler draws noise at every step.
    pub fn draw(&self, rng: &mut ChaCha8Rng, draws: bool) -> Start {
        let diffusion = self.diffusion;
        let class = diffusion
            .classes
            .map(|c| rng.random_range(0..c.count.max(1)) as i64);
        let prompts = self.prompts.len();
        let prompt = (prompts > 0).then(|| rng.random_range(0..prompts));
        Start {
            noise: (0..diffusion.numbers())
                .map(|_| normal_pair(rng)[0])
                .collect(),
            seed: if draws { rng.random() } else { 0 },
            class,
            prompt,
        }
    }

    fn is_on(&self) -> bool {
        self.diffusion.can_be_guided() && is_guided(f64::from(self.scale))
    }

    fn labels(&self, start: &Start) -> Vec<i64> {
        let none = self.diffusion.classes.and_then(|c| c.unconditional);
        match (start.class, none.map(|id| id as i64)) {
            (Some(class), Some(none)) if self.is_on() => vec![class, none],
            (Some(class), _) => vec![class],
            (None, _) => vec![],
        }
    }

    /// What the network is fed at a step: the latents once for each label.
    pub fn feed(
        &self,
        start: &Start,
        step: &SamplingStep,
        latents: &[f32],
    ) -> Result<Feed<'a>, PassError> {
        let rows = if self.is_on() { 2 } else { 1 };
        let scaled = latents.iter().map(|x| x * step.input_scale as f32);
        let data: Vec<f32> = std::iter::repeat_n(scaled, rows).flatten().collect();
        let Diffusion {
            channels,
            height,
            width,
            ..
        } = *self.diffusion;
        Ok(Feed {
            latents: Array::f32([rows, channels, height, width], data)?,
            timestep: step.timestep,
            labels: self.labels(start),
            conditioning: start.prompt.and_then(|at| self.prompts.get(at)),
        })
    }

    /// The network's answer for the image, guided and without a learned variance.
    pub fn guided(&self, output: &Array) -> Result<Vec<f32>, PassError> {
        let mut rows = output.as_f32().unwrap_or_default().to_vec();
        let layout = OutputLayout {
            channels: self.diffusion.out_channels,
            latent_channels: self.diffusion.channels,
            plane: self.diffusion.height * self.diffusion.width,
        };
        if self.is_on() {
            let unconditional = rows.split_off(rows.len() / 2);
            layout.guide(&mut rows, &unconditional, self.scale)?;
        }
        Ok(layout.without_variance(&mut rows)?.to_vec())
    }

    /// The transpose of [`guided`](Self::guided).
    pub fn spread(&self, adjoint: &[f32]) -> Result<Array, PassError> {
        let Diffusion {
            out_channels,
            height,
            width,
            ..
        } = *self.diffusion;
        let factors = if self.is_on() {
            vec![self.scale, 1.0 - self.scale]
        } else {
            vec![1.0]
        };
        let row = out_channels * height * width;
        let mut data = vec![0.0; row * factors.len()];
        for (out, factor) in data.chunks_mut(row.max(1)).zip(&factors) {
            out.iter_mut()
                .zip(adjoint)
                .for_each(|(o, a)| *o = factor * a);
        }
        Ok(Array::f32(
            [factors.len(), out_channels, height, width],
            data,
        )?)
    }
}

impl Feed<'_> {
    /// The values of the network's inputs.
    pub fn values(&self, inputs: &Inputs) -> Result<Values, PassError> {
        let rows = self.latents.shape()[0];
        let mut values = Values::new();
        values.insert(inputs.image, self.latents.clone());
        values.insert(
            inputs.timestep,
            Array::f32([rows], vec![self.timestep as f32; rows])?,
        );
        if let Some(labels) = inputs.labels {
            values.insert(labels, Array::i64([rows], self.labels.clone())?);
        }
        for (name, value) in &inputs.conditioning {
            let array = self
                .conditioning
                .and_then(|conditioning| conditioning.get(name));
            let array = array.ok_or_else(|| PassError::Calibration {
                problem: format!(
                    "a prompt has no `{name}`, which the model takes; give it with the others"
                ),
            })?;
            values.insert(*value, array.clone());
        }
        Ok(values)
    }
}
