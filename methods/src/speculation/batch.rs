//! Many texts at once on one model: they join and leave between passes (continuous batching: Yu et
//! al., *Orca*, OSDI 2022).
//!
//! A turn reads a piece of one prompt and then writes: where a single text is under way it drafts
//! and verifies as [`Decoder`](super::Decoder) does; several take a token each in one pass, or one
//! round after the other, whichever yields more by the costs. Each text is what it would be alone,
//! as far as the model's passes are. Never knows who asked for a text, and never waits.

mod slots;
#[cfg(test)]
mod tests;

use std::time::Instant;

use self::slots::{Slots, UnderWay};
use super::{
    Continuation, CostTable, DecodeOptions, Generation, Logits, Models, StopReason, TokenLogprobs,
    TokenModel,
};
use crate::{MethodError, Result};

/// A causal language model that holds several sequences, each in a slot of its own.
pub trait BatchModel {
    /// How many sequences it holds.
    fn slots(&self) -> usize;

    /// The sequence in `slot`. A draft that reads the model's cache reads this sequence's from now
    /// on.
    fn slot(&mut self, slot: usize) -> &mut dyn TokenModel;

    /// Whether [`Self::step`] takes several slots at once.
    fn batches(&self) -> bool;

    /// Whether keys and values of tokens that were written one by one are those of the same tokens
    /// read together, as far as they should be: else what a text wrote isn't taken for a prompt.
    fn writes_as_it_reads(&self) -> bool;

    /// Appends a token to each of these slots, no slot twice, and puts them in the order of the
    /// logits: row `i` of them scores what follows in the `i`-th.
    ///
    /// # Errors
    /// As [`TokenModel::extend`]; what the slots hold is then unknown.
    fn step(&mut self, tokens: &mut [(usize, u32)]) -> Result<Logits<'_>>;

    /// Lets the slot `to` hold the first `len` tokens of the slot `from`.
    ///
    /// # Errors
    /// [`MethodError::Model`] for what the model says; `to` then holds nothing.
    fn copy(&mut self, from: usize, to: usize, len: usize) -> Result<()>;

    /// Keys and values of the first `len` tokens of a slot, in the model's own form and order; None
    /// where they mean nothing without the rest of the text.
    ///
    /// # Errors
    /// [`MethodError::Model`] for what the model says.
    fn save(&mut self, slot: usize, len: usize) -> Result<Option<Vec<Vec<u8>>>>;

    /// Lets a slot hold `len` tokens with these keys and values of a model like this one.
    ///
    /// # Errors
    /// [`MethodError::Model`] for what the model says, and for what isn't of its form; the slot then
    /// holds nothing.
    fn restore(&mut self, slot: usize, len: usize, cache: &[Vec<u8>]) -> Result<()>;
}

/// What a slot holds of a text, apart from the model that read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix {
    /// The tokens, from the first on.
    pub tokens: Vec<u32>,
    /// Their keys and values, in the model's own form and order.
    pub cache: Vec<Vec<u8>>,
}

/// A text of a [`Batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TextId(u64);

/// What became of a text in a turn.
#[derive(Debug)]
pub enum Progress<'b> {
    /// Tokens were decided, with what was said of them where that is asked for.
    Tokens(&'b [u32], &'b [TokenLogprobs]),
    /// It is finished; its slot is free.
    Ended(Box<Generation>),
    /// It can't go on; its slot is free.
    Failed(&'b MethodError),
}

/// How passes are shared.
#[derive(Debug, Clone)]
pub struct BatchOptions {
    /// Tokens of a prompt that are read at a time while other texts wait for their next token.
    pub piece: usize,
    /// v(k) is also taken for what a pass over a token each of k texts costs.
    pub costs: CostTable,
}

