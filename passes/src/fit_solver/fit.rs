//! Fits a solver to the scheduler's runs: least squares step by step, on the solver's own way, then
//! Gauss-Newton on the samples.

use std::collections::VecDeque;

use dlc_ir::SolverStep;
use rayon::prelude::*;

use super::network::{Network, Run};
use super::table::Table;
use crate::context::PassContext;
use crate::error::PassError;
use crate::least_squares::{Matrix, NormalEquations};
use crate::sampling::{accumulate, mean_logarithm, mean_square};

/// How strongly coefficients on the solver's own way are held at those on the scheduler's.
const RIDGE: f64 = 1e-6;
/// How far coefficients are moved for their effect on the sample, as a share of the latents.
const NUDGE: f64 = 1e-2;
/// How strongly Gauss-Newton holds coefficients where they are: at first, and how that grows.
const DAMPING: f64 = 1e-4;
const MORE_DAMPING: f64 = 30.0;
const TRIES: usize = 3;
/// Images for one round of Gauss-Newton, at most.
const REFINED: usize = 64;

/// The scheduler's runs that a solver is fitted to and judged by.
pub(super) struct Fitting<'a> {
    pub network: &'a Network<'a>,
    pub runs: &'a [Run],
    pub judges: &'a [Run],
    pub table: &'a Table,
    pub order: usize,
    pub cx: &'a PassContext<'a>,
}

/// A solver, and how far its samples are from the scheduler's.
#[derive(Debug, Clone)]
pub(super) struct Fitted {
    pub solver: Vec<SolverStep>,
    /// Mean square of the difference, the geometric mean over the judges.
    pub distance: f64,
}

/// A run of a solver so far.
#[derive(Debug, Clone)]
struct State {
    latents: Vec<f32>,
    /// The last one first.
    outputs: VecDeque<Vec<f32>>,
}

impl State {
    fn new(run: &Run) -> Self {
        Self {
            latents: run.latents.first().cloned().unwrap_or_default(),
            outputs: VecDeque::new(),
        }
    }

    /// What a step sums, in the order of its coefficients.
    fn terms(&self, order: usize) -> impl Iterator<Item = &Vec<f32>> {
        [&self.latents]
            .into_iter()
            .chain(self.outputs.iter().take(order))
    }

    fn advance(&mut self, step: &SolverStep) {
        let mut next = vec![0.0; self.latents.len()];
        let coefficients = [step.latents]
            .into_iter()
            .chain(step.outputs.iter().copied());
        for (coefficient, term) in coefficients.zip(self.terms(step.outputs.len())) {
            accumulate(&mut next, term, coefficient as f32);
        }
        self.latents = next;
    }
}

fn solver_step(at: usize, weights: &[f64]) -> SolverStep {
    SolverStep {
        at,
        latents: weights.first().copied().unwrap_or_default(),
        outputs: weights.iter().skip(1).copied().collect(),
    }
}

