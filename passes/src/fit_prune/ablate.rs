//! Scores that need no gradient: what happens to the hidden states, or to the predictions, when one
//! unit is bypassed.

use dlc_eval::{Array, Values};
use serde::{Deserialize, Serialize};

use super::options::Score;
use super::units::Unit;
use crate::context::Progress;
use crate::error::PassError;
use crate::kept::Kept;
use crate::scoring::chain::{Chain, Link};
use crate::scoring::objective::{Objective, rows};
use crate::scoring::steps::Steps;

/// Scores by bypassing.
pub(super) struct Ablation {
    /// 1 - cosine between a unit's input and output residual, mean over tokens.
    pub cosine: Vec<f64>,
    /// 1 - cosine between the last residuals of the full model and of the one without the unit,
    /// mean over tokens; NaN if it wasn't asked for, as `kl`.
    pub similarity: Vec<f64>,
    /// KL(full || without the unit) of the head's distribution in nats, mean over answers.
    pub kl: Vec<f64>,
    /// Mean cross-entropy of the full model, in nats.
    pub loss: f64,
}

/// The residuals of all samples in the full model (`unit` is none) or in the model without one
/// unit.
struct Variant {
    unit: Option<usize>,
    residuals: Vec<Option<Array>>,
}

/// How far the links before the head are.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Body {
    links: usize,
    cosine: Vec<f64>,
    /// The unit that each variant lacks.
    lacking: Vec<Option<usize>>,
    /// Whether a unit is under way, so that its input is kept as well.
    entered: bool,
}

/// How far the head is, in samples: sum and number of losses, and of each variant's divergences.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Predicted {
    samples: usize,
    loss: (f64, usize),
    divergences: Vec<(f64, usize)>,
}

const BODY: &str = "body";
const PREDICTED: &str = "predicted";

fn residuals_part(links: usize) -> String {
    format!("residuals {links}")
}

/// Forgets what runs over so many links have kept.
pub(super) fn forget(kept: Kept<'_>, links: usize) {
    kept.remove(BODY);
    kept.remove(PREDICTED);
    (0..=links).for_each(|at| kept.remove(&residuals_part(at)));
}

/// Runs the full model and, if one of `scores` asks for it, the model without each unit, link by
/// link, so that each link is loaded once. Goes on where an earlier run was stopped: all residuals are kept after each
/// link, sums after each sample of the head.
pub(super) fn ablate(
    chain: &Chain<'_>,
    units: &[Unit],
    objective: Objective,
    samples: &[Vec<u32>],
    scores: &[Score],
    kept: Kept<'_>,
    progress: &dyn Progress,
) -> Result<Ablation, PassError> {
    let removes = scores.iter().any(|s| s.needs_removal());
    let feeds = chain.feeds(samples)?;
    let Some((head, body)) = chain.links.split_last() else {
        return Err(no_head());
    };
    let mut steps = Steps::start(
        progress,
        "scoring by removal",
        (body.len() + 1) * samples.len(),
    )?;
    let mut state = State::kept(kept, units.len(), samples.len())
        .unwrap_or_else(|| State::new(units.len(), samples.len()));
    steps.skip(state.links * samples.len());
    for link in body.iter().skip(state.links) {
        let unit = link
            .block
            .and_then(|b| units.iter().position(|u| u.blocks.contains(&b)));
        let first = unit.is_some_and(|u| units[u].blocks.first() == link.block.as_ref());
        if let (Some(u), true) = (unit, first) {
            state.entered = Some(state.variants[0].residuals.clone());
            if removes {
                let residuals = state.variants[0].residuals.clone();
                state.variants.push(Variant {
                    unit: Some(u),
                    residuals,
                });
            }
        }
        run_link(chain, link, unit, &feeds, &mut state.variants, &mut steps)?;
        if let Some(u) = unit.filter(|&u| units[u].blocks.last() == link.block.as_ref()) {
            state.cosine[u] = 1.0
                - mean_cosine(
                    &state.entered.take().unwrap_or_default(),
                    &state.variants[0].residuals,
                );
        }
        state.links += 1;
        state.keep(kept);
    }
    let mut similarity = vec![f64::NAN; units.len()];
    if let Some((full, others)) = state.variants.split_first() {
        for variant in others {
            if let Some(unit) = variant.unit {
                similarity[unit] = 1.0 - mean_cosine(&full.residuals, &variant.residuals);
            }
        }
    }
    if !scores.contains(&Score::Kl) {
        state.variants.truncate(1);
    }
    let mut ablation = Ablation {
        cosine: state.cosine,
        similarity,
        kl: vec![f64::NAN; units.len()],
        loss: 0.0,
    };
    let head = Head {
        chain,
        link: head,
        objective,
    };
    predict(
        &head,
        &feeds,
        &state.variants,
        samples,
        kept,
        &mut steps,
        &mut ablation,
    )?;
    Ok(ablation)
}

