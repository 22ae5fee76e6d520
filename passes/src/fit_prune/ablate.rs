//! Scores that need no gradient: what happens to the hidden states, or to the predictions, when one unit is bypassed.

use dlc_eval::{Array, Values};

use super::chain::{Chain, Link};
use super::objective::{Objective, rows};
use super::steps::Steps;
use super::units::Unit;
use crate::context::Progress;
use crate::error::PassError;

/// Scores by bypassing.
pub(super) struct Ablation {
    /// 1 - cosine between a unit's input and output residual, mean over tokens.
    pub cosine: Vec<f64>,
    /// KL(full || without the unit) of the head's distribution in nats, mean over answers; NaN if it wasn't asked for.
    pub kl: Vec<f64>,
    /// Mean cross-entropy of the full model, in nats.
    pub loss: f64,
}

/// The residuals of all samples in the full model (`unit` is none) or in the model without one unit.
struct Variant {
    unit: Option<usize>,
    residuals: Vec<Option<Array>>,
}

/// Runs the full model and, with `kl`, the model without each unit, link by link, so that each link is loaded once.
pub(super) fn ablate(
    chain: &Chain<'_>,
    units: &[Unit],
    objective: Objective,
    samples: &[Vec<u32>],
    kl: bool,
    progress: &dyn Progress,
) -> Result<Ablation, PassError> {
    let feeds = chain.feeds(samples)?;
    let mut variants = vec![Variant { unit: None, residuals: vec![None; samples.len()] }];
    let mut cosine = vec![0.0; units.len()];
    let mut entered: Vec<Option<Array>> = Vec::new();
    let Some((head, body)) = chain.links.split_last() else { return Err(no_head()) };
    let mut steps = Steps::start(progress, "scoring by removal", (body.len() + 1) * samples.len())?;
    for link in body {
        let unit = link.block.and_then(|b| units.iter().position(|u| u.blocks.contains(&b)));
        let first = unit.is_some_and(|u| units[u].blocks.first() == link.block.as_ref());
        if let (Some(u), true) = (unit, first) {
            entered.clone_from(&variants[0].residuals);
            if kl {
                variants.push(Variant { unit: Some(u), residuals: variants[0].residuals.clone() });
            }
        }
        run_link(chain, link, unit, &feeds, &mut variants, &mut steps)?;
        if let Some(u) = unit.filter(|&u| units[u].blocks.last() == link.block.as_ref()) {
            cosine[u] = 1.0 - mean_cosine(&entered, &variants[0].residuals);
        }
    }
    let mut ablation = Ablation { cosine, kl: vec![f64::NAN; units.len()], loss: 0.0 };
    predict(&Head { chain, link: head, objective }, &feeds, &variants, samples, &mut steps, &mut ablation)?;
    Ok(ablation)
}

fn no_head() -> PassError {
    PassError::Unsupported { pass: super::NAME, problem: "the target has no head".into() }
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
        for variant in variants.iter_mut().filter(|v| v.unit.is_none() || v.unit != unit) {
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
    steps: &mut Steps<'_>,
    into: &mut Ablation,
) -> Result<(), PassError> {
    let segment = head.chain.load(head.link)?;
    let log_probabilities = |variant: &Variant, s: usize| -> Result<Vec<Vec<f64>>, PassError> {
        let logits = Chain::forward(&segment, head.link, &feeds[s], variant.residuals[s].as_ref())?;
        Ok(rows(&logits).iter().map(|row| log_softmax(row)).collect())
    };
    let Some((full, pruned)) = variants.split_first() else { return Err(no_head()) };
    let mut divergences = vec![vec![]; pruned.len()];
    let mut losses = vec![];
    for (s, tokens) in samples.iter().enumerate() {
        let p = log_probabilities(full, s)?;
        losses.push(mean(p.iter().zip(head.objective.targets(&p, tokens)).map(|(row, t)| row.get(t as usize).map_or(f64::NAN, |log_p| -log_p))));
        for (variant, divergences) in pruned.iter().zip(&mut divergences) {
            let q = log_probabilities(variant, s)?;
            divergences.extend(p.iter().zip(&q).map(|(p, q)| divergence(p, q)));
        }
        steps.step()?;
    }
    for (variant, divergences) in pruned.iter().zip(divergences) {
        if let Some(unit) = variant.unit {
            into.kl[unit] = mean(divergences.into_iter());
        }
    }
    into.loss = mean(losses.into_iter());
    Ok(())
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logits.iter().map(|x| (x - max).exp()).sum();
    logits.iter().map(|x| x - max - total.ln()).collect()
}

fn divergence(log_p: &[f64], log_q: &[f64]) -> f64 {
    log_p.iter().zip(log_q).map(|(p, q)| p.exp() * (p - q)).sum()
}

fn mean_cosine(before: &[Option<Array>], after: &[Option<Array>]) -> f64 {
    let pairs = before.iter().zip(after).filter_map(|(a, b)| Some((a.as_ref()?, b.as_ref()?)));
    mean(pairs.flat_map(|(a, b)| {
        let width = a.shape().last().copied().unwrap_or(1).max(1);
        let (a, b) = (a.as_f32().unwrap_or_default(), b.as_f32().unwrap_or_default());
        a.chunks(width).zip(b.chunks(width)).map(|(x, y)| cosine(x, y)).collect::<Vec<_>>()
    }))
}

/// Zeros have no direction: they are like zeros only (the embedding of a padding token is all zeros in some checkpoints).
fn cosine(x: &[f32], y: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let zeros = |a: &[f32]| a.iter().all(|&x| x == 0.0);
    if zeros(x) || zeros(y) {
        return f64::from(u8::from(zeros(x) && zeros(y)));
    }
    dot(x, y) / (dot(x, x) * dot(y, y)).sqrt()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0usize), |(sum, n), v| (sum + v, n + 1));
    sum / n as f64
}
