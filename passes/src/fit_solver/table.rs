//! All that least squares need of the scheduler's runs: inner products of latents and outputs, and
//! the steps at which a solver evaluates best by them.

use rayon::prelude::*;

use super::network::Run;
use crate::least_squares::{Matrix, weights_near};

/// Holds weights that nothing else determines.
const RIDGE: f64 = 1e-9;
/// Outputs that a solver is taken to look at while steps are chosen.
const ORDER: usize = 2;

/// Inner products of what the runs have at each step, summed over runs: of the latents before step
/// 0, 1 ... and of the sample, then of the outputs.
#[derive(Debug)]
pub(super) struct Table {
    steps: usize,
    products: Matrix,
}

impl Table {
    /// Of runs of so many steps.
    pub fn new(steps: usize, runs: &[Run]) -> Self {
        let mut products = Matrix::zeros(2 * steps + 1);
        for run in runs {
            let mut rows = Matrix::new(run.sample().len());
            let numbers = run.latents.iter().chain(&run.outputs);
            numbers.for_each(|numbers| rows.push(numbers));
            products.add(&rows.times_transposed(&rows));
        }
        Self { steps, products }
    }

    fn product(&self, a: usize, b: usize) -> f64 {
        self.products.data[a * self.products.columns + b]
    }

    /// The best coefficients, of the latents and of the outputs, from the steps `at`, the last one
    /// first, to the latents before step `next`; and the squares of what is left.
    pub fn step(&self, at: &[usize], next: usize) -> (Vec<f64>, f64) {
        let latents = at.first().copied().unwrap_or_default();
        let outputs = at.iter().map(|step| self.steps + 1 + step);
        let terms: Vec<usize> = [latents].into_iter().chain(outputs).collect();
        let rows = terms.iter();
        let gram = Matrix {
            columns: terms.len(),
            data: rows
                .flat_map(|&a| terms.iter().map(move |&b| self.product(a, b)))
                .collect(),
        };
        let right: Vec<f64> = terms.iter().map(|&a| self.product(a, next)).collect();
        let mut carried = vec![0.0; terms.len()];
        carried[0] = 1.0;
        let weights = weights_near(&carried, gram.clone(), &right, RIDGE).unwrap_or(carried);
        let mut left = self.product(next, next);
        for (i, w) in weights.iter().enumerate() {
            let row = weights.iter().enumerate();
            let of_row: f64 = row.map(|(j, v)| v * gram.data[i * terms.len() + j]).sum();
            left += w * (of_row - 2.0 * right[i]);
        }
        (weights, left.max(0.0))
    }

    /// The steps at which so many evaluations leave the least of the sample undone, by dynamic
    /// programming over the last two of them (arXiv 2602.22654): what a step leaves counts as
    /// `sensitivities` say, of the latents before each step.
    pub fn choose(&self, evaluations: usize, sensitivities: &[f64]) -> Vec<usize> {
        let steps = self.steps;
        // What the best way costs whose last evaluations are at `before` and `at`, and the one
        // before them; a way of one evaluation is before itself.
        let mut ways = vec![vec![None; steps]; steps];
        ways[0][0] = Some((0.0, 0));
        let mut layers = vec![];
        let cost = |before: usize, at: usize, next: usize| {
            let looked_at = [at, before];
            let known = if before == at { 1 } else { ORDER };
            self.step(&looked_at[..known], next).1 * sensitivities[next]
        };
        let costs = Costs::new(steps, cost);
        for _ in 1..evaluations {
            let mut longer: Vec<Vec<Option<(f64, usize)>>> = vec![vec![None; steps]; steps];
            for (before, at, so_far) in reached(&ways) {
                for (next, best) in longer[at].iter_mut().enumerate().skip(at + 1) {
                    let all = so_far + costs.of(before, at, next);
                    if best.is_none_or(|(least, _)| all < least) {
                        *best = Some((all, before));
                    }
                }
            }
            layers.push(std::mem::replace(&mut ways, longer));
        }
        let ends = reached(&ways).map(|(before, at, so_far)| {
            let all = so_far + costs.of(before, at, steps);
            (all, before, at)
        });
        let best = ends.min_by(|a, b| a.0.total_cmp(&b.0));
        let (_, mut before, mut at) = best.unwrap_or_default();
        let mut chosen = vec![at];
        let mut last = ways;
        while let Some(shorter) = layers.pop() {
            let earlier = last[before][at].map_or(0, |(_, earlier)| earlier);
            (before, at) = (earlier, before);
            chosen.push(at);
            last = shorter;
        }
        chosen.reverse();
        chosen
    }
}

