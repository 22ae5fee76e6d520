//! A whole run of the sampler with gates, and the way back through it.
//!
//! Forward keeps the latents of every step and what was really computed; backward runs every
//! evaluation again, so that the activations of one step are in memory at a time. The sampler
//! itself is [`SamplerState`], a table of sums, and so is its transpose.

use std::sync::Arc;

use dlc_eval::{Array, Segment};
use dlc_ir::{Diffusion, Reuse};
use dlc_methods::diffusion::{OutputLayout, SamplerState, SamplingPlan};

use super::supernet::{Feed, NetOutput, SuperNet};
use crate::error::PassError;
use crate::skip::is_guided;
use crate::sources::Prompt;

/// What is sampled: the model, how, and with what guidance.
#[derive(Debug)]
pub(super) struct Sampler<'a> {
    pub net: &'a SuperNet,
    pub segment: &'a Segment<'a>,
    pub plan: &'a SamplingPlan,
    pub diffusion: &'a Diffusion,
    /// What images may be conditioned on beside a class; none for models that take nothing else.
    pub prompts: &'a [Prompt],
    pub reuse: Reuse,
    pub guidance: f32,
}

/// Noise, the seed of the noise that the sampler draws later, the class that the image is to be of, and which of the prompts it is conditioned on.
#[derive(Debug, Clone)]
pub(super) struct Start {
    pub noise: Vec<f32>,
    pub seed: u64,
    pub class: Option<i64>,
    pub prompt: Option<usize>,
}

/// A run of the sampler.
#[derive(Debug)]
pub(super) struct Rollout {
    /// The latents before each step, and after the last one.
    pub latents: Vec<Vec<f32>>,
    /// Which of the numbers that the sampler read out of each output were clipped, and so move no
    /// more.
    clipped: Vec<Vec<bool>>,
    /// What stood for each value at each step; equal arrays where it was reused.
    mixed: Vec<Vec<Arc<Array>>>,
    sources: Vec<Vec<Vec<(usize, f32)>>>,
}

impl Rollout {
    /// The sample.
    pub fn sample(&self) -> &[f32] {
        self.latents.last().map(Vec::as_slice).unwrap_or_default()
    }
}

