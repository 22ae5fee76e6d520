//! Lossless speculative decoding over [`TokenModel`]s (Leviathan et al. 2023; Chen et al. 2023),
//! plain decoding being the case without a draft.
//!
//! The words come from the target's distribution, whatever the draft proposes; greedy decoding is
//! the case of distributions with one entry. Never prints, and never looks inside a model: a cache
//! is a length.

mod length;
mod round;
mod stats;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::speculation::CostTable;

pub use self::length::DraftLength;
use self::length::{DRAFT_ACCEPTANCE, Planner};
use self::round::Proposal;
pub use self::stats::{SourceStats, Stats};
use super::processors::{Place, RowMemory};
use super::{Guess, LogitsProcessors, Reading, Sampler, SamplingOptions, SuffixIndex, TokenModel};
use crate::{MethodError, Result};

/// How a text is continued.
#[derive(Debug, Clone)]
pub struct DecodeOptions {
    /// The most tokens to write.
    pub max_tokens: usize,
    /// The most tokens of prompt and text together, if that is limited below the context.
    pub max_length: Option<usize>,
    /// Tokens that are proposed per round.
    pub draft_length: DraftLength,
    /// Proposes what followed the last tokens, at least this many, where they stood before, in this
    /// text or in [earlier ones](Decoder::remembering); None doesn't look.
    pub lookup: Option<usize>,
    /// How often the draft's guesses should be right at first, from 0 to 1, for
    /// [`DraftLength::Adaptive`].
    pub draft_acceptance: f64,
    /// What passes cost, for [`DraftLength::Adaptive`].
    pub costs: CostTable,
    /// Tokens per pass while the prompt is read.
    pub prefill_chunk: usize,
    /// Tokens that end the text; they aren't part of it.
    pub stop_tokens: Vec<u32>,
    /// What changes logits before tokens are chosen.
    pub processors: LogitsProcessors,
    /// How tokens are drawn.
    pub sampling: SamplingOptions,
    /// The draft stops proposing when its most likely token is less likely than this; 0 never stops
    /// early.
    pub draft_confidence: f32,
    /// Told how many of the prompt's tokens are read, of how many.
    pub on_prompt: Option<fn(usize, usize)>,
    /// Set from another thread to end the text after the pass that is running.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            max_length: None,
            draft_length: DraftLength::Adaptive,
            lookup: None,
            draft_acceptance: DRAFT_ACCEPTANCE,
            costs: CostTable::default(),
            prefill_chunk: 512,
            stop_tokens: Vec::new(),
            processors: LogitsProcessors::default(),
            sampling: SamplingOptions::default(),
            draft_confidence: 0.0,
            on_prompt: None,
            cancel: None,
        }
    }
}

impl DecodeOptions {
    /// The most tokens of prompt and text together for a prompt of so many.
    fn longest(&self, prompt: usize) -> usize {
        prompt
            .saturating_add(self.max_tokens)
            .min(self.max_length.unwrap_or(usize::MAX))
    }

    /// The logits after `text`, whose first `prompt` tokens are the prompt, as a token is chosen by
    /// them; None if the processors leave none of those that there are.
    pub fn process<'r>(
        &self,
        logits: &'r [f32],
        prompt: usize,
        text: &[u32],
        memory: &'r mut RowMemory,
    ) -> Option<&'r [f32]> {
        let most = self.longest(prompt);
        let row = self
            .processors
            .process(logits, Place { text, prompt, most }, memory);
        let left = |row: &[f32]| row.iter().any(|x| *x > f32::NEG_INFINITY || x.is_nan());
        (left(row) || !left(logits)).then_some(row)
    }
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The model wrote this stop token.
    StopToken(u32),
    /// [`DecodeOptions::max_tokens`] are written, or [`DecodeOptions::max_length`] is reached.
    MaxTokens,
    /// The target's context is full.
    ContextFull,
    /// The callback broke off.
    Caller,
    /// [`DecodeOptions::cancel`] was set.
    Interrupted,
}

/// A finished continuation.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The tokens, without prompt and stop token.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub stop: StopReason,
    /// What it took.
    pub stats: Stats,
}

/// Continues token sequences with a target and, if there is one, its draft.
///
/// What both caches hold of an earlier sequence is used again: a prompt that begins with it is read
/// from where they differ.
pub struct Decoder<'m> {
    target: &'m mut dyn TokenModel,
    draft: Option<&'m mut dyn TokenModel>,
    options: DecodeOptions,
    sampler: Sampler,
    planner: Planner,
    index: SuffixIndex,
    /// What the index proposed last.
    guesses: Vec<Guess>,
    /// Tokens of the prompt.
    prompt: usize,
    /// Prompt and decided tokens; within a round, its proposals too. After each round the target has
    /// cached all but the last, the draft at most as many.
    sequence: Vec<u32>,
    /// Of the last round.
    proposals: Vec<Proposal>,
    memory: RowMemory,
}

