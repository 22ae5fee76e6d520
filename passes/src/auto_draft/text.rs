//! Text that the target writes itself: what it will decode is what its draft must guess.
//!
//! All texts are written side by side, token by token behind a cache, by the evaluator; the model's weights are in memory meanwhile.

use std::collections::BTreeMap;

use dlc_eval::{Array, Segment};
use dlc_ir::{CacheRole, Graph, Module, NodeId, ValueId};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::unsupported;
use crate::context::Progress;
use crate::error::PassError;
use crate::fit_prune::chain::{NO_HEAD, feeds};
use crate::fit_prune::objective::largest;
use crate::fit_prune::steps::Steps;

/// How texts are written.
pub(super) struct Pen {
    pub seed: u64,
    pub temperature: f32,
    /// Tokens of a text, its prompt among them.
    pub length: usize,
}

/// Continues prompts of equal length, each by sampling; tokens that end a text aren't drawn.
pub(super) fn write(module: &Module, target: &Graph, prompts: &[Vec<u32>], pen: &Pen, progress: &dyn Progress) -> Result<Vec<Vec<u32>>, PassError> {
    let nodes: Vec<NodeId> = target.nodes().map(|(id, _)| id).collect();
    let segment = Segment::new(target, &module.weights, nodes)?;
    let logits = target.find_output("logits").ok_or_else(|| unsupported(NO_HEAD))?.value;
    let caches: Vec<(CacheRole, ValueId)> = target.outputs().iter().filter_map(|o| o.cache.map(|role| (role, o.value))).collect();
    let wanted: Vec<ValueId> = caches.iter().map(|(_, value)| *value).chain([logits]).collect();

    let mut rng = ChaCha8Rng::seed_from_u64(pen.seed);
    let mut texts = prompts.to_vec();
    let written = prompts.first().map_or(0, Vec::len);
    let mut steps = Steps::start(progress, "writing text with the target", pen.length.saturating_sub(written))?;
    let (mut past, mut held) = (0, BTreeMap::new());
    for _ in written..pen.length {
        let unread: Vec<&[u32]> = texts.iter().map(|text| &text[past..]).collect();
        let mut made = segment.forward(&feeds(target, &unread, past, held)?, &wanted)?;
        past = texts.first().map_or(0, Vec::len);
        held = caches.iter().filter_map(|(role, value)| Some((*role, made.remove(value)?))).collect();
        let scores = made.remove(&logits).and_then(Array::into_f32).unwrap_or_default();
        let row = scores.len() / texts.len().max(1);
        let width = module.model.vocab_size.clamp(1, row.max(1));
        for (text, scores) in texts.iter_mut().zip(scores.chunks(row.max(1))) {
            let last = scores.len().saturating_sub(width);
            text.push(draw(&scores[last..], pen.temperature, &module.model.eos_token_ids, &mut rng));
        }
        steps.step()?;
    }
    Ok(texts)
}

/// A token drawn from the scores at this temperature; the likeliest at 0.
fn draw(scores: &[f32], temperature: f32, ends: &[u32], rng: &mut ChaCha8Rng) -> u32 {
    let open = |token: usize| !ends.contains(&(token as u32));
    let scores: Vec<f64> = scores.iter().enumerate().map(|(i, &x)| if open(i) { f64::from(x) } else { f64::NEG_INFINITY }).collect();
    let best = largest(&scores);
    if temperature == 0.0 {
        return best;
    }
    let most = scores.get(best as usize).copied().unwrap_or_default();
    let weights: Vec<f64> = scores.iter().map(|x| ((x - most) / f64::from(temperature)).exp()).collect();
    let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
    let drawn = weights.iter().position(|weight| {
        left -= weight;
        left < 0.0
    });
    drawn.map_or(best, |token| token as u32)
}
