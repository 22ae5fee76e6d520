//! Text that the target writes itself: what it will decode is what its draft must guess.
//!
//! All texts are written side by side, token by token after a cache, by the evaluator; the model's
//! weights are in memory meanwhile.

use std::collections::BTreeMap;

use dlc_eval::{Array, Segment};
use dlc_ir::{CacheRole, Graph, Module, NodeId, ValueId};
use dlc_methods::speculation::{Sampler, SamplingOptions};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::context::Progress;
use crate::error::PassError;
use crate::kept::Kept;
use crate::scoring::chain::{NO_HEAD, feeds};
use crate::scoring::steps::Steps;
use crate::scoring::unsupported;

/// How texts are written.
pub(super) struct WriteOptions {
    pub seed: u64,
    pub temperature: f32,
    /// Tokens of a text, its prompt among them.
    pub length: usize,
}

/// Continues prompts of equal length, each by sampling; tokens that end a text aren't drawn. Goes
/// on where an earlier run was stopped: after each token the texts are kept, and what it added to
/// the caches, until all that is [forgotten](forget).
pub(super) fn write(
    module: &Module,
    target: &Graph,
    prompts: &[Vec<u32>],
    options: &WriteOptions,
    kept: Kept<'_>,
    progress: &dyn Progress,
) -> Result<Vec<Vec<u32>>, PassError> {
    let nodes: Vec<NodeId> = target.nodes().map(|(id, _)| id).collect();
    let segment = Segment::new(target, &module.weights, nodes)?;
    let logits = target
        .find_output("logits")
        .ok_or_else(|| unsupported(NO_HEAD))?
        .value;
    let caches: Vec<(CacheRole, ValueId)> = target
        .outputs()
        .iter()
        .filter_map(|o| o.cache.map(|role| (role, o.value)))
        .collect();
    let wanted: Vec<ValueId> = caches
        .iter()
        .map(|(_, value)| *value)
        .chain([logits])
        .collect();

    let sampler = Sampler::new(SamplingOptions {
        temperature: options.temperature,
        ..SamplingOptions::default()
    })?;
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let written = prompts.first().map_or(0, Vec::len);
    let mut steps = Steps::start(
        progress,
        "writing text with the target",
        options.length.saturating_sub(written),
    )?;
    let roles: Vec<CacheRole> = caches.iter().map(|(role, _)| *role).collect();
    let (mut texts, mut held) = known(prompts, options.length, &roles, kept)
        .unwrap_or_else(|| (prompts.to_vec(), BTreeMap::new()));
    let so_far = texts.first().map_or(0, Vec::len);
    // The last token that was drawn isn't read yet.
    let mut past = if so_far > written { so_far - 1 } else { 0 };
    steps.skip(so_far - written);
    if options.temperature != 0.0 {
        for _ in 0..(so_far - written) * texts.len() {
            let _: f64 = rng.random();
        }
    }
    for now in so_far..options.length {
        let unread: Vec<&[u32]> = texts.iter().map(|text| &text[past..]).collect();
        let mut made = segment.forward(&feeds(target, &unread, past, held)?, &wanted)?;
        held = caches
            .iter()
            .filter_map(|(role, value)| Some((*role, made.remove(value)?)))
            .collect();
        let scores = made
            .remove(&logits)
            .and_then(Array::into_f32)
            .unwrap_or_default();
        let row = scores.len() / texts.len().max(1);
        let width = module.model.vocab_size.clamp(1, row.max(1));
        for (text, scores) in texts.iter_mut().zip(scores.chunks(row.max(1))) {
            let last = scores.len().saturating_sub(width);
            let uniform = if options.temperature == 0.0 {
                0.0
            } else {
                rng.random()
            };
            text.push(next_token(
                &sampler,
                &scores[last..],
                now,
                &module.model.eos_token_ids,
                uniform,
            )?);
        }
        let added: Option<Vec<Array>> = roles
            .iter()
            .map(|role| after(held.get(role)?, past, now))
            .collect();
        if let Some(added) = added {
            kept.put_arrays(&caches_part(now), &added);
            kept.put(TEXTS, &texts);
        }
        past = now;
        steps.step()?;
    }
    Ok(texts)
}

const TEXTS: &str = "texts";

fn caches_part(tokens: usize) -> String {
    format!("caches {tokens}")
}

/// Forgets what stopped runs have kept of texts of so many tokens.
pub(super) fn forget(kept: Kept<'_>, length: usize) {
    kept.remove(TEXTS);
    (0..length).for_each(|tokens| kept.remove(&caches_part(tokens)));
}

type Written = (Vec<Vec<u32>>, BTreeMap<CacheRole, Array>);

/// The texts that an earlier run kept, and the caches after all of their tokens but the last.
fn known(
    prompts: &[Vec<u32>],
    length: usize,
    roles: &[CacheRole],
    kept: Kept<'_>,
) -> Option<Written> {
    let texts: Vec<Vec<u32>> = kept.get(TEXTS)?;
    let (written, so_far) = (prompts.first()?.len(), texts.first()?.len());
    let continues =
        |(text, prompt): (&Vec<u32>, &Vec<u32>)| text.len() == so_far && text.starts_with(prompt);
    if texts.len() != prompts.len()
        || so_far > length
        || so_far <= written
        || !texts.iter().zip(prompts).all(continues)
    {
        return None;
    }
    let parts = (written..so_far)
        .map(|tokens| kept.arrays(&caches_part(tokens), roles.len()))
        .collect::<Option<Vec<_>>>()?;
    let joined = |at: usize| {
        joined(
            &parts.iter().map(|arrays| &arrays[at]).collect::<Vec<_>>(),
            so_far - 1,
        )
    };
    let held = roles
        .iter()
        .enumerate()
        .map(|(at, role)| Some((*role, joined(at)?)))
        .collect::<Option<_>>()?;
    Some((texts, held))
}

/// What a cache `[batch, heads, tokens, width]` of so many tokens holds after the first `past`.
fn after(cache: &Array, past: usize, tokens: usize) -> Option<Array> {
    let &[batch, heads, length, width] = cache.shape() else {
        return None;
    };
    let rows = cache.as_f32()?.chunks((length * width).max(1));
    let data = rows
        .flat_map(|row| row.get(past * width..).unwrap_or_default())
        .copied()
        .collect();
    if length == tokens {
        Array::f32([batch, heads, length - past, width], data).ok()
    } else {
        None
    }
}

/// Parts of a cache of so many tokens, one after the other.
fn joined(parts: &[&Array], tokens: usize) -> Option<Array> {
    let &[batch, heads, _, width] = parts.first()?.shape() else {
        return None;
    };
    let mut data = Vec::with_capacity(batch * heads * tokens * width);
    for row in 0..batch * heads {
        for part in parts {
            let &[.., length, _] = part.shape() else {
                return None;
            };
            data.extend_from_slice(
                part.as_f32()?
                    .get(row * length * width..(row + 1) * length * width)?,
            );
        }
    }
    Array::f32([batch, heads, tokens, width], data).ok()
}

/// The token that follows: the likeliest, or the one at `uniform` of the sampler's distribution;
/// none that ends a text.
fn next_token(
    sampler: &Sampler,
    scores: &[f32],
    position: usize,
    ends: &[u32],
    uniform: f64,
) -> Result<u32, PassError> {
    let mut scores = scores.to_vec();
    for end in ends {
        if let Some(score) = scores.get_mut(*end as usize) {
            *score = f32::NEG_INFINITY;
        }
    }
    Ok(sampler.distribution(&scores, position)?.token_at(uniform))
}