impl std::fmt::Debug for Decoder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder")
            .field("options", &self.options)
            .field("sequence", &self.sequence.len())
            .finish_non_exhaustive()
    }
}

impl<'m> Decoder<'m> {
    /// Takes over both models with emptied caches.
    ///
    /// # Errors
    /// [`MethodError::Vocabulary`] for a draft of another vocabulary; [`MethodError::Input`] for
    /// options out of range.
    pub fn new(
        target: &'m mut dyn TokenModel,
        mut draft: Option<&'m mut dyn TokenModel>,
        options: DecodeOptions,
    ) -> Result<Self> {
        if let Some(draft) = &mut draft {
            if draft.vocab_size() != target.vocab_size() {
                return Err(MethodError::Vocabulary {
                    draft: draft.vocab_size(),
                    target: target.vocab_size(),
                });
            }
            draft.rollback(0);
        }
        if !(0.0..=1.0).contains(&options.draft_confidence) {
            return Err(MethodError::Input(format!(
                "draft confidence {} must lie in 0..=1 (0 is off)",
                options.draft_confidence
            )));
        }
        if !(0.0..=1.0).contains(&options.draft_acceptance) {
            return Err(MethodError::Input(format!(
                "draft acceptance {} must lie in 0..=1",
                options.draft_acceptance
            )));
        }
        if !options.costs.is_sound() {
            return Err(MethodError::Input(
                "costs must be positive numbers, v(k) by ascending k from 1: measure them with `dlc bench --calibrate`".to_owned(),
            ));
        }
        target.rollback(0);
        let sampler = Sampler::new(options.sampling.clone())?;
        let planner = Planner::new(
            options.draft_length,
            options.draft_acceptance,
            options.costs.clone(),
        );
        Ok(Self {
            target,
            draft,
            options,
            sampler,
            planner,
            index: SuffixIndex::new(0),
            guesses: Vec::new(),
            prompt: 0,
            sequence: Vec::new(),
            proposals: Vec::new(),
            memory: RowMemory::default(),
        })
    }

    /// Lookups search in the texts of `history` too, and in what this decoder reads and writes from
    /// now on, as far as that index keeps it.
    #[must_use]
    pub fn remembering(self, history: SuffixIndex) -> Self {
        Self {
            index: history,
            ..self
        }
    }

    /// What lookups search in, for another decoder with the same tokenizer.
    pub fn into_history(self) -> SuffixIndex {
        self.index
    }

