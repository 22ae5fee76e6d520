//! Plain against speculative decoding, side by side: speed, acceptance and equality of what is
//! written; and encoders side by side.
//!
//! Decoding is greedy only, since only then equality means something for a single text. Never
//! prints.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use dlc_ir::ModelInfo;
use dlc_methods::speculation::{
    CostTable, DecodeOptions, Decoder, Generation, RowMemory, Stats, StepCosts, SuffixIndex, TIE,
    TokenModel,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{EncoderSession, Result, Timing, TokenizedText};

/// How the speculative text compares with the plain one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Equality {
    /// Token for token the same.
    Equal,
    /// They part at token `at`, where the target's logits of both tokens differ by `gap` only,
    /// which is rounding.
    Tie {
        /// Index of the first token that differs.
        at: usize,
        /// Difference of the two tokens' logits.
        gap: f32,
    },
    /// They part at token `at` and shouldn't.
    Different {
        /// Index of the first token that differs.
        at: usize,
        /// Difference of the two tokens' logits; NaN where one text just ends.
        gap: f32,
    },
}

/// What one prompt took.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptMeasurement {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// The plain text.
    pub tokens: Vec<u32>,
    /// Median seconds of plain decoding, without the prompt.
    pub plain_seconds: f64,
    /// Median seconds of speculative decoding, without the prompt.
    pub speculative_seconds: f64,
    /// The shortest and the longest run of plain decoding, in seconds.
    pub plain_range: [f64; 2],
    /// The shortest and the longest run of speculative decoding, in seconds.
    pub speculative_range: [f64; 2],
    /// Counts of a speculative run.
    pub stats: Stats,
    /// How the texts compare.
    pub equality: Equality,
}

/// Continues `prompt` from empty caches.
///
/// # Errors
/// As [`Decoder::new`] and [`Decoder::generate`].
pub fn decode<'m>(
    target: &'m mut dyn TokenModel,
    draft: Option<&'m mut dyn TokenModel>,
    prompt: &[u32],
    options: &DecodeOptions,
) -> Result<Generation> {
    let mut decoder = Decoder::new(target, draft, options.clone())?;
    Ok(decoder.generate(prompt, &mut |_| ControlFlow::Continue(()))?)
}

/// Decodes `prompt` plainly and speculatively in alternation, `repeats` times each. Without a
/// draft, what is looked up in the text is all that speculates.
///
/// # Errors
/// As [`decode`].
pub fn measure(
    target: &mut dyn TokenModel,
    draft: Option<&mut dyn TokenModel>,
    prompt: &[u32],
    options: &DecodeOptions,
    repeats: usize,
) -> Result<PromptMeasurement> {
    let alone = SuffixIndex::default();
    let [measured] = measure_after(target, draft, prompt, options, [&alone], repeats)?;
    Ok(measured)
}

/// Decodes `prompt` plainly, and speculatively with lookups in each of these histories, all in
/// alternation, `repeats` times each. The histories stay as they are.
///
/// # Errors
/// As [`decode`].
pub fn measure_after<const N: usize>(
    target: &mut dyn TokenModel,
    mut draft: Option<&mut dyn TokenModel>,
    prompt: &[u32],
    options: &DecodeOptions,
    histories: [&SuffixIndex; N],
    repeats: usize,
) -> Result<[PromptMeasurement; N]> {
    let mut plain = Vec::new();
    let mut speculative = [const { Vec::new() }; N];
    let alone = DecodeOptions {
        lookup: None,
        ..options.clone()
    };
    for _ in 0..repeats.max(1) {
        plain.push(decode(target, None, prompt, &alone)?);
        for (runs, &history) in speculative.iter_mut().zip(&histories) {
            let draft = draft
                .as_mut()
                .map(|draft| &mut **draft as &mut dyn TokenModel);
            let mut decoder =
                Decoder::new(target, draft, options.clone())?.remembering(history.clone());
            runs.push(decoder.generate(prompt, &mut |_| ControlFlow::Continue(()))?);
        }
    }
    let text = &plain[0].tokens;
    let mut equalities = [Equality::Equal; N];
    for (equality, runs) in equalities.iter_mut().zip(&speculative) {
        *equality = compare(target, prompt, text, &runs[0].tokens, options)?;
    }
    let timing = |runs: &[Generation]| Timing::of(runs.iter().map(decode_seconds));
    let plain_time = timing(&plain);
    Ok(std::array::from_fn(|i| {
        let speculative_time = timing(&speculative[i]);
        PromptMeasurement {
            prompt_tokens: prompt.len(),
            tokens: text.clone(),
            plain_seconds: plain_time.median(),
            speculative_seconds: speculative_time.median(),
            plain_range: plain_time.range(),
            speculative_range: speculative_time.range(),
            stats: speculative[i][0].stats,
            equality: equalities[i],
        }
    }))
}

