//! The way back through a sampler: the transpose of its table of sums.

use dlc_eval::Array;
use dlc_methods::diffusion::SamplingPlan;

/// Takes the gradient of a sample back through the steps, the last one first.
#[derive(Debug)]
pub(crate) struct WayBack<'a> {
    plan: &'a SamplingPlan,
    /// The gradients of the latents before each step, and of the sample.
    latents: Vec<Vec<f32>>,
    estimates: Vec<Vec<f32>>,
}

impl<'a> WayBack<'a> {
    /// From the gradient of the sample.
    pub fn new(plan: &'a SamplingPlan, sample: Vec<f32>) -> Self {
        let (steps, n) = (plan.steps.len(), sample.len());
        let mut latents = vec![vec![0.0; n]; steps];
        latents.push(sample);
        Self {
            plan,
            latents,
            estimates: vec![vec![0.0; n]; steps],
        }
    }

    /// The gradient of the network's guided output at step `i`, of which the sampler `clipped` some
    /// numbers, after those of all later steps.
    pub fn output(&mut self, i: usize, clipped: &[bool]) -> Vec<f32> {
        let step = &self.plan.steps[i];
        let next = std::mem::take(&mut self.latents[i + 1]);
        for (k, c) in step.latents.iter().enumerate() {
            accumulate(&mut self.latents[i - k], &next, *c as f32);
        }
        for (j, c) in step.estimates.iter().enumerate() {
            accumulate(&mut self.estimates[i - j], &next, *c as f32);
        }
        let mut through = std::mem::take(&mut self.estimates[i]);
        through
            .iter_mut()
            .zip(clipped)
            .filter(|(_, clipped)| **clipped)
            .for_each(|(a, _)| *a = 0.0);
        accumulate(&mut self.latents[i], &through, step.estimate.latents as f32);
        let mut output: Vec<f32> = through
            .iter()
            .map(|a| a * step.estimate.output as f32)
            .collect();
        accumulate(&mut output, &next, step.output as f32);
        output
    }

    /// Adds what came back through the network at step `i`: the gradient of its input, a row or two.
    /// Returns the whole gradient of the latents before the step.
    pub fn input(&mut self, i: usize, rows: &Array) -> &[f32] {
        let latents = &mut self.latents[i];
        let scale = self.plan.steps[i].input_scale as f32;
        for row in rows
            .as_f32()
            .unwrap_or_default()
            .chunks(latents.len().max(1))
        {
            accumulate(latents, row, scale);
        }
        latents
    }
}

pub(crate) fn accumulate(into: &mut [f32], from: &[f32], factor: f32) {
    into.iter_mut()
        .zip(from)
        .for_each(|(x, y)| *x += factor * y);
}