impl Sampler<'_> {
    fn labels(&self, start: &Start) -> Vec<i64> {
        let none = self
            .diffusion
            .classes
            .and_then(|c| c.unconditional)
            .map(|id| id as i64);
        match (start.class, none) {
            (Some(class), Some(none)) if self.is_guided() => vec![class, none],
            (Some(class), _) => vec![class],
            (None, _) => vec![],
        }
    }

    fn is_guided(&self) -> bool {
        self.diffusion.can_be_guided() && is_guided(f64::from(self.guidance))
    }

    fn conditioning(&self, start: &Start) -> Option<&Prompt> {
        self.prompts.get(start.prompt?)
    }

    /// What the model is fed at step `i`: the image once for each label.
    fn feed<'f>(
        &'f self,
        i: usize,
        start: &Start,
        labels: &'f [i64],
        gates: &'f [f32],
        rollout: &Rollout,
    ) -> Result<Feed<'f>, PassError> {
        let rows = if self.is_guided() { 2 } else { 1 };
        let step = &self.plan.steps[i];
        let scaled = rollout.latents[i]
            .iter()
            .map(|x| x * step.input_scale as f32);
        let data: Vec<f32> = std::iter::repeat_n(scaled, rows).flatten().collect();
        let Diffusion {
            channels,
            height,
            width,
            ..
        } = *self.diffusion;
        let latents = Array::f32([rows, channels, height, width], data)?;
        Ok(Feed {
            latents,
            timestep: step.timestep,
            labels,
            conditioning: self.conditioning(start),
            gates,
            backups: rollout.backups(i)?,
        })
    }

    /// The model's answer for the image, guided and without a learned variance.
    fn guided(&self, output: &Array) -> Result<Vec<f32>, PassError> {
        let mut rows = output.as_f32().unwrap_or_default().to_vec();
        let layout = OutputLayout {
            channels: self.diffusion.out_channels,
            latent_channels: self.diffusion.channels,
            plane: self.diffusion.height * self.diffusion.width,
        };
        if self.is_guided() {
            let unconditional = rows.split_off(rows.len() / 2);
            layout.guide(&mut rows, &unconditional, self.guidance)?;
        }
        Ok(layout.without_variance(&mut rows)?.to_vec())
    }

    /// The transpose of [`guided`](Self::guided).
    fn spread(&self, adjoint: &[f32], shape: &[usize]) -> Result<Array, PassError> {
        let row = shape.iter().skip(1).product::<usize>();
        let factors = if self.is_guided() {
            vec![self.guidance, 1.0 - self.guidance]
        } else {
            vec![1.0]
        };
        let mut data = vec![0.0; row * factors.len()];
        for (out, factor) in data.chunks_mut(row.max(1)).zip(factors) {
            out.iter_mut()
                .zip(adjoint)
                .for_each(|(o, a)| *o = factor * a);
        }
        Ok(Array::f32(shape, data)?)
    }

    /// Runs the sampler; `gates[step][unit]` from 0 to 1, the first step of which is 1 everywhere.
    pub fn run(&self, start: &Start, gates: &[Vec<f32>]) -> Result<Rollout, PassError> {
        let labels = self.labels(start);
        let mut state = SamplerState::new(self.plan, &start.noise)?;
        let mut rollout = Rollout {
            latents: vec![state.latents().to_vec()],
            clipped: vec![],
            mixed: vec![],
            sources: sources(gates, self.net.unit_of(), self.reuse),
        };
        for (i, gates) in gates.iter().enumerate().take(self.plan.steps.len()) {
            let feed = self.feed(i, start, &labels, gates, &rollout)?;
            let NetOutput { output, mixed } = self.net.forward(self.segment, &feed)?;
            let output = self.guided(&output)?;
            rollout.clipped.push(state.clipped(&output)?);
            let noise = state.fresh_noise(&[start.seed]);
            state.advance(&output, noise.as_deref())?;
            rollout.latents.push(state.latents().to_vec());
            rollout.remember(mixed, gates, self.net.unit_of());
        }
        Ok(rollout)
    }

    /// The gradient of the gates, `[step][unit]`, where `adjoint` is that of the sample.
    pub fn back(
        &self,
        start: &Start,
        gates: &[Vec<f32>],
        rollout: &Rollout,
        adjoint: Vec<f32>,
    ) -> Result<Vec<Vec<f64>>, PassError> {
        let (labels, steps) = (self.labels(start), self.plan.steps.len());
        let n = adjoint.len();
        let mut latents: Vec<Vec<f32>> = vec![vec![0.0; n]; steps];
        latents.push(adjoint);
        let mut estimates: Vec<Vec<f32>> = vec![vec![0.0; n]; steps];
        let mut remembered: Vec<Vec<Option<Array>>> =
            vec![vec![None; self.net.unit_of().len()]; steps];
        let mut gradient = vec![Vec::new(); steps];
        for (i, step) in self.plan.steps.iter().enumerate().rev() {
            let next = std::mem::take(&mut latents[i + 1]);
            for (k, c) in step.latents.iter().enumerate() {
                accumulate(&mut latents[i - k], &next, *c as f32);
            }
            for (j, c) in step.estimates.iter().enumerate() {
                accumulate(&mut estimates[i - j], &next, *c as f32);
            }
            let mut through = std::mem::take(&mut estimates[i]);
            through
                .iter_mut()
                .zip(&rollout.clipped[i])
                .filter(|(_, clipped)| **clipped)
                .for_each(|(a, _)| *a = 0.0);
            accumulate(&mut latents[i], &through, step.estimate.latents as f32);
            let mut output: Vec<f32> = through
                .iter()
                .map(|a| a * step.estimate.output as f32)
                .collect();
            accumulate(&mut output, &next, step.output as f32);

            let feed = self.feed(i, start, &labels, &gates[i], rollout)?;
            let shape = [
                feed.latents.shape()[0],
                self.diffusion.out_channels,
                self.diffusion.height,
                self.diffusion.width,
            ];
            let seeds = std::mem::take(&mut remembered[i])
                .into_iter()
                .enumerate()
                .filter_map(|(v, seed)| Some((v, seed?)))
                .collect();
            let adjoints =
                self.net
                    .backward(self.segment, &feed, self.spread(&output, &shape)?, seeds)?;
            for row in adjoints
                .latents
                .as_f32()
                .unwrap_or_default()
                .chunks(n.max(1))
            {
                accumulate(&mut latents[i], row, step.input_scale as f32);
            }
            for (value, (backup, sources)) in
                adjoints.backups.iter().zip(&rollout.sources[i]).enumerate()
            {
                for &(event, weight) in sources {
                    add(&mut remembered[event][value], backup, weight)?;
                }
            }
            gradient[i] = adjoints.gates;
        }
        Ok(gradient)
    }
}