    /// Continues `prompt`. `on_tokens` sees the tokens of each round as they are decided and may
    /// break off.
    ///
    /// # Errors
    /// [`MethodError::Input`] for a prompt that is empty, too long or of tokens that the model
    /// doesn't have; [`MethodError::Logits`] for NaN and infinities; and what the models say. The
    /// caches are then empty.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        on_tokens: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let result = self.try_generate(prompt, on_tokens);
        if result.is_err() {
            // A model that failed in mid-pass may have cached anything.
            self.forget(0);
            self.sequence.clear();
        }
        result
    }

    fn try_generate(
        &mut self,
        prompt: &[u32],
        on_tokens: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<Generation> {
        self.check_prompt(prompt)?;
        let mut generation = Generation {
            tokens: Vec::new(),
            stop: StopReason::MaxTokens,
            stats: Stats::default(),
        };
        self.prompt = prompt.len();
        let longest = self.options.longest(self.prompt);
        let prefilled = self.prefill(prompt, &mut generation.stats)?;
        generation.stop = loop {
            if !prefilled || self.cancelled() {
                break StopReason::Interrupted;
            }
            let left = longest - self.sequence.len();
            let room = self
                .target
                .context_length()
                .saturating_sub(self.sequence.len());
            if left == 0 || room == 0 {
                break if left == 0 {
                    StopReason::MaxTokens
                } else {
                    StopReason::ContextFull
                };
            }
            let before = self.sequence.len();
            self.round(left.min(room), &mut generation.stats)?;
            let mut decided = self.sequence[before..].iter();
            let stop = decided.position(|token| self.options.stop_tokens.contains(token));
            let stop = stop.map(|i| (before + i, self.sequence[before + i]));
            if let Some((end, _)) = stop {
                self.sequence.truncate(end);
            }
            self.index(before, &mut generation.stats);
            self.forget(self.sequence.len());
            let text = &self.sequence[before..];
            generation.stats.tokens += text.len();
            let flow = if text.is_empty() {
                ControlFlow::Continue(())
            } else {
                on_tokens(text)
            };
            if let Some((_, token)) = stop {
                break StopReason::StopToken(token);
            }
            if flow.is_break() {
                break StopReason::Caller;
            }
        };
        let written = self.sequence.get(self.prompt..);
        generation.tokens = written.unwrap_or_default().to_vec();
        Ok(generation)
    }

    fn check_prompt(&self, prompt: &[u32]) -> Result<()> {
        let (vocab, context) = (self.target.vocab_size(), self.target.context_length());
        if prompt.is_empty() {
            return Err(MethodError::Input(
                "the prompt has no token: give a text, or begin with the model's bos token"
                    .to_owned(),
            ));
        }
        if prompt.len() >= context {
            return Err(MethodError::Input(format!(
                "the prompt has {} tokens, the model's context {context}: shorten the prompt",
                prompt.len()
            )));
        }
        if let Some(most) = self.options.max_length.filter(|&most| prompt.len() >= most) {
            let n = prompt.len();
            return Err(MethodError::Input(format!(
                "the prompt has {n} tokens, and texts end at {most} (`max_length`): say how many to write instead"
            )));
        }
        if let Some(token) = prompt.iter().find(|&&token| token as usize >= vocab) {
            return Err(MethodError::Input(format!(
                "token {token} of the prompt is outside the vocabulary of {vocab}: use this model's tokenizer"
            )));
        }
        Ok(())
    }

    /// Reads all of the prompt but its last token into both caches. False if cancelled on the way.
    fn prefill(&mut self, prompt: &[u32], stats: &mut Stats) -> Result<bool> {
        let started = Instant::now();
        let known = self
            .sequence
            .iter()
            .zip(prompt)
            .take_while(|(a, b)| a == b)
            .count()
            .min(prompt.len() - 1);
        self.forget(known);
        self.sequence.clear();
        self.sequence.extend_from_slice(prompt);
        if self.options.lookup.is_some() {
            self.index.begin(prompt);
        }
        let Self {
            target,
            draft,
            options,
            sequence,
            planner,
            ..
        } = self;
        let mut complete = read_prompt(&mut **target, sequence, options)?;
        if let Some(draft) = draft.as_deref_mut().filter(|_| planner.draft_pays()) {
            draft.adopt(target.len())?;
            complete = complete && read_prompt(draft, sequence, options)?;
        }
        if !complete {
            // What is cached is a prefix of the prompt all the same; the next call goes on from
            // there.
            let cached = self.target.len();
            self.sequence.truncate(cached);
        }
        stats.prefill_time += started.elapsed();
        Ok(complete)
    }

    /// Rolls both caches back to what the decided sequence of `len` tokens allows: its last token
    /// is always fed again.
    fn forget(&mut self, len: usize) {
        let keep = len.saturating_sub(usize::from(len == self.sequence.len()));
        self.target.rollback(keep);
        if let Some(draft) = self.draft.as_deref_mut() {
            draft.rollback(keep);
        }
    }

    /// Takes what the text goes on with after `before` tokens into the index.
    fn index(&mut self, before: usize, stats: &mut Stats) {
        if self.options.lookup.is_some() {
            let started = Instant::now();
            self.index.extend(&self.sequence[before..]);
            stats.draft_time += started.elapsed();
        }
    }

    fn cancelled(&self) -> bool {
        is_set(self.options.cancel.as_deref())
    }
}

/// Reads what `model` lacks of a prompt but for its last token, as far as its context goes. False if
/// cancelled on the way.
fn read_prompt(
    model: &mut dyn TokenModel,
    prompt: &[u32],
    options: &DecodeOptions,
) -> Result<bool> {
    let reading = model.expect(prompt.len(), options.prefill_chunk);
    let context = model.context_length();
    let end = (prompt.len() - 1).min(context);
    let start = model.len().min(end);
    if start == end {
        return Ok(true);
    }
    let to = match reading {
        Reading::Pieces(_) => end,
        Reading::Whole => prompt.len().min(context),
    };
    for chunk in prompt[start..to].chunks(reading.piece(prompt.len())) {
        if is_set(options.cancel.as_deref()) {
            return Ok(false);
        }
        model.extend(chunk, 0)?;
        if let Some(report) = options.on_prompt {
            report(model.len().min(end), end);
        }
    }
    model.rollback(end);
    Ok(true)
}

fn is_set(flag: Option<&AtomicBool>) -> bool {
    flag.is_some_and(|flag| flag.load(Ordering::Relaxed))
}