/// The ways that there are: their last two evaluations, and what they cost.
fn reached(ways: &[Vec<Option<(f64, usize)>>]) -> impl Iterator<Item = (usize, usize, f64)> {
    ways.iter().enumerate().flat_map(|(before, row)| {
        let row = row.iter().enumerate();
        row.filter_map(move |(at, way)| Some((before, at, way.as_ref()?.0)))
    })
}

/// What each step costs from the last two evaluations, found once.
struct Costs {
    /// `[before][at][next - at - 1]`, of `before` at or before `at`.
    costs: Vec<Vec<Vec<f64>>>,
}

impl Costs {
    fn new(steps: usize, cost: impl Fn(usize, usize, usize) -> f64 + Sync) -> Self {
        let from = |before: usize, at: usize| -> Vec<f64> {
            let next = (at + 1..=steps).filter(|_| before <= at);
            next.map(|next| cost(before, at, next)).collect()
        };
        let of = |before: usize| (0..steps).map(|at| from(before, at)).collect();
        Self {
            costs: (0..steps).into_par_iter().map(of).collect(),
        }
    }

    fn of(&self, before: usize, at: usize, next: usize) -> f64 {
        self.costs[before][at][next - at - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs whose latents at each step are the sum of the outputs so far, times numbers.
    fn runs(steps: usize) -> Vec<Run> {
        let numbers = |seed: u64| dlc_methods::diffusion::noise(seed, 6);
        (0..4)
            .map(|run| {
                let outputs: Vec<Vec<f32>> =
                    (0..steps as u64).map(|i| numbers(100 * run + i)).collect();
                let mut latents = vec![numbers(7000 + run)];
                for (i, output) in outputs.iter().enumerate() {
                    let last = latents[i].iter().zip(output);
                    latents.push(
                        last.map(|(x, o)| 0.9 * x + (1.0 + i as f32) * 0.1 * o)
                            .collect(),
                    );
                }
                Run::made_up(latents, outputs)
            })
            .collect()
    }

    #[test]
    fn one_step_of_the_scheduler_is_found_as_it_is() {
        let table = Table::new(5, &runs(5));
        let (weights, left) = table.step(&[3, 1], 4);
        assert!(left < 1e-9, "{left}");
        for (weight, wanted) in weights.iter().zip([0.9, 0.4, 0.0]) {
            assert!((weight - wanted).abs() < 1e-6, "{weights:?}");
        }
    }

    #[test]
    fn chosen_steps_cost_no_more_than_any_others() {
        let (steps, evaluations) = (7, 4);
        let table = Table::new(steps, &runs(steps));
        let sensitivities: Vec<f64> = (0..=steps).map(|i| 1.0 + (i as f64).sin()).collect();
        let cost = |chosen: &[usize]| -> f64 {
            let ends = chosen.iter().skip(1).chain([&steps]);
            let each = chosen
                .iter()
                .zip(ends)
                .enumerate()
                .map(|(n, (&at, &next))| {
                    let before = n.checked_sub(1).map(|n| chosen[n]);
                    let at: Vec<usize> = [at].into_iter().chain(before).collect();
                    table.step(&at, next).1 * sensitivities[next]
                });
            each.sum()
        };
        let chosen = table.choose(evaluations, &sensitivities);
        assert!(chosen.len() == evaluations && chosen[0] == 0, "{chosen:?}");
        let all = (0..1u32 << steps).filter(|set| set & 1 == 1 && set.count_ones() == 4);
        for set in all {
            let other: Vec<usize> = (0..steps).filter(|i| set >> i & 1 == 1).collect();
            assert!(
                cost(&chosen) <= cost(&other) + 1e-12,
                "{chosen:?}, not {other:?}"
            );
        }
    }

    #[test]
    fn as_many_evaluations_as_steps_are_all_steps() {
        let table = Table::new(4, &runs(4));
        assert_eq!(table.choose(4, &[1.0; 5]), [0, 1, 2, 3]);
        assert_eq!(table.choose(1, &[1.0; 5]), [0]);
    }
}