impl Rollout {
    /// What stands in for each value at a step; nothing at the first.
    fn backups(&self, step: usize) -> Result<Vec<Option<Array>>, PassError> {
        let backup = |(value, sources): (usize, &Vec<(usize, f32)>)| match sources[..] {
            [] => Ok(None),
            [(event, _)] => Ok(Some((*self.mixed[event][value]).clone())),
            _ => {
                let mut sum = None;
                sources.iter().try_for_each(|&(event, weight)| {
                    add(&mut sum, &self.mixed[event][value], weight)
                })?;
                Ok(sum)
            }
        };
        self.sources[step].iter().enumerate().map(backup).collect()
    }

    /// Keeps what was computed; what was reused is the same array again.
    fn remember(&mut self, mixed: Vec<Array>, gates: &[f32], unit_of: &[usize]) {
        let last = self.mixed.last();
        let kept = mixed
            .into_iter()
            .enumerate()
            .map(|(value, array)| match last {
                Some(last) if gates[unit_of[value]] <= 0.0 => last[value].clone(),
                _ => Arc::new(array),
            });
        let kept = kept.collect();
        self.mixed.push(kept);
    }
}

/// Where the backup of each value comes from at each step: `[step][value]`, steps and weights. With
/// `hold` from the step before, which itself may have reused it; else from the steps that computed
/// it.
fn sources(gates: &[Vec<f32>], unit_of: &[usize], reuse: Reuse) -> Vec<Vec<Vec<(usize, f32)>>> {
    let mut events: Vec<Vec<usize>> = vec![Vec::new(); unit_of.len()];
    let mut all = Vec::new();
    for (step, row) in gates.iter().enumerate() {
        let of = |value: usize| -> Vec<(usize, f32)> {
            if reuse == Reuse::Hold {
                return step
                    .checked_sub(1)
                    .map(|last| (last, 1.0))
                    .into_iter()
                    .collect();
            }
            let at: Vec<usize> = events[value]
                .iter()
                .rev()
                .take(reuse.order())
                .copied()
                .collect();
            at.iter()
                .copied()
                .zip(Reuse::weights(&at, step).into_iter().map(|w| w as f32))
                .collect()
        };
        all.push((0..unit_of.len()).map(of).collect());
        (0..unit_of.len())
            .filter(|&v| row[unit_of[v]] > 0.0)
            .for_each(|v| events[v].push(step));
    }
    all
}

/// A table of what is computed as gates.
pub(super) fn hard(table: &[Vec<bool>]) -> Vec<Vec<f32>> {
    table
        .iter()
        .map(|row| row.iter().map(|on| f32::from(u8::from(*on))).collect())
        .collect()
}

fn accumulate(into: &mut [f32], from: &[f32], factor: f32) {
    into.iter_mut()
        .zip(from)
        .for_each(|(x, y)| *x += factor * y);
}

fn add(into: &mut Option<Array>, from: &Array, factor: f32) -> Result<(), PassError> {
    let mut sum = into.take().map_or_else(
        || vec![0.0; from.elements()],
        |a| a.as_f32().unwrap_or_default().to_vec(),
    );
    accumulate(&mut sum, from.as_f32().unwrap_or_default(), factor);
    *into = Some(Array::f32(from.shape(), sum)?);
    Ok(())
}
