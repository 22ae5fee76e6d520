//! What remains makes up for what is dropped, without training.
//!
//! `scale`: the residual is multiplied by how much larger the dropped blocks would have made it
//! (Prune&Comp, arXiv 2507.18212; there the factors stand in the weights before, which a draft
//! shares with its target). `lstsq`: the matrix that writes into the residual before the dropped
//! blocks also writes what these would have written, as far as its input tells it (`ReplaceMe`, arXiv
//! 2505.02819). Both see the draft's own residuals, so that later ones make up for what earlier ones
//! left over (ours).

mod gap;
mod remedy;

use std::collections::BTreeSet;

use dlc_eval::{Array, Values};
use dlc_ir::{BlockId, Graph, ValueId, WeightTable};

use self::gap::{Gap, Writer, gaps, writer};
pub(super) use self::remedy::Compensation;
use self::remedy::Remedy;
use super::options::Compensate;
use super::unsupported;
use crate::context::Progress;
use crate::error::PassError;
use crate::least_squares::{Matrix, Problem};
use crate::scoring::chain::{Chain, Link};
use crate::scoring::objective::row_slices;
use crate::scoring::steps::Steps;

/// Ridges that are tried: shares of the mean square of a system's matrix.
const RIDGES: [f64; 6] = [1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0];

/// Samples to fit on, and the others, which say whether a fit is one.
#[derive(Clone, Copy)]
pub(super) struct Samples<'s> {
    pub fitted: &'s [Vec<u32>],
    pub held_back: &'s [Vec<u32>],
}

impl<'s> Samples<'s> {
    /// A quarter is held back.
    pub fn split(samples: &'s [Vec<u32>]) -> Result<Self, PassError> {
        if samples.len() < 2 {
            return Err(PassError::Calibration {
                problem: "compensate needs 2 samples or more, one to fit on and one to judge the fit by; ask for more, or give a file with more text".into(),
            });
        }
        let held_back = (samples.len() / 4).max(1);
        let (fitted, held_back) = samples.split_at(samples.len() - held_back);
        Ok(Self { fitted, held_back })
    }
}

/// Finds what makes up for the blocks `dropped` of `target`.
pub(super) fn find(
    kind: Compensate,
    target: &Graph,
    weights: &WeightTable,
    dropped: &BTreeSet<BlockId>,
    samples: Samples<'_>,
    progress: &dyn Progress,
) -> Result<Compensation, PassError> {
    let chain = Chain::new(target, weights)?;
    let all = [samples.fitted, samples.held_back].concat();
    let feeds = chain.feeds(&all)?;
    let gaps = gaps(target, dropped);
    let mut steps = Steps::start(
        progress,
        "making up for dropped blocks",
        (2 * chain.links.len()).saturating_sub(dropped.len() + 2),
    )?;
    let goals = goals(&chain, &feeds, &gaps, &mut steps)?;
    let mut search = Search {
        kind,
        chain: &chain,
        fitted: samples.fitted.len(),
        residuals: vec![None; all.len()],
        found: Compensation::default(),
    };
    for link in chain.body() {
        if link.block.is_some_and(|block| dropped.contains(&block)) {
            if let Some(at) = gaps
                .iter()
                .position(|gap| gap.blocks.first() == link.block.as_ref())
            {
                search.enter(&gaps[at], &goals[at])?;
            }
            continue;
        }
        let after = gaps
            .iter()
            .position(|gap| link.block.is_some() && gap.before == link.block);
        search.pass(link, &feeds, after.map(|at| (&gaps[at], &goals[at][..])))?;
        steps.step()?;
    }
    Ok(search.found)
}

/// The whole model's residuals after each gap, by sample.
fn goals(
    chain: &Chain<'_>,
    feeds: &[Values],
    gaps: &[Gap],
    steps: &mut Steps<'_>,
) -> Result<Vec<Vec<Array>>, PassError> {
    let mut residuals: Vec<Option<Array>> = vec![None; feeds.len()];
    let mut goals = Vec::new();
    for link in chain.body() {
        let segment = chain.load(link)?;
        Chain::advance(&segment, link, feeds, &mut residuals)?;
        if gaps
            .iter()
            .any(|gap| link.block.is_some() && gap.blocks.last() == link.block.as_ref())
        {
            goals.push(residuals.iter().flatten().cloned().collect());
        }
        steps.step()?;
    }
    Ok(goals)
}

/// The draft so far.
struct Search<'a> {
    kind: Compensate,
    chain: &'a Chain<'a>,
    /// So many samples are fitted on.
    fitted: usize,
    residuals: Vec<Option<Array>>,
    found: Compensation,
}