/// What is known after some links.
struct State {
    links: usize,
    cosine: Vec<f64>,
    /// The first is the full model.
    variants: Vec<Variant>,
    /// What the unit under way read.
    entered: Option<Vec<Option<Array>>>,
}

impl State {
    fn new(units: usize, samples: usize) -> Self {
        Self {
            links: 0,
            cosine: vec![0.0; units],
            variants: vec![Variant {
                unit: None,
                residuals: vec![None; samples],
            }],
            entered: None,
        }
    }

    fn keep(&self, kept: Kept<'_>) {
        let entered = self.entered.iter().flatten();
        kept.put_arrays(
            &residuals_part(self.links),
            self.variants
                .iter()
                .flat_map(|v| &v.residuals)
                .chain(entered)
                .flatten(),
        );
        let lacking = self.variants.iter().map(|v| v.unit).collect();
        kept.put(
            BODY,
            &Body {
                links: self.links,
                cosine: self.cosine.clone(),
                lacking,
                entered: self.entered.is_some(),
            },
        );
        kept.remove(&residuals_part(self.links - 1));
    }

    /// What an earlier run kept, with residuals of so many samples.
    fn kept(kept: Kept<'_>, units: usize, samples: usize) -> Option<Self> {
        let body: Body = kept.get(BODY)?;
        let fits = |unit: &Option<usize>| unit.is_none_or(|u| u < units);
        if body.cosine.len() != units
            || body.lacking.first() != Some(&None)
            || !body.lacking.iter().all(fits)
        {
            return None;
        }
        let rows = body.lacking.len() + usize::from(body.entered);
        let mut arrays = kept
            .arrays(&residuals_part(body.links), rows * samples)?
            .into_iter()
            .map(Some);
        let mut row = || arrays.by_ref().take(samples).collect::<Vec<_>>();
        let variants = body
            .lacking
            .into_iter()
            .map(|unit| Variant {
                unit,
                residuals: row(),
            })
            .collect();
        let entered = body.entered.then(&mut row);
        Some(Self {
            links: body.links,
            cosine: body.cosine,
            variants,
            entered,
        })
    }
}

fn no_head() -> PassError {
    PassError::Unsupported {
        pass: super::NAME,
        problem: "the target has no head".into(),
    }
}

/// Advances every variant over `link`, but for the one without the link's unit.
fn run_link(
    chain: &Chain<'_>,
    link: &Link,
    unit: Option<usize>,
    feeds: &[Values],
    variants: &mut [Variant],
    steps: &mut Steps<'_>,
) -> Result<(), PassError> {
    let segment = chain.load(link)?;
    for (s, feed) in feeds.iter().enumerate() {
        for variant in variants
            .iter_mut()
            .filter(|v| v.unit.is_none() || v.unit != unit)
        {
            let residual = &mut variant.residuals[s];
            *residual = Some(Chain::forward(&segment, link, feed, residual.as_ref())?);
        }
        steps.step()?;
    }
    Ok(())
}

/// The last link, and what its answers are judged by.
struct Head<'a> {
    chain: &'a Chain<'a>,
    link: &'a Link,
    objective: Objective,
}