impl PromptMeasurement {
    /// The least and the greatest speedup that these runs allow.
    pub fn speedup_range(&self) -> [f64; 2] {
        [
            self.plain_range[0] / self.speculative_range[1],
            self.plain_range[1] / self.speculative_range[0],
        ]
    }
}

/// Compares two greedy continuations of `prompt`; where they part, asks `target` by how much the
/// two tokens differ, as they are chosen.
///
/// # Errors
/// [`RuntimeError::Method`](super::RuntimeError::Method) for what `target` says.
pub fn compare(
    target: &mut dyn TokenModel,
    prompt: &[u32],
    a: &[u32],
    b: &[u32],
    options: &DecodeOptions,
) -> Result<Equality> {
    let Some(at) = (0..a.len().max(b.len())).find(|&i| a.get(i) != b.get(i)) else {
        return Ok(Equality::Equal);
    };
    let (Some(&x), Some(&y)) = (a.get(at), b.get(at)) else {
        return Ok(Equality::Different { at, gap: f32::NAN });
    };
    target.rollback(0);
    let prefix = [prompt, &a[..at]].concat();
    let (mut gap, mut memory) = (f32::NAN, RowMemory::default());
    let reading = target.expect(prompt.len(), options.prefill_chunk);
    for part in prefix.chunks(reading.piece(prompt.len())) {
        let logits = target.extend(part, 1)?;
        let row = options
            .process(logits.row(0), prompt.len(), &prefix, &mut memory)
            .unwrap_or_default();
        gap = match (row.get(x as usize), row.get(y as usize)) {
            (Some(p), Some(q)) => (p - q).abs(),
            _ => f32::NAN,
        };
    }
    Ok(if gap < TIE {
        Equality::Tie { at, gap }
    } else {
        Equality::Different { at, gap }
    })
}

/// Steps of a draft in each turn of [`time_passes`].
const STEPS: usize = 3;
/// Tokens of the passes that [`time_passes`] times.
const PASSES: [usize; 7] = [1, 2, 4, 6, 8, 12, 16];

/// What passes cost after `prompt`, see [`time_passes`]. Without a draft its cost is 1.
///
/// # Errors
/// As [`time_passes`].
pub fn calibrate(
    target: &mut dyn TokenModel,
    draft: Option<&mut dyn TokenModel>,
    prompt: &[u32],
    repeats: usize,
) -> Result<CostTable> {
    let mut drafts: Vec<&mut dyn TokenModel> = draft.into_iter().collect();
    let StepCosts { steps, verify, .. } =
        time_passes(target, &mut drafts, prompt, repeats, Duration::ZERO)?;
    Ok(CostTable {
        draft: steps.first().copied().unwrap_or(1.0),
        verify,
    })
}

/// Tokens after which passes are timed: as many as are typical, or as the context takes.
pub fn calibration_prompt(model: &ModelInfo) -> Vec<u32> {
    const PAST: usize = 128;
    let past = PAST.min(model.context_length / 2).max(1);
    (0..past as u32)
        .map(|i| (i * 7919) % model.vocab_size.max(1) as u32)
        .collect()
}

