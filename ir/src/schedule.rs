//! Which blocks of a diffusion model are computed at which step, and how a bundle of such steps is
//! sampled. Data only.

use serde::{Deserialize, Serialize};

use crate::error::IrError;

/// What passes score, drop, compute or reuse as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// Whole layers of a transformer, whole stages of a U-Net.
    Layer,
    /// The branches of a layer apart: attention and feed-forward, and every part of a U-Net.
    #[default]
    Branch,
}

impl Granularity {
    /// The name in options and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::Branch => "branch",
        }
    }

    /// What messages call several.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Layer => "layers",
            Self::Branch => "branches",
        }
    }
}

/// What stands in for a value that isn't computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reuse {
    /// The value as it was last computed.
    #[default]
    Hold,
    /// The line through the last two.
    Linear,
    /// The parabola through the last three (`TaylorSeer`, arXiv 2503.06923, forecasts so).
    Quadratic,
}

impl Reuse {
    /// How many earlier values are needed.
    pub fn order(self) -> usize {
        match self {
            Self::Hold => 1,
            Self::Linear => 2,
            Self::Quadratic => 3,
        }
    }

    /// The name in options and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Linear => "linear",
            Self::Quadratic => "quadratic",
        }
    }

    /// Weights of earlier values, computed at the steps `at`, that forecast the value at `step`:
    /// Lagrange's polynomial through them. Steps in `at` differ from each other.
    pub fn weights(at: &[usize], step: usize) -> Vec<f64> {
        let x = step as f64;
        let factor = |own: usize, other: usize| (x - other as f64) / (own as f64 - other as f64);
        at.iter()
            .map(|&own| {
                at.iter()
                    .filter(|other| **other != own)
                    .map(|&other| factor(own, other))
                    .product()
            })
            .collect()
    }
}

/// Which units are computed at which step; the others are reused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SkipSchedule {
    /// What the units are.
    pub granularity: Granularity,
    /// What stands in for units that are reused.
    pub reuse: Reuse,
    /// Names of the units, in the order of the graph.
    pub units: Vec<String>,
    /// A row for each step, first step first, of a character for each unit: `#` is computed, `.` is
    /// reused.
    pub steps: Vec<String>,
}

impl SkipSchedule {
    /// A schedule from its table, `computed[step][unit]`.
    pub fn new(
        granularity: Granularity,
        reuse: Reuse,
        units: Vec<String>,
        computed: &[Vec<bool>],
    ) -> Self {
        let row = |row: &Vec<bool>| row.iter().map(|on| if *on { '#' } else { '.' }).collect();
        Self {
            granularity,
            reuse,
            units,
            steps: computed.iter().map(row).collect(),
        }
    }

    /// The table `computed[step][unit]`.
    ///
    /// # Errors
    /// [`IrError::Schedule`] for rows of another length than there are units, and other characters.
    pub fn computed(&self) -> Result<Vec<Vec<bool>>, IrError> {
        let read = |(step, row): (usize, &String)| {
            let cells: Option<Vec<bool>> = row
                .chars()
                .map(|c| Some(c == '#').filter(|_| matches!(c, '#' | '.')))
                .collect();
            let cells = cells.ok_or_else(|| {
                schedule_error(format!(
                    "step {step} is `{row}`; `#` is computed, `.` is reused"
                ))
            })?;
            let (n, wanted) = (cells.len(), self.units.len());
            if n == wanted {
                Ok(cells)
            } else {
                Err(schedule_error(format!(
                    "step {step} has {n} cells, and there are {wanted} units"
                )))
            }
        };
        self.steps.iter().enumerate().map(read).collect()
    }
}

fn schedule_error(problem: String) -> IrError {
    IrError::Schedule { problem }
}

/// How the steps of a bundle make up a sampler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// The scheduler: `ddim`, `dpm-solver++` ...
    pub scheduler: String,
    /// Steps that it was asked for; how many evaluations that takes is the scheduler's.
    pub steps: usize,
    /// The strength of classifier-free guidance that the schedule was made for; 1 is none.
    pub guidance: f64,
    /// Which units are computed when.
    pub schedule: SkipSchedule,
    /// What stands in the scheduler's place, if anything does: a solver that needs fewer
    /// evaluations for the sample that the scheduler's steps would make.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub solver: Vec<SolverStep>,
    /// Multiply-adds of all evaluations as a share of those of the full model in all steps of the
    /// scheduler.
    pub macs: f64,
    /// What each evaluation of the network runs, in order. Empty for a sampler that is one graph.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evaluations: Vec<Evaluation>,
    /// The graph that is the whole sampler: it takes noise as [`SAMPLER_INPUT`] and gives the
    /// sample as [`SAMPLER_OUTPUT`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unrolled: Option<String>,
}

