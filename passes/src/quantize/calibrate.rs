//! Codes found by what matrices are multiplied with: the model is run on texts block by block, and
//! the inputs of each product are those that the matrices before it leave once they are quantised.
//!
//! One block's weights, inputs and curvature are in memory at a time, and the codes of all.

use std::collections::BTreeMap;
use std::sync::Arc;

use dlc_eval::{Array, Segment, Values};
use dlc_ir::{
    Coded, CodedPart, Expr, Graph, GroupFormat, Op, Operand, ValueId, Weight, WeightId, WeightTable,
};
use rayon::prelude::*;

use super::NAME;
use super::gptq::Curvature;
use super::held::{GroupFit, HeldMatrix};
use super::options::Method;
use super::weighted::{self, Layout};
use crate::context::Progress;
use crate::error::PassError;
use crate::scoring::chain::{Chain, Link};
use crate::scoring::steps::Steps;

/// How matrices are quantised.
pub(super) struct Calibration<'a> {
    pub method: Method,
    pub symmetric: bool,
    /// The format of each matrix.
    pub formats: &'a BTreeMap<WeightId, GroupFormat>,
    pub samples: &'a [Vec<u32>],
}

/// Codes by matrix.
pub(super) type Codes = BTreeMap<WeightId, Arc<dyn Coded>>;

impl Calibration<'_> {
    /// The codes of those matrices with a format that a `linear` of `graph` multiplies with.
    pub fn run(
        &self,
        graph: &Graph,
        weights: &WeightTable,
        progress: &dyn Progress,
    ) -> Result<Codes, PassError> {
        let chain = Chain::new(graph, weights)?;
        let feeds = chain.feeds(self.samples)?;
        let mut steps = Steps::start(progress, "quantising", chain.links.len())?;
        // What the matrices stand for once they are quantised.
        let mut rounded = weights.clone();
        let mut codes = Codes::new();
        let mut residuals: Vec<Option<Array>> = vec![None; self.samples.len()];
        for (at, link) in chain.links.iter().enumerate() {
            let known: Vec<Values> = feeds
                .iter()
                .zip(&residuals)
                .map(|(feed, residual)| Chain::known(link, feed, residual.as_ref()))
                .collect();
            for (input, matrices) in self.groups(graph, link, &codes) {
                let segment = Segment::new(graph, &rounded, link.nodes.clone())?;
                let inputs = rows(&segment, &known, input)?;
                drop(segment);
                for (weight, made) in self.quantize(&inputs, &matrices, weights)? {
                    rounded.rewrite(weight, |_| Expr::Coded {
                        matrix: Arc::clone(&made),
                        part: CodedPart::Entries,
                    })?;
                    codes.insert(weight, made);
                }
                steps.tell()?;
            }
            if at + 1 < chain.links.len() {
                let segment = Segment::new(graph, &rounded, link.nodes.clone())?;
                Chain::advance(&segment, link, &feeds, &mut residuals)?;
            }
            steps.step()?;
        }
        Ok(codes)
    }

    /// The matrices of a link that have no codes yet, with what they are multiplied with, in order.
    fn groups(&self, graph: &Graph, link: &Link, codes: &Codes) -> Vec<(ValueId, Vec<WeightId>)> {
        let mut groups: Vec<(ValueId, Vec<WeightId>)> = Vec::new();
        for &id in &link.nodes {
            let node = graph.node(id);
            let (Op::Linear, [Operand::Value(input), Operand::Weight(weight), ..]) =
                (&node.op, &node.inputs[..])
            else {
                continue;
            };
            if !self.formats.contains_key(weight) || codes.contains_key(weight) {
                continue;
            }
            match groups.iter_mut().find(|(of, _)| of == input) {
                Some((_, matrices)) => matrices.push(*weight),
                None => groups.push((*input, vec![*weight])),
            }
        }
        groups
    }

    /// The codes of matrices that share their inputs `[n, columns]`.
    fn quantize(
        &self,
        inputs: &Array,
        matrices: &[WeightId],
        weights: &WeightTable,
    ) -> Result<Codes, PassError> {
        let not_finite = || PassError::NotFinite {
            pass: NAME,
            score: "curvature",
            unit: matrices
                .first()
                .map_or(String::new(), |id| weights[*id].name.clone()),
            value: f64::NAN,
        };
        let curvature = match self.method {
            Method::Gptq => Some(Curvature::of(inputs)?.ok_or_else(not_finite)?),
            _ => None,
        };
        let importance = mean_squares(inputs);
        if importance.iter().any(|h| !h.is_finite()) {
            return Err(not_finite());
        }
        let code = |id: &WeightId| -> Result<(WeightId, Arc<dyn Coded>), PassError> {
            let weight = &weights[*id];
            let layout = Layout {
                format: self.formats[id],
                symmetric: self.symmetric,
                scales: weight.dtype,
            };
            let made = match &curvature {
                Some(curvature) => curvature.quantize(weight, layout)?,
                None => by_importance(weight, &importance, layout)?,
            };
            Ok((*id, Arc::new(made)))
        };
        matrices.iter().map(code).collect()
    }
}

/// A value of every sample, as rows.
fn rows(segment: &Segment<'_>, known: &[Values], value: ValueId) -> Result<Array, PassError> {
    let (mut data, mut width) = (Vec::new(), 1);
    for known in known {
        if let Some(array) = segment.forward(known, &[value])?.remove(&value) {
            width = array.shape().last().copied().unwrap_or(1);
            data.extend(array.into_f32().unwrap_or_default());
        }
    }
    Ok(Array::f32([data.len() / width.max(1), width], data)?)
}

/// Mean square of each column.
fn mean_squares(inputs: &Array) -> Vec<f32> {
    let width = inputs.shape().last().copied().unwrap_or(1).max(1);
    let data = inputs.as_f32().unwrap_or_default();
    let mut sums = vec![0f64; width];
    for row in data.chunks(width) {
        let squares = row.iter().map(|x| f64::from(*x).powi(2));
        sums.iter_mut().zip(squares).for_each(|(sum, x)| *sum += x);
    }
    let count = (data.len() / width).max(1) as f64;
    sums.iter().map(|sum| (sum / count) as f32).collect()
}

/// Each group by search, weighted by the columns' mean squares.
fn by_importance(
    weight: &Weight,
    importance: &[f32],
    layout: Layout,
) -> Result<HeldMatrix, PassError> {
    const ROWS: usize = 64;
    let format = layout.format;
    let columns = importance.len();
    let row = |entries: &[f32]| -> (Vec<u8>, Vec<GroupFit>) {
        let (mut codes, mut fits) = (Vec::with_capacity(columns), Vec::new());
        let groups = entries.chunks(format.group_size);
        for (group, importance) in groups.zip(importance.chunks(format.group_size)) {
            let fit = weighted::fit(layout, group, importance);
            codes.extend(group.iter().map(|w| fit.code(*w, format.largest_code())));
            fits.push(fit);
        }
        (codes, fits)
    };
    let starts: Vec<usize> = (0..weight.elements()).step_by(ROWS * columns).collect();
    let parts = starts
        .par_iter()
        .map(|&start| -> Result<Vec<_>, PassError> {
            let mut entries = vec![0.0; (ROWS * columns).min(weight.elements() - start)];
            weight.read_f32(start, &mut entries)?;
            Ok(entries.chunks(columns).map(row).collect())
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut made = HeldMatrix::new("imatrix", format, columns);
    let all = parts.iter().flatten();
    all.for_each(|(codes, fits)| made.push(codes, fits));
    Ok(made)
}
