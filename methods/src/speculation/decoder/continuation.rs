//! One text that is being continued: what is decided of it, and what its rounds taught. The models
//! are lent to it for each step, so that many texts may take turns with the same ones.

use std::time::Duration;

use super::length::{MOST, Planner};
use super::round::Proposal;
use super::{DecodeOptions, Generation, Stats, StopReason};
use crate::speculation::processors::RowMemory;
use crate::speculation::{
    Constraint, Guess, Reading, Sampler, SuffixIndex, TokenLogprobs, TokenModel,
};
use crate::{MethodError, Result};

/// A target and, if there is one, its draft.
pub struct Models<'m> {
    /// The model whose words count.
    pub target: &'m mut dyn TokenModel,
    /// The cheap one that guesses them.
    pub draft: Option<&'m mut dyn TokenModel>,
}

impl std::fmt::Debug for Models<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Models").finish_non_exhaustive()
    }
}

impl Models<'_> {
    pub(in crate::speculation) fn check(&self) -> Result<()> {
        let target = self.target.vocab_size();
        match self.draft.as_deref().map(TokenModel::vocab_size) {
            Some(draft) if draft != target => Err(MethodError::Vocabulary { draft, target }),
            _ => Ok(()),
        }
    }

    /// Forgets everything after the first `len` tokens.
    pub fn rollback(&mut self, len: usize) {
        self.target.rollback(len);
        if let Some(draft) = self.draft.as_deref_mut() {
            draft.rollback(len);
        }
    }
}

/// A text, and the state of its decoding.
#[derive(Debug)]
pub struct Continuation {
    pub(super) options: DecodeOptions,
    pub(super) sampler: Sampler,
    pub(super) planner: Planner,
    pub(super) index: SuffixIndex,
    /// What the index proposed last.
    pub(super) guesses: Vec<Guess>,
    /// Tokens of the prompt.
    pub(super) prompt: usize,
    /// Prompt and decided tokens; within a round, its proposals too. After each round the target
    /// has cached all but the last, the draft at most as many.
    pub(super) sequence: Vec<u32>,
    /// Of the last round.
    pub(super) proposals: Vec<Proposal>,
    pub(super) memory: RowMemory,
    /// Reads the text, where a grammar rules it.
    pub(super) constraint: Option<Box<dyn Constraint>>,
    pub(super) stats: Stats,
    logprobs: Vec<TokenLogprobs>,
}

impl Continuation {
    /// A text without tokens.
    ///
    /// # Errors
    /// [`MethodError::Input`] for options out of range.
    pub fn new(options: DecodeOptions) -> Result<Self> {
        options.check()?;
        let sampler = Sampler::new(options.sampling.clone())?;
        let planner = Planner::new(
            options.draft_length,
            options.draft_acceptance,
            options.costs.clone(),
        );
        Ok(Self {
            options,
            sampler,
            planner,
            index: SuffixIndex::new(0),
            guesses: Vec::new(),
            prompt: 0,
            sequence: Vec::new(),
            proposals: Vec::new(),
            memory: RowMemory::default(),
            constraint: None,
            stats: Stats::default(),
            logprobs: Vec::new(),
        })
    }

    /// Lookups search in the texts of `history` too, and add this one to it.
    #[must_use]
    pub fn remembering(self, history: SuffixIndex) -> Self {
        Self {
            index: history,
            ..self
        }
    }

    /// What lookups search in.
    pub fn into_history(self) -> SuffixIndex {
        self.index
    }

    /// How it is continued.
    pub fn options(&self) -> &DecodeOptions {
        &self.options
    }

