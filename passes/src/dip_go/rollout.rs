//! A whole run of the sampler with gates, and the way back through it.
//!
//! Forward keeps the latents of every step and what was really computed; backward runs every
//! evaluation again, so that the activations of one step are in memory at a time. The sampler
//! itself is [`SamplerState`], a table of sums, and so is its transpose.

use std::sync::Arc;

use dlc_eval::{Array, Segment};
use dlc_ir::Reuse;
use dlc_methods::diffusion::{SamplerState, SamplingPlan};

use super::supernet::{GatedFeed, NetOutput, SuperNet};
use crate::error::PassError;
use crate::sampling::{Guidance, Start, WayBack, accumulate};

/// What is sampled: the model, how, and with what guidance.
#[derive(Debug)]
pub(super) struct Sampler<'a> {
    pub net: &'a SuperNet,
    pub segment: &'a Segment<'a>,
    pub plan: &'a SamplingPlan,
    pub guidance: Guidance<'a>,
    pub reuse: Reuse,
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
    /// What the SuperNet is fed at step `i`.
    fn feed<'f>(
        &'f self,
        i: usize,
        start: &Start,
        gates: &'f [f32],
        rollout: &Rollout,
    ) -> Result<GatedFeed<'f>, PassError> {
        let step = &self.plan.steps[i];
        Ok(GatedFeed {
            network: self.guidance.feed(start, step, &rollout.latents[i])?,
            gates,
            backups: rollout.backups(i)?,
        })
    }

    /// Runs the sampler; `gates[step][unit]` from 0 to 1, the first step of which is 1 everywhere.
    pub fn run(&self, start: &Start, gates: &[Vec<f32>]) -> Result<Rollout, PassError> {
        let mut state = SamplerState::new(self.plan, &start.noise)?;
        let mut rollout = Rollout {
            latents: vec![state.latents().to_vec()],
            clipped: vec![],
            mixed: vec![],
            sources: sources(gates, self.net.unit_of(), self.reuse),
        };
        for (i, gates) in gates.iter().enumerate().take(self.plan.steps.len()) {
            let feed = self.feed(i, start, gates, &rollout)?;
            let NetOutput { output, mixed } = self.net.forward(self.segment, &feed)?;
            let output = self.guidance.guided(&output)?;
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
        let steps = self.plan.steps.len();
        let mut way_back = WayBack::new(self.plan, adjoint);
        let mut remembered: Vec<Vec<Option<Array>>> =
            vec![vec![None; self.net.unit_of().len()]; steps];
        let mut gradient = vec![Vec::new(); steps];
        for i in (0..steps).rev() {
            let output = way_back.output(i, &rollout.clipped[i]);
            let feed = self.feed(i, start, &gates[i], rollout)?;
            let seeds = std::mem::take(&mut remembered[i])
                .into_iter()
                .enumerate()
                .filter_map(|(v, seed)| Some((v, seed?)))
                .collect();
            let output = self.guidance.spread(&output)?;
            let adjoints = self.net.backward(self.segment, &feed, output, seeds)?;
            way_back.input(i, &adjoints.latents);
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

fn add(into: &mut Option<Array>, from: &Array, factor: f32) -> Result<(), PassError> {
    let mut sum = into.take().map_or_else(
        || vec![0.0; from.elements()],
        |a| a.as_f32().unwrap_or_default().to_vec(),
    );
    accumulate(&mut sum, from.as_f32().unwrap_or_default(), factor);
    *into = Some(Array::f32(from.shape(), sum)?);
    Ok(())
}
