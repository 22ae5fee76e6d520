//! Lossless speculative decoding over [`TokenModel`]s (Leviathan et al. 2023; Chen et al. 2023),
//! plain decoding being the case without a draft.
//!
//! The words come from the target's distribution, whatever the draft proposes; greedy decoding is
//! the case of distributions with one entry. Never prints, and never looks inside a model: a cache
//! is a length.

mod continuation;
mod length;
mod options;
mod round;
mod stats;
#[cfg(test)]
pub(super) mod tests;

use std::ops::ControlFlow;
use std::time::Instant;

pub(super) use self::continuation::common_prefix;
pub use self::continuation::{Continuation, Models};
pub use self::length::DraftLength;
pub use self::options::DecodeOptions;
pub use self::stats::{SourceStats, Stats};
use super::{SuffixIndex, TokenLogprobs, TokenModel};
use crate::Result;

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The model wrote this stop token.
    StopToken(u32),
    /// Nothing can follow by [`DecodeOptions::grammar`].
    Complete,
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
    /// What was said of each, where [`DecodeOptions::logprobs`] asks for it.
    pub logprobs: Vec<TokenLogprobs>,
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
    models: Models<'m>,
    text: Continuation,
}

impl std::fmt::Debug for Decoder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder")
            .field("text", &self.text)
            .finish_non_exhaustive()
    }
}

impl<'m> Decoder<'m> {
    /// Takes over both models with emptied caches.
    ///
    /// # Errors
    /// [`Vocabulary`](crate::MethodError::Vocabulary) for a draft of another vocabulary;
    /// [`Input`](crate::MethodError::Input) for options out of range.
    pub fn new(
        target: &'m mut dyn TokenModel,
        draft: Option<&'m mut dyn TokenModel>,
        options: DecodeOptions,
    ) -> Result<Self> {
        let mut models = Models { target, draft };
        models.check()?;
        let text = Continuation::new(options)?;
        models.rollback(0);
        Ok(Self { models, text })
    }

    /// Lookups search in the texts of `history` too, and in what this decoder reads and writes from
    /// now on, as far as that index keeps it.
    #[must_use]
    pub fn remembering(self, history: SuffixIndex) -> Self {
        Self {
            text: self.text.remembering(history),
            ..self
        }
    }

    /// What lookups search in, for another decoder with the same tokenizer.
    pub fn into_history(self) -> SuffixIndex {
        self.text.into_history()
    }

    /// Continues `prompt`. `on_tokens` sees the tokens of each round as they are decided and may
    /// break off.
    ///
    /// # Errors
    /// [`Input`](crate::MethodError::Input) for a prompt that is empty, too long or of tokens that
    /// the model doesn't have; [`Logits`](crate::MethodError::Logits) for NaN and infinities; and
    /// what the models say. The caches are then empty.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        on_tokens: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let result = self.try_generate(prompt, on_tokens);
        if result.is_err() {
            // A model that failed in mid-pass may have cached anything.
            self.models.rollback(0);
            self.text.clear();
        }
        result
    }

    fn try_generate(
        &mut self,
        prompt: &[u32],
        on_tokens: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let Self { models, text } = self;
        text.check_prompt(prompt, &*models.target)?;
        let known = text.begin(prompt);
        models.rollback(known);
        let read = Self::prefill(models, text)?;
        let stop = loop {
            if !read || text.options().is_cancelled() {
                break StopReason::Interrupted;
            }
            let before = text.tokens().len();
            let end = text.advance(models)?;
            let new = &text.tokens()[before..];
            let flow = if new.is_empty() {
                ControlFlow::Continue(())
            } else {
                on_tokens(new)
            };
            if let Some(end) = end {
                break end;
            }
            if flow.is_break() {
                break StopReason::Caller;
            }
        };
        Ok(text.finish(stop))
    }

    /// Reads all of the prompt but its last token into both caches. False if cancelled on the way.
    fn prefill(models: &mut Models<'_>, text: &mut Continuation) -> Result<bool> {
        let started = Instant::now();
        let mut complete = read_prompt(models.target, text)?;
        if let Some(draft) = models.draft.as_deref_mut().filter(|_| text.draft_pays()) {
            draft.adopt(models.target.len())?;
            complete = complete && read_prompt(draft, text)?;
        }
        if !complete {
            // What is cached is a prefix of the prompt all the same; the next call goes on from
            // there.
            text.cut(models.target.len());
        }
        text.add_prefill_time(started.elapsed());
        Ok(complete)
    }
}

/// Reads what `model` lacks of a prompt but for its last token, as far as its context goes. False if
/// cancelled on the way.
fn read_prompt(model: &mut dyn TokenModel, text: &Continuation) -> Result<bool> {
    let options = text.options();
    while !text.is_read_by(model) {
        if options.is_cancelled() {
            return Ok(false);
        }
        text.read_piece(model, options.prefill_chunk)?;
        if let Some(report) = options.on_prompt {
            let end = text.to_read(model);
            report(model.len().min(end), end);
        }
    }
    Ok(true)
}