    /// Prompt and decided tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.sequence
    }

    /// How many of them are the prompt's.
    pub fn prompt_len(&self) -> usize {
        self.prompt
    }

    /// What it took so far.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// What was said of the tokens that are written, where [`DecodeOptions::logprobs`] asks for it.
    pub fn logprobs(&self) -> &[TokenLogprobs] {
        &self.logprobs
    }

    /// Whether drafting seems to pay.
    pub fn draft_pays(&self) -> bool {
        self.planner.draft_pays()
    }

    /// Tokens that a round with a draft should write in the time of a pass over one token.
    pub fn draft_pace(&self) -> f64 {
        self.planner.draft_plan(1, MOST).pace
    }

    /// Refuses a prompt that `target` can't continue.
    ///
    /// # Errors
    /// [`MethodError::Input`] for one that is empty, too long or of tokens that the model doesn't
    /// have.
    pub fn check_prompt(&self, prompt: &[u32], target: &dyn TokenModel) -> Result<()> {
        let (vocab, context) = (target.vocab_size(), target.context_length());
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

    /// Begins anew with a prompt. Returns how many of its tokens, the last one apart, began the text
    /// before.
    pub fn begin(&mut self, prompt: &[u32]) -> usize {
        let known = common_prefix(&self.sequence, prompt);
        self.prompt = prompt.len();
        self.stats = Stats::default();
        self.logprobs.clear();
        self.constraint = self.options.grammar.as_ref().map(|grammar| grammar.start());
        self.sequence.clear();
        self.sequence.extend_from_slice(prompt);
        if self.options.lookup.is_some() {
            self.index.begin(prompt);
        }
        known.min(prompt.len().saturating_sub(1))
    }

    pub(super) fn clear(&mut self) {
        self.sequence.clear();
    }

    pub(super) fn cut(&mut self, len: usize) {
        self.sequence.truncate(len);
    }

    /// Adds to the time that reading the prompt took.
    pub fn add_prefill_time(&mut self, time: Duration) {
        self.stats.prefill_time += time;
    }

    /// How many tokens of the prompt `model` has to read before the text goes on: all but the last,
    /// which the first round reads, as far as its context goes.
    pub fn to_read(&self, model: &dyn TokenModel) -> usize {
        (self.prompt - 1).min(model.context_length())
    }

    /// Whether `model` has read what it has to.
    pub fn is_read_by(&self, model: &dyn TokenModel) -> bool {
        model.len() >= self.to_read(model)
    }

    /// Lets `model` read the next `piece` tokens of the prompt, or all of them where its rotation
    /// asks for that.
    ///
    /// # Errors
    /// What the model says.
    pub fn read_piece(&self, model: &mut dyn TokenModel, piece: usize) -> Result<()> {
        let reading = model.expect(self.prompt, piece);
        let end = self.to_read(model);
        let to = match reading {
            Reading::Pieces(_) => end,
            Reading::Whole => self.prompt.min(model.context_length()),
        };
        let unread = &self.sequence[model.len().min(to)..to];
        if let Some(piece) = unread.chunks(reading.piece(self.prompt)).next() {
            model.extend(piece, 0)?;
        }
        model.rollback(end);
        Ok(())
    }

    /// How many tokens may follow in a model with so much context.
    pub(super) fn room(&self, context: usize) -> Result<usize, StopReason> {
        let left = self.options.longest(self.prompt) - self.sequence.len();
        let room = context.saturating_sub(self.sequence.len());
        match (left, room) {
            (0, _) => Err(StopReason::MaxTokens),
            (_, 0) => Err(StopReason::ContextFull),
            _ => Ok(left.min(room)),
        }
    }

    /// Notes what `row`, the target's logits, says of `token`.
    pub(super) fn note(&mut self, row: &[f32], token: u32) {
        if let Some(top) = self.options.logprobs {
            self.logprobs.push(TokenLogprobs::of(row, token, top));
        }
    }

    /// Ends a round that began with `before` tokens: cuts the text before a token that ends it.
    pub(super) fn settle(&mut self, before: usize) -> Result<Option<StopReason>> {
        let ends = |token: &u32| self.options.stop_tokens.contains(token);
        let stop = self.sequence[before..].iter().position(ends);
        let stop = stop.map(|i| (before + i, self.sequence[before + i]));
        if let Some((end, _)) = stop {
            self.sequence.truncate(end);
            self.logprobs.truncate(end - self.prompt);
        }
        self.stats.tokens += self.sequence.len() - before;
        if let Some((_, token)) = stop {
            return Ok(Some(StopReason::StopToken(token)));
        }
        let written = &self.sequence[self.prompt..];
        let complete = match &mut self.constraint {
            Some(constraint) => constraint.is_complete(written)?,
            None => false,
        };
        Ok(complete.then_some(StopReason::Complete))
    }

    /// The finished text.
    pub fn finish(&mut self, stop: StopReason) -> Generation {
        let written = self.sequence.get(self.prompt..);
        Generation {
            tokens: written.unwrap_or_default().to_vec(),
            logprobs: std::mem::take(&mut self.logprobs),
            stop,
            stats: self.stats,
        }
    }
}

/// How many tokens both begin with.
pub(crate) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
