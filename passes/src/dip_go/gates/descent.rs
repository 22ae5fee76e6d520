//! The second stage, the paper's: hard gates forward, the gradient of their sigmoid backward.

use rayon::prelude::*;

use super::{Judge, State, Training, biased, report_step, stopped};
use crate::context::PassContext;
use crate::error::PassError;
use crate::sampling::Start;

/// Gradient steps between two looks at the judges' images.
const JUDGED: usize = 8;

impl Training<'_> {
    /// The paper's steps.
    pub(super) fn descend(
        &self,
        cx: &PassContext<'_>,
        state: &mut State,
        judges: &[Judge],
        keep: &dyn Fn(&State),
    ) -> Result<(), PassError> {
        let (total, share) = (self.options.iterations, self.options.share());
        if state.iterations == 0 && total > 0 {
            let Some((table, _)) = &state.best else {
                return Err(stopped(cx));
            };
            state.gates = biased(&state.weights, table, state.caution.max(1.0));
        }
        let freed = self.net.freed();
        let all: f64 = freed.iter().sum::<f64>().max(f64::MIN_POSITIVE) * state.gates.len() as f64;
        while state.iterations < total {
            let table: Vec<Vec<bool>> = state
                .gates
                .iter()
                .enumerate()
                .map(|(i, row)| row.iter().map(|z| i == 0 || *z > 0.0).collect())
                .collect();
            let (gates, kept) = self.closed(&table);
            let (loss, gradient) = self.consistency(&gates, state.iterations)?;
            let pressure = if kept > share {
                self.options.alpha
            } else {
                0.0
            };
            let cosine =
                0.5 * (1.0 + (std::f64::consts::PI * state.iterations as f64 / total as f64).cos());
            let slope = |z: f64| {
                let keep = 1.0 / (1.0 + (-z).exp());
                keep * (1.0 - keep)
            };
            let descent: Vec<Vec<f64>> = state
                .gates
                .iter()
                .zip(&gradient)
                .map(|(row, g)| {
                    row.iter()
                        .zip(g)
                        .zip(&freed)
                        .map(|((z, g), w)| slope(*z) * (g + pressure * w / all))
                        .collect()
                })
                .collect();
            let norm = descent.iter().flatten().map(|d| d * d).sum::<f64>().sqrt();
            // Clipped to length 1.
            let factor = self.options.rate * cosine / norm.max(1.0);
            state
                .gates
                .iter_mut()
                .zip(&descent)
                .for_each(|(row, d)| row.iter_mut().zip(d).for_each(|(z, d)| *z -= factor * d));
            state.iterations += 1;
            if state.iterations.is_multiple_of(JUDGED) || state.iterations == total {
                let table = self.fit(&state.gates, share)?.table;
                let _ = self.compare(state, table, judges)?;
            }
            keep(state);
            report_step(
                cx,
                &format!("loss {loss:.2e}, {:.1}% kept", 100.0 * kept),
                self.options.rounds + state.iterations,
                self.options.rounds + total,
            )?;
        }
        Ok(())
    }

    /// Mean distance to the full sampler's images, and its gradient with respect to the gates.
    fn consistency(
        &self,
        gates: &[Vec<f32>],
        turn: usize,
    ) -> Result<(f64, Vec<Vec<f64>>), PassError> {
        let all = self.all_on();
        let one = |start: &Start| {
            let full = self.shown(&self.sampler.run(start, &all)?)?;
            let rollout = self.sampler.run(start, gates)?;
            let mut distance = 0.0;
            let adjoint = self.view.back(rollout.sample(), |image| {
                let gradient;
                (distance, gradient) = self.view.loss.gradient(image, &full);
                gradient
            })?;
            Ok((
                distance,
                self.sampler.back(start, gates, &rollout, adjoint)?,
            ))
        };
        let starts = self.batch(2, turn);
        let parts = self.pool.install(|| {
            starts
                .par_iter()
                .map(one)
                .collect::<Result<Vec<_>, PassError>>()
        })?;
        let share = 1.0 / parts.len() as f64;
        let mean = |step: usize, unit: usize| {
            parts
                .iter()
                .map(|(_, g)| share * g[step][unit])
                .sum::<f64>()
        };
        let gradient = (0..gates.len())
            .map(|step| {
                (0..self.net.units.len())
                    .map(|unit| mean(step, unit))
                    .collect()
            })
            .collect();
        Ok((parts.iter().map(|(loss, _)| share * loss).sum(), gradient))
    }
}