/// One evaluation of a multistep solver, and the latents that follow: those of before times
/// `latents`, and the guided outputs so far, the last one first, times `outputs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SolverStep {
    /// The step of the scheduler, from 0, at whose noise level the network is evaluated.
    pub at: usize,
    /// Coefficient of the latents.
    pub latents: f64,
    /// Coefficients of the outputs.
    pub outputs: Vec<f64>,
}

impl SolverStep {
    /// What a sampling plan takes of it.
    pub fn parts(&self) -> (usize, f64, &[f64]) {
        (self.at, self.latents, &self.outputs)
    }
}

/// One evaluation of the network.
///
/// The graph's inputs `memory.BLOCK.N` take the N-th last value (from 0) that an earlier evaluation
/// gave as the output `remember.BLOCK`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// The graph.
    pub graph: String,
    /// What its input `forecast` takes: the weight of each of its `memory` inputs, in their order.
    /// Empty if it has no such input.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forecast: Vec<f64>,
}

/// The input of an unrolled sampler: noise of unit variance, `[batch, channels, height, width]`.
pub const SAMPLER_INPUT: &str = "latents";
/// The output of an unrolled sampler: the sample.
pub const SAMPLER_OUTPUT: &str = "out_latents";

/// Names of the boundary values that carry what is remembered.
pub mod memory {
    /// The input that takes the `age`-th last value of `block`.
    pub fn input(block: &str, age: usize) -> String {
        format!("memory.{block}.{age}")
    }

    /// The output that gives the value of `block`.
    pub fn output(block: &str) -> String {
        format!("remember.{block}")
    }

    /// The input that takes the weights of all memory inputs.
    pub const FORECAST: &str = "forecast";

    /// Block and age of a memory input's name.
    pub fn parse_input(name: &str) -> Option<(&str, usize)> {
        let (block, age) = name.strip_prefix("memory.")?.rsplit_once('.')?;
        Some((block, age.parse().ok()?))
    }

    /// Block of a remembering output's name.
    pub fn parse_output(name: &str) -> Option<&str> {
        name.strip_prefix("remember.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forecasts_are_exact_for_polynomials_of_their_order() {
        let cubic = |c: &[f64], x: f64| c.iter().rev().fold(0.0, |sum, c| sum * x + c);
        for (coefficients, at) in [
            (&[3.0][..], &[4][..]),
            (&[3.0, -2.0], &[4, 1]),
            (&[3.0, -2.0, 0.5], &[9, 4, 1]),
        ] {
            let weights = Reuse::weights(at, 12);
            let forecast: f64 = weights
                .iter()
                .zip(at)
                .map(|(w, &x)| w * cubic(coefficients, x as f64))
                .sum();
            assert!((forecast - cubic(coefficients, 12.0)).abs() < 1e-9);
        }
    }

    #[test]
    fn tables_survive_the_text() {
        let computed = vec![vec![true, true], vec![false, true]];
        let schedule = SkipSchedule::new(
            Granularity::Branch,
            Reuse::Linear,
            vec!["a".into(), "b".into()],
            &computed,
        );
        assert_eq!(schedule.steps, ["##", ".#"]);
        assert_eq!(schedule.computed().expect("fits"), computed);
        for steps in ["#", "##x", "#-"] {
            assert!(
                SkipSchedule {
                    steps: vec![steps.into()],
                    ..schedule.clone()
                }
                .computed()
                .is_err(),
                "{steps}"
            );
        }
    }

    #[test]
    fn memory_names_parse_back() {
        assert_eq!(
            memory::parse_input(&memory::input("up.1.resnet.0", 2)),
            Some(("up.1.resnet.0", 2))
        );
        assert_eq!(
            memory::parse_output(&memory::output("layers.3.attn")),
            Some("layers.3.attn")
        );
    }
}