/// Counts of what passes were for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchStats {
    /// Passes that wrote a token of each of several texts.
    pub steps: usize,
    /// Tokens that they wrote.
    pub step_tokens: usize,
    /// Rounds of a single text.
    pub rounds: usize,
    /// Tokens of prompts that were read.
    pub read: usize,
    /// Tokens of prompts that were held already.
    pub reused: usize,
}

/// Texts under way, the model that continues them and, if there is one, its draft.
pub struct Batch {
    model: Box<dyn BatchModel + Send>,
    draft: Option<Box<dyn TokenModel + Send>>,
    options: BatchOptions,
    slots: Slots,
    /// The slot that the draft follows.
    drafted: Option<usize>,
    next: u64,
    stats: BatchStats,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch")
            .field("slots", &self.slots)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl Batch {
    /// Nothing under way.
    ///
    /// # Errors
    /// [`MethodError::Vocabulary`] for a draft of another vocabulary.
    pub fn new(
        mut model: Box<dyn BatchModel + Send>,
        mut draft: Option<Box<dyn TokenModel + Send>>,
        options: BatchOptions,
    ) -> Result<Self> {
        let slots = Slots::new(model.slots());
        for slot in 0..slots.len() {
            model.slot(slot).rollback(0);
        }
        if slots.len() > 0 {
            models(&mut *model, &mut draft, 0).check()?;
        }
        Ok(Self {
            model,
            draft,
            options,
            slots,
            drafted: None,
            next: 0,
            stats: BatchStats::default(),
        })
    }

    /// Texts that can be under way at once.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Texts under way.
    pub fn active(&self) -> usize {
        self.slots.texts().count()
    }

    /// Whether another text may begin.
    pub fn has_room(&self) -> bool {
        self.active() < self.slots.len()
    }

    /// What passes were for so far.
    pub fn stats(&self) -> BatchStats {
        self.stats
    }

    /// Tokens that the slots hold, of texts under way and of earlier ones.
    pub fn cached(&self) -> usize {
        self.slots.cached()
    }

    /// What slots without a text hold of earlier ones, the latest last.
    ///
    /// # Errors
    /// As [`BatchModel::save`].
    pub fn prefixes(&mut self) -> Result<Vec<Prefix>> {
        let mut all = Vec::new();
        for slot in self.slots.kept() {
            let held = self.model.slot(slot).len();
            let tokens = self.slots.tokens(slot);
            let tokens = tokens[..held.min(tokens.len())].to_vec();
            if let Some(cache) = self.model.save(slot, tokens.len())? {
                all.push(Prefix { tokens, cache });
            }
        }
        Ok(all)
    }

    /// Lets a slot that holds nothing hold a prefix; false if there is no such slot.
    ///
    /// # Errors
    /// As [`BatchModel::restore`], and [`MethodError::Input`] for tokens that the model doesn't take.
    pub fn restore(&mut self, prefix: &Prefix) -> Result<bool> {
        let Prefix { tokens, cache } = prefix;
        let Some(slot) = self.slots.empty() else {
            return Ok(false);
        };
        Continuation::new(DecodeOptions::default())?.check_prompt(tokens, self.model.slot(slot))?;
        self.model.restore(slot, tokens.len(), cache)?;
        self.slots.keep(slot, tokens);
        Ok(true)
    }

    /// Begins a text. What a slot holds of the prompt already isn't read again.
    ///
    /// # Errors
    /// [`MethodError::Input`] for options and prompts that [`Continuation`] refuses;
    /// [`MethodError::Bug`] without [room](Self::has_room).
    pub fn begin(&mut self, prompt: &[u32], options: DecodeOptions) -> Result<TextId> {
        let mut text = Continuation::new(options)?;
        text.check_prompt(prompt, self.model.slot(0))?;
        text.begin(prompt);
        let held: Vec<usize> = (0..self.slots.len()).map(|slot| self.held(slot)).collect();
        let place = self.slots.place(prompt, &held).ok_or_else(|| {
            MethodError::Bug("a text began in a batch that has no room".to_owned())
        })?;
        if let Some(from) = place.copied_from {
            self.model.copy(from, place.slot, place.known)?;
        }
        let target = self.model.slot(place.slot);
        target.rollback(place.known);
        self.stats.reused += target.len();
        let is_read = text.is_read_by(target);
        if self.drafted == Some(place.slot) {
            self.drafted = None;
        }
        let id = TextId(self.next);
        self.next += 1;
        self.slots
            .occupy(place.slot, UnderWay { id, text, is_read });
        Ok(id)
    }

    /// Ends a text where it is; None if it has ended before.
    pub fn cancel(&mut self, id: TextId) -> Option<Generation> {
        let slot = self.slots.of(id)?;
        self.release(slot, StopReason::Caller)
    }

    /// Does one turn's work, and tells what became of texts. Does nothing where none is under way.
    pub fn turn(&mut self, tell: &mut dyn FnMut(TextId, Progress<'_>)) {
        self.read(tell);
        let ready = self.ready();
        match ready[..] {
            [] => {}
            [only] => self.advance(only, tell),
            _ if self.model.batches() && self.batch_pays(&ready) => self.step(&ready, tell),
            _ => ready.iter().for_each(|&slot| self.advance(slot, tell)),
        }
    }

    /// Slots whose texts have their prompts read.
    fn ready(&self) -> Vec<usize> {
        let read = self.slots.texts().filter(|(_, text)| text.is_read);
        read.map(|(slot, _)| slot).collect()
    }

    /// Reads a piece of the prompt that has waited longest.
    fn read(&mut self, tell: &mut dyn FnMut(TextId, Progress<'_>)) {
        let unread = self.slots.texts().filter(|(_, text)| !text.is_read);
        let Some((slot, _)) = unread.min_by_key(|(_, text)| text.id) else {
            return;
        };
        let is_alone = self.active() == 1;
        let target = self.model.slot(slot);
        let Some(UnderWay { text, is_read, .. }) = self.slots.text_mut(slot) else {
            return;
        };
        let started = Instant::now();
        let whole = text.options().prefill_chunk;
        let piece = if is_alone {
            whole
        } else {
            self.options.piece.min(whole)
        };
        let before = target.len();
        let done = text.read_piece(target, piece);
        *is_read = text.is_read_by(target);
        self.stats.read += target.len().saturating_sub(before);
        text.add_prefill_time(started.elapsed());
        if let Err(error) = done {
            self.fail(slot, &error, tell);
        }
    }

    /// Whether a token each in one pass is more for its cost than a round of one of the texts.
    fn batch_pays(&self, ready: &[usize]) -> bool {
        let shares = |draft: &dyn TokenModel| draft.len_after_adopting(usize::MAX) == usize::MAX;
        let drafts = self.draft.as_deref().is_some_and(|draft| shares(draft));
        let pace = |slot: &usize| match self.slots.text(*slot) {
            Some(text) if drafts => text.text.draft_pace(),
            _ => 1.0,
        };
        let rounds = ready.iter().map(pace).sum::<f64>() / ready.len() as f64;
        ready.len() as f64 / self.options.costs.pass(ready.len()) >= rounds
    }

    /// A round of one text.
    fn advance(&mut self, slot: usize, tell: &mut dyn FnMut(TextId, Progress<'_>)) {
        let follows = self.drafted == Some(slot);
        let mut models = models(&mut *self.model, &mut self.draft, slot);
        if !follows && let Some(draft) = models.draft.as_deref_mut() {
            draft.rollback(0);
        }
        self.drafted = Some(slot);
        let Some(UnderWay { text, .. }) = self.slots.text_mut(slot) else {
            return;
        };
        self.stats.rounds += 1;
        let before = text.tokens().len();
        let advanced = text.advance(&mut models);
        self.report(slot, before, advanced, tell);
    }

    /// A token of each text.
    fn step(&mut self, ready: &[usize], tell: &mut dyn FnMut(TextId, Progress<'_>)) {
        let context = self.model.slot(0).context_length();
        let mut tokens = Vec::with_capacity(ready.len());
        for &slot in ready {
            match self
                .slots
                .text(slot)
                .map(|text| text.text.next_input(context))
            {
                Some(Ok(token)) => tokens.push((slot, token)),
                Some(Err(stop)) => self.end(slot, stop, tell),
                None => {}
            }
        }
        if tokens.is_empty() {
            return;
        }
        let logits = match self.model.step(&mut tokens) {
            Ok(logits) => logits,
            Err(error) => {
                for (slot, _) in tokens {
                    self.fail(slot, &error, tell);
                }
                return;
            }
        };
        let mut taken = Vec::with_capacity(tokens.len());
        for (i, (slot, _)) in tokens.into_iter().enumerate() {
            if let Some(UnderWay { text, .. }) = self.slots.text_mut(slot) {
                taken.push((slot, text.tokens().len(), text.take(logits.row(i))));
            }
        }
        self.stats.steps += 1;
        self.stats.step_tokens += taken.len();
        for (slot, before, outcome) in taken {
            self.report(slot, before, outcome, tell);
        }
    }

    /// Tells what a text gained after `before` tokens, and ends it if it is at its end.
    fn report(
        &mut self,
        slot: usize,
        before: usize,
        outcome: Result<Option<StopReason>>,
        tell: &mut dyn FnMut(TextId, Progress<'_>),
    ) {
        let stop = match outcome {
            Ok(stop) => stop,
            Err(error) => return self.fail(slot, &error, tell),
        };
        if let Some(UnderWay { id, text, .. }) = self.slots.text(slot)
            && text.tokens().len() > before
        {
            let said = text.logprobs().get(before - text.prompt_len()..);
            let new = Progress::Tokens(&text.tokens()[before..], said.unwrap_or_default());
            tell(*id, new);
        }
        if let Some(stop) = stop {
            self.end(slot, stop, tell);
        }
    }

    fn end(&mut self, slot: usize, stop: StopReason, tell: &mut dyn FnMut(TextId, Progress<'_>)) {
        let id = self.slots.text(slot).map(|text| text.id);
        if let (Some(id), Some(generation)) = (id, self.release(slot, stop)) {
            tell(id, Progress::Ended(Box::new(generation)));
        }
    }

    /// A model that failed in mid-pass may hold anything.
    fn fail(
        &mut self,
        slot: usize,
        error: &MethodError,
        tell: &mut dyn FnMut(TextId, Progress<'_>),
    ) {
        models(&mut *self.model, &mut self.draft, slot).rollback(0);
        self.drafted = None;
        if let Some(text) = self.slots.vacate(slot, 0) {
            tell(text.id, Progress::Failed(error));
        }
    }

    /// Tokens of its text that a slot holds as a prompt with them would. The last one of a prompt is
    /// read by the pass that writes.
    fn held(&mut self, slot: usize) -> usize {
        let held = self.model.slot(slot).len();
        match self.slots.text(slot) {
            Some(text) if !self.model.writes_as_it_reads() => {
                held.min(text.text.prompt_len().saturating_sub(1))
            }
            _ => held,
        }
    }

    /// Takes the text out of a slot, which keeps what it holds of it.
    fn release(&mut self, slot: usize, stop: StopReason) -> Option<Generation> {
        let held = self.held(slot);
        self.model.slot(slot).rollback(held);
        let mut text = self.slots.vacate(slot, held)?;
        Some(text.text.finish(stop))
    }
}

/// The model's sequence in a slot, and its draft.
fn models<'m>(
    model: &'m mut (dyn BatchModel + Send),
    draft: &'m mut Option<Box<dyn TokenModel + Send>>,
    slot: usize,
) -> Models<'m> {
    Models {
        target: model.slot(slot),
        draft: draft
            .as_deref_mut()
            .map(|draft| draft as &mut dyn TokenModel),
    }
}