/// Times passes after `prompt`, all kinds in turn, `repeats` times and for the time `least`: the
/// fastest counts, since everything but the pass only adds. What a step of each draft costs, and a
/// target pass over k tokens as (k, v(k)), in target steps.
///
/// # Errors
/// [`RuntimeError::Method`](super::RuntimeError::Method) for what the models say, of a prompt that
/// is empty or too long, for one.
pub fn time_passes(
    target: &mut dyn TokenModel,
    drafts: &mut [&mut dyn TokenModel],
    prompt: &[u32],
    repeats: usize,
    least: Duration,
) -> Result<StepCosts> {
    let room = target.context_length().saturating_sub(prompt.len());
    let sizes: Vec<usize> = PASSES.into_iter().filter(|&k| k <= room.max(1)).collect();
    let (mut passes, mut steps) = (
        vec![Duration::MAX; sizes.len()],
        vec![Vec::new(); drafts.len()],
    );
    read(target, prompt)?;
    for draft in &mut *drafts {
        read(&mut **draft, prompt)?;
    }
    let started = Instant::now();
    let mut turn = 0;
    // A pass finds its weights as near as they get only after another of the same model.
    while turn < repeats.max(1) || started.elapsed() < least {
        turn += 1;
        pass_time(target, prompt, 1)?;
        for (&size, least) in sizes.iter().zip(&mut passes) {
            *least = pass_time(target, prompt, size)?.min(*least);
        }
        for (draft, times) in drafts.iter_mut().zip(&mut steps) {
            let mut least = Duration::MAX;
            for _ in 0..STEPS {
                least = pass_time(&mut **draft, prompt, 1)?.min(least);
            }
            times.push(least.as_secs_f64());
        }
    }
    let unit = passes[0].as_secs_f64().max(f64::MIN_POSITIVE);
    let share = |seconds: f64| (seconds / unit).max(f64::MIN_POSITIVE);
    let steps: Vec<Timing> = steps.into_iter().map(Timing::of).collect();
    Ok(StepCosts {
        steps: steps.iter().map(|step| share(step.range()[0])).collect(),
        verify: sizes
            .into_iter()
            .zip(passes.iter().map(|time| share(time.as_secs_f64())))
            .collect(),
        spreads: steps.iter().map(Timing::spread).collect(),
    })
}

fn read(model: &mut dyn TokenModel, prompt: &[u32]) -> Result<()> {
    model.rollback(0);
    model.extend(prompt, 1)?;
    Ok(())
}

/// The time of one pass over `size` tokens after `prompt`, which is cached.
fn pass_time(model: &mut dyn TokenModel, prompt: &[u32], size: usize) -> Result<Duration> {
    let run: Vec<u32> = prompt.iter().copied().cycle().take(size).collect();
    let start = Instant::now();
    model.extend(&run, size)?;
    let time = start.elapsed();
    model.rollback(prompt.len());
    Ok(time)
}

/// What each encoder takes for one text of `length` random tokens, in alternation.
///
/// # Errors
/// As [`EncoderSession::run`].
pub fn latencies(
    sessions: &mut [&mut EncoderSession],
    length: usize,
    vocab: usize,
    repeats: usize,
) -> Result<Vec<Timing>> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let ids: Vec<u32> = (0..length)
        .map(|_| rng.random_range(0..vocab.max(1) as u32))
        .collect();
    let text = [TokenizedText {
        types: vec![0; length],
        ids,
        ..TokenizedText::default()
    }];
    let mut seconds = vec![Vec::new(); sessions.len()];
    // The first run of each loads what the others find loaded.
    for turn in 0..=repeats.max(1) {
        for (session, seconds) in sessions.iter_mut().zip(&mut seconds) {
            let start = Instant::now();
            session.run(&text)?;
            if turn > 0 {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
    }
    Ok(seconds.into_iter().map(Timing::of).collect())
}

fn decode_seconds(generation: &Generation) -> f64 {
    (generation.stats.draft_time + generation.stats.verify_time).as_secs_f64()
}