impl Search<'_> {
    /// Runs a link that stays; if it stands before a gap, with what makes up for that.
    fn pass(
        &mut self,
        link: &Link,
        feeds: &[Values],
        gap: Option<(&Gap, &[Array])>,
    ) -> Result<(), PassError> {
        let graph = self.chain.graph;
        let writer = link
            .block
            .and_then(|block| writer(graph, graph.block(block)));
        let gap = gap.filter(|_| self.kind == Compensate::Lstsq);
        let reads = writer
            .as_ref()
            .filter(|_| gap.is_some())
            .map(|writer| writer.reads);
        let wanted: Vec<ValueId> = [link.makes].into_iter().chain(reads).collect();
        let segment = self.chain.load(link)?;
        let mut inputs = Vec::new();
        for (residual, feed) in self.residuals.iter_mut().zip(feeds) {
            let known = Chain::known(link, feed, residual.as_ref());
            let mut made = segment.forward(&known, &wanted)?;
            *residual = made.remove(&link.makes);
            inputs.extend(reads.and_then(|value| made.remove(&value)));
        }
        match (gap, writer) {
            (Some((gap, goals)), Some(writer)) => self.fit(gap, goals, &writer, &inputs),
            _ => Ok(()),
        }
    }

    /// Comes to a gap without having made up for it before.
    fn enter(&mut self, gap: &Gap, goals: &[Array]) -> Result<(), PassError> {
        let graph = self.chain.graph;
        match self.kind {
            Compensate::Scale => self.scale(gap, goals),
            Compensate::Lstsq
                if gap
                    .before
                    .and_then(|b| writer(graph, graph.block(b)))
                    .is_none() =>
            {
                let note = format!(
                    "{}: no matrix before it writes into the residual alone",
                    gap.name(graph)
                );
                self.found.notes.push(note);
                Ok(())
            }
            Compensate::Lstsq | Compensate::None => Ok(()),
        }
    }

    fn scale(&mut self, gap: &Gap, goals: &[Array]) -> Result<(), PassError> {
        let graph = self.chain.graph;
        let last = gap.blocks.last().copied();
        let Some(block) = last.filter(|&b| !graph.block(b).kind.has_attention()) else {
            let note = format!(
                "{}: no MLP at its end whose place the factor could take",
                gap.name(graph)
            );
            self.found.notes.push(note);
            return Ok(());
        };
        let pairs = goals.iter().zip(self.residuals.iter().flatten());
        let rows = pairs
            .take(self.fitted)
            .flat_map(|(goal, residual)| row_slices(goal).zip(row_slices(residual)));
        let ratios = rows.map(|(goal, row)| norm(goal) / norm(row));
        let (sum, count) = ratios
            .filter(|ratio| ratio.is_finite())
            .fold((0.0, 0usize), |(sum, count), ratio| {
                (sum + ratio, count + 1)
            });
        let factor = if count > 0 { sum / count as f64 } else { 1.0 } as f32;
        for residual in self.residuals.iter_mut().flatten() {
            let data = residual.as_f32().unwrap_or_default();
            *residual = Array::f32(residual.shape(), data.iter().map(|x| x * factor).collect())?;
        }
        let note = format!("{}: times {factor:.4}", gap.name(graph));
        self.found.notes.push(note);
        self.found.remedies.push(Remedy::Scale { block, factor });
        Ok(())
    }

    /// Lets `writer` also write what is missing after the gap, as far as that helps on the samples
    /// that are held back.
    fn fit(
        &mut self,
        gap: &Gap,
        goals: &[Array],
        writer: &Writer,
        inputs: &[Array],
    ) -> Result<(), PassError> {
        let residuals: Vec<&Array> = self.residuals.iter().flatten().collect();
        let side = |samples: std::ops::Range<usize>| {
            let read = rows(inputs[samples.clone()].iter());
            let mut missing = rows(goals[samples.clone()].iter());
            let made = rows(residuals[samples].iter().copied());
            for (goal, made) in missing.data.iter_mut().zip(&made.data) {
                *goal -= made;
            }
            (read, missing)
        };
        let (read, missing) = side(0..self.fitted);
        let (others, others_missing) = side(self.fitted..residuals.len());
        let problem = Problem::new(&read, &missing);
        let left = |map: &Matrix| {
            let made = others.times_transposed(map);
            let entries = made.data.iter().zip(&others_missing.data);
            entries.map(|(x, y)| (x - y).powi(2)).sum::<f64>() / others_missing.squares()
        };
        let fits = RIDGES
            .into_iter()
            .filter_map(|ridge| problem.solve(ridge).map(|map| (left(&map), ridge, map)));
        let best = fits
            .filter(|(left, ..)| *left < 1.0)
            .min_by(|a, b| a.0.total_cmp(&b.0));
        let gap = gap.name(self.chain.graph);
        let Some((left, ridge, map)) = best else {
            self.found
                .notes
                .push(format!("{gap}: nothing that helps was found"));
            return Ok(());
        };
        for (residual, input) in self.residuals.iter_mut().flatten().zip(inputs) {
            let added = rows([input].into_iter()).times_transposed(&map);
            let numbers = residual
                .as_f32()
                .unwrap_or_default()
                .iter()
                .zip(&added.data);
            let sums = numbers.map(|(x, y)| (f64::from(*x) + y) as f32).collect();
            *residual = Array::f32(residual.shape(), sums)?;
        }
        let percent = 100.0 * (1.0 - left);
        self.found.notes.push(format!(
            "{gap}: {percent:.0}% of what is missing (ridge {ridge})"
        ));
        let factor = f64::from(writer.factor);
        self.found.remedies.push(Remedy::Matrix {
            node: writer.node,
            change: Matrix {
                columns: map.columns,
                data: map.data.iter().map(|x| x / factor).collect(),
            },
        });
        Ok(())
    }
}

fn rows<'a>(arrays: impl Iterator<Item = &'a Array>) -> Matrix {
    let mut found: Option<Matrix> = None;
    for array in arrays {
        let width = array.shape().last().copied().unwrap_or(1);
        let matrix = found.get_or_insert_with(|| Matrix::new(width));
        matrix.push(array.as_f32().unwrap_or_default());
    }
    found.unwrap_or_else(|| Matrix::new(1))
}

fn norm(row: &[f32]) -> f64 {
    row.iter()
        .map(|&x| f64::from(x).powi(2))
        .sum::<f64>()
        .sqrt()
}

/// Refuses a model on which nothing could be made up for.
pub(super) fn check(kind: Compensate, target: &Graph) -> Result<(), PassError> {
    let writes = target
        .blocks()
        .any(|(_, block)| writer(target, block).is_some());
    if kind == Compensate::Lstsq && !writes {
        return Err(unsupported(
            "no block of the model ends in a matrix that writes into the residual, so compensate=lstsq has none to change; ask for compensate=scale",
        ));
    }
    Ok(())
}
