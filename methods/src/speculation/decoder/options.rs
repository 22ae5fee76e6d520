//! How a text is continued: lengths, proposals, and the rules by which tokens are chosen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::DraftLength;
use super::length::DRAFT_ACCEPTANCE;
use crate::speculation::processors::{Place, RowMemory};
use crate::speculation::{Constraint, CostTable, Grammar, LogitsProcessors, SamplingOptions};
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
    /// text or in [earlier ones](super::Decoder::remembering); None doesn't look.
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
    /// What the text may be; None leaves it free.
    pub grammar: Option<Arc<dyn Grammar>>,
    /// How tokens are drawn.
    pub sampling: SamplingOptions,
    /// Keeps what the model said of each token, and of so many of the likeliest in its place; None
    /// keeps nothing.
    pub logprobs: Option<usize>,
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
            grammar: None,
            sampling: SamplingOptions::default(),
            logprobs: None,
            draft_confidence: 0.0,
            on_prompt: None,
            cancel: None,
        }
    }
}

impl DecodeOptions {
    /// Refuses shares and costs that are out of range.
    pub(super) fn check(&self) -> Result<()> {
        let (confidence, acceptance) = (self.draft_confidence, self.draft_acceptance);
        if !(0.0..=1.0).contains(&confidence) {
            return Err(MethodError::Input(format!(
                "draft confidence {confidence} must lie in 0..=1 (0 is off)"
            )));
        }
        if !(0.0..=1.0).contains(&acceptance) {
            return Err(MethodError::Input(format!(
                "draft acceptance {acceptance} must lie in 0..=1"
            )));
        }
        if !self.costs.is_sound() {
            return Err(MethodError::Input(
                "costs must be positive numbers, v(k) by ascending k from 1: measure them with `dlc bench --calibrate`".to_owned(),
            ));
        }
        Ok(())
    }

    /// Whether [`Self::cancel`] is set.
    pub(super) fn is_cancelled(&self) -> bool {
        let flag = self.cancel.as_deref();
        flag.is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    /// The most tokens of prompt and text together for a prompt of so many.
    pub(super) fn longest(&self, prompt: usize) -> usize {
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
        self.process_within(logits, prompt, text, None, memory)
            .ok()?
    }

    /// As [`Self::process`], under a constraint.
    pub(super) fn process_within<'r>(
        &self,
        logits: &'r [f32],
        prompt: usize,
        text: &[u32],
        constraint: Option<&mut (dyn Constraint + 'static)>,
        memory: &'r mut RowMemory,
    ) -> Result<Option<&'r [f32]>> {
        let most = self.longest(prompt);
        let place = Place { text, prompt, most };
        let row = self.processors.process(logits, place, constraint, memory)?;
        let left = |row: &[f32]| row.iter().any(|x| *x > f32::NEG_INFINITY || x.is_nan());
        Ok((left(row) || !left(logits)).then_some(row))
    }
}