/// Runs the head, a sample and a variant at a time, since logits are large.
fn predict(
    head: &Head<'_>,
    feeds: &[Values],
    variants: &[Variant],
    samples: &[Vec<u32>],
    kept: Kept<'_>,
    steps: &mut Steps<'_>,
    into: &mut Ablation,
) -> Result<(), PassError> {
    let segment = head.chain.load(head.link)?;
    let log_probabilities = |variant: &Variant, s: usize| -> Result<Vec<Vec<f64>>, PassError> {
        let logits = Chain::forward(
            &segment,
            head.link,
            &feeds[s],
            variant.residuals[s].as_ref(),
        )?;
        Ok(rows(&logits).iter().map(|row| log_softmax(row)).collect())
    };
    let Some((full, pruned)) = variants.split_first() else {
        return Err(no_head());
    };
    let fits = |known: &Predicted| {
        known.samples <= samples.len() && known.divergences.len() == pruned.len()
    };
    let mut known: Predicted = kept.get(PREDICTED).filter(fits).unwrap_or_default();
    known.divergences.resize(pruned.len(), (0.0, 0));
    steps.skip(known.samples);
    for (s, tokens) in samples.iter().enumerate().skip(known.samples) {
        let p = log_probabilities(full, s)?;
        let loss = mean(
            p.iter()
                .zip(head.objective.targets(&p, tokens))
                .map(|(row, t)| row.get(t as usize).map_or(f64::NAN, |log_p| -log_p)),
        );
        known.loss = add(known.loss, loss);
        for (variant, sum) in pruned.iter().zip(&mut known.divergences) {
            let q = log_probabilities(variant, s)?;
            *sum = p
                .iter()
                .zip(&q)
                .map(|(p, q)| divergence(p, q))
                .fold(*sum, add);
        }
        known.samples = s + 1;
        kept.put(PREDICTED, &known);
        steps.step()?;
    }
    for (variant, (sum, n)) in pruned.iter().zip(known.divergences) {
        if let Some(unit) = variant.unit {
            into.kl[unit] = sum / n as f64;
        }
    }
    into.loss = known.loss.0 / known.loss.1 as f64;
    Ok(())
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logits.iter().map(|x| (x - max).exp()).sum();
    logits.iter().map(|x| x - max - total.ln()).collect()
}

fn divergence(log_p: &[f64], log_q: &[f64]) -> f64 {
    log_p
        .iter()
        .zip(log_q)
        .map(|(p, q)| p.exp() * (p - q))
        .sum()
}

fn mean_cosine(before: &[Option<Array>], after: &[Option<Array>]) -> f64 {
    let pairs = before
        .iter()
        .zip(after)
        .filter_map(|(a, b)| Some((a.as_ref()?, b.as_ref()?)));
    mean(pairs.flat_map(|(a, b)| {
        let width = a.shape().last().copied().unwrap_or(1).max(1);
        let (a, b) = (
            a.as_f32().unwrap_or_default(),
            b.as_f32().unwrap_or_default(),
        );
        a.chunks(width)
            .zip(b.chunks(width))
            .map(|(x, y)| cosine(x, y))
            .collect::<Vec<_>>()
    }))
}

/// Zeros have no direction: they are like zeros only (the embedding of a padding token is all zeros
/// in some checkpoints).
fn cosine(x: &[f32], y: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| {
        a.iter()
            .zip(b)
            .map(|(&a, &b)| f64::from(a) * f64::from(b))
            .sum::<f64>()
    };
    let zeros = |a: &[f32]| a.iter().all(|&x| x == 0.0);
    if zeros(x) || zeros(y) {
        return f64::from(u8::from(zeros(x) && zeros(y)));
    }
    dot(x, y) / (dot(x, x) * dot(y, y)).sqrt()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0), add);
    sum / n as f64
}

/// One more number in a sum.
fn add((sum, n): (f64, usize), value: f64) -> (f64, usize) {
    (sum + value, n + 1)
}