impl Fitting<'_> {
    /// The solver that evaluates at these steps: its coefficients take it, from where it really is,
    /// as near as they can to where the scheduler is (arXiv 2604.26365 fits forecasts so).
    pub fn least_squares(&self, at: &[usize]) -> Result<Fitted, PassError> {
        let whole = self.network.driver.plan.steps.len();
        let mut states: Vec<State> = self.runs.iter().map(State::new).collect();
        let mut solver = vec![];
        for (number, &now) in at.iter().enumerate() {
            let next = at.get(number + 1).copied().unwrap_or(whole);
            self.evaluate(&mut states, now)?;
            let looked_at: Vec<usize> = at[..=number]
                .iter()
                .rev()
                .take(self.order)
                .copied()
                .collect();
            let (near, _) = self.table.step(&looked_at, next);
            let weights = self.step(&states, next, &near).unwrap_or(near);
            let step = solver_step(now, &weights);
            for state in &mut states {
                state.advance(&step);
            }
            solver.push(step);
        }
        self.judged(solver)
    }

    /// Evaluates the network for all runs.
    fn evaluate(&self, states: &mut [State], at: usize) -> Result<(), PassError> {
        let each = |(state, run): (&mut State, &Run)| self.push_output(state, run, at);
        self.cx
            .pool
            .install(|| states.par_iter_mut().zip(self.runs).try_for_each(each))
    }

    fn push_output(&self, state: &mut State, run: &Run, at: usize) -> Result<(), PassError> {
        let step = &self.network.driver.plan.steps[at];
        let output = self
            .network
            .answer(&run.start, step, &state.latents, self.cx)?;
        state.outputs.push_front(output);
        Ok(())
    }

    /// The coefficients that bring all states nearest to where the scheduler is before step `next`.
    fn step(&self, states: &[State], next: usize, near: &[f64]) -> Option<Vec<f64>> {
        let mut sums = NormalEquations::new(near.len());
        for (state, run) in states.iter().zip(self.runs) {
            let mut terms = Matrix::new(state.latents.len());
            state.terms(self.order).for_each(|term| terms.push(term));
            let mut goal = Matrix::new(state.latents.len());
            goal.push(&run.latents[next]);
            sums.add(&terms, &goal);
        }
        sums.weights_near(near, RIDGE)
    }

    fn judged(&self, solver: Vec<SolverStep>) -> Result<Fitted, PassError> {
        let one = |run: &Run| {
            let mut state = State::new(run);
            self.go_on(&mut state, run, &solver)?;
            Ok(mean_square(&state.latents, run.sample()))
        };
        let judge = || self.judges.par_iter().map(one).collect();
        let distances: Result<Vec<f64>, PassError> = self.cx.pool.install(judge);
        Ok(Fitted {
            solver,
            distance: mean_logarithm(&distances?).exp(),
        })
    }

    fn go_on(&self, state: &mut State, run: &Run, rest: &[SolverStep]) -> Result<(), PassError> {
        rest.iter().try_for_each(|step| {
            self.push_output(state, run, step.at)?;
            state.advance(step);
            Ok(())
        })
    }

    /// A round of Gauss-Newton on the samples (arXiv 2403.01329 minimises the same); none if no
    /// step that it proposes brings the judges' samples nearer.
    pub fn refined(&self, now: &Fitted) -> Result<Option<Fitted>, PassError> {
        let runs = &self.runs[..self.refinable(&now.solver)];
        let slopes = |run: &Run| self.slopes(run, &now.solver);
        let of_runs = || runs.par_iter().map(slopes).collect();
        let of_runs: Result<Vec<(Matrix, Matrix)>, PassError> = self.cx.pool.install(of_runs);
        let count = now.solver.iter().map(|step| 1 + step.outputs.len()).sum();
        let mut sums = NormalEquations::new(count);
        for (slopes, left) in of_runs? {
            sums.add(&slopes, &left);
        }
        let mut damping = DAMPING;
        for _ in 0..TRIES {
            if let Some(change) = sums.weights_near(&vec![0.0; count], damping) {
                let found = self.judged(moved(&now.solver, &change))?;
                if found.distance < now.distance {
                    return Ok(Some(found));
                }
            }
            damping *= MORE_DAMPING;
        }
        Ok(None)
    }

    /// Images for a round of Gauss-Newton: as many as keep it cheaper than the scheduler's runs.
    fn refinable(&self, solver: &[SolverStep]) -> usize {
        let after = (0..solver.len()).rev().zip(solver);
        let of_image: usize = after
            .map(|(left, step)| (1 + step.outputs.len()) * left)
            .sum();
        let made = (self.runs.len() + self.judges.len()) * self.network.driver.plan.steps.len();
        (made / of_image.max(1)).clamp(1, self.runs.len().min(REFINED))
    }

    /// What each coefficient does to the sample of a run, a row each, and what is missing of the
    /// scheduler's sample.
    fn slopes(&self, run: &Run, solver: &[SolverStep]) -> Result<(Matrix, Matrix), PassError> {
        let mut moved = vec![];
        let mut state = State::new(run);
        for (number, step) in solver.iter().enumerate() {
            self.push_output(&mut state, run, step.at)?;
            let terms: Vec<Vec<f32>> = state.terms(step.outputs.len()).cloned().collect();
            state.advance(step);
            let rest = &solver[number + 1..];
            for term in &terms {
                let nudge =
                    (NUDGE * norm(&state.latents) / norm(term).max(f64::MIN_POSITIVE)) as f32;
                let mut other = state.clone();
                accumulate(&mut other.latents, term, nudge);
                self.go_on(&mut other, run, rest)?;
                moved.push((other.latents, nudge));
            }
        }
        let sample = state.latents;
        let mut left = Matrix::new(sample.len());
        left.push(&difference(run.sample(), &sample));
        let mut slopes = Matrix::new(sample.len());
        for (other, nudge) in moved {
            let by = difference(&other, &sample);
            slopes.push(&by.iter().map(|x| x / nudge).collect::<Vec<_>>());
        }
        Ok((slopes, left))
    }
}

/// The solver with changed coefficients, in the order of its steps.
fn moved(solver: &[SolverStep], change: &[f64]) -> Vec<SolverStep> {
    let mut change = change.iter();
    let mut moved = solver.to_vec();
    for step in &mut moved {
        let coefficients = [&mut step.latents].into_iter().chain(&mut step.outputs);
        coefficients
            .zip(&mut change)
            .for_each(|(coefficient, by)| *coefficient += by);
    }
    moved
}

fn difference(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(x, y)| x - y).collect()
}

fn norm(numbers: &[f32]) -> f64 {
    let squares = numbers.iter().map(|x| f64::from(*x).powi(2));
    squares.sum::<f64>().sqrt()
}
