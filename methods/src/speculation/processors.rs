//! What changes logits before a token is chosen, as transformers' `generate` does it: penalties,
//! biases, bans and forced tokens; and the presence and frequency penalties of OpenAI's API.
//!
//! All are functions of the logits and of the text before them, so drafting stays lossless: a row
//! is processed with the text up to it, whoever wrote that. The order is that of transformers'
//! `_get_logits_processor`. Never draws a token.

use std::collections::BTreeMap;

use super::Constraint;
use crate::Result;

/// What is done to logits; [`Default`] changes nothing. The names are those of transformers'
/// `GenerationConfig`, and of OpenAI's API.
#[derive(Debug, Clone, PartialEq)]
pub struct LogitsProcessors {
    /// Tokens that end a text, for those of the processors that hold them back or prefer them.
    pub ends: Vec<u32>,
    /// Added to the logit of a sequence's last token where the text ends with those before it.
    pub sequence_bias: Vec<(Vec<u32>, f32)>,
    /// Makes the tokens of the prompt likelier; 1 is none.
    pub encoder_repetition_penalty: f32,
    /// Makes the tokens of the text, prompt included, less likely; 1 is none.
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens that are written already, the prompt's apart; 0 is none.
    pub presence_penalty: f32,
    /// Taken from these logits once for each time that the token is written; 0 is none.
    pub frequency_penalty: f32,
    /// No n-gram of this size stands twice in the text, prompt included; 0 allows all.
    pub no_repeat_ngram_size: usize,
    /// No n-gram of this size of the prompt is repeated; 0 allows all.
    pub encoder_no_repeat_ngram_size: usize,
    /// Sequences that are never written. One that is just a token that ends texts may be.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// Tokens of prompt and text before which the text doesn't end; not read where `min_new_tokens`
    /// is set.
    pub min_length: usize,
    /// Tokens of the text before which it doesn't end.
    pub min_new_tokens: Option<usize>,
    /// What follows a prompt of one token.
    pub forced_bos_token_id: Option<u32>,
    /// One of these is the last token of a text that has as many as it may.
    pub forced_eos_token_id: Vec<u32>,
    /// Takes NaN for 0, and infinite logits for the largest numbers.
    pub remove_invalid_values: bool,
    /// After so many tokens, what ends the text becomes likelier by this factor with each further
    /// one.
    pub exponential_decay_length_penalty: Option<(usize, f64)>,
    /// Tokens that are never written.
    pub suppress_tokens: Vec<u32>,
    /// Tokens that don't begin the text.
    pub begin_suppress_tokens: Vec<u32>,
}

impl Default for LogitsProcessors {
    fn default() -> Self {
        Self {
            ends: Vec::new(),
            sequence_bias: Vec::new(),
            encoder_repetition_penalty: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            no_repeat_ngram_size: 0,
            encoder_no_repeat_ngram_size: 0,
            bad_words_ids: Vec::new(),
            min_length: 0,
            min_new_tokens: None,
            forced_bos_token_id: None,
            forced_eos_token_id: Vec::new(),
            remove_invalid_values: false,
            exponential_decay_length_penalty: None,
            suppress_tokens: Vec::new(),
            begin_suppress_tokens: Vec::new(),
        }
    }
}

/// Where a row of logits stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// The tokens before it, prompt included.
    pub text: &'a [u32],
    /// How many of them are the prompt's.
    pub prompt: usize,
    /// The most tokens of prompt and text together.
    pub most: usize,
}

/// The memory that processed rows take, used again by the next one.
#[derive(Debug, Clone, Default)]
pub struct RowMemory {
    scores: Vec<f32>,
    /// By token; all false between uses.
    seen: Vec<bool>,
}

/// A row of logits that is copied before it is changed.
#[derive(Debug)]
struct Row<'r> {
    logits: &'r [f32],
    memory: &'r mut RowMemory,
    is_changed: bool,
}

impl<'r> Row<'r> {
    fn new(logits: &'r [f32], memory: &'r mut RowMemory) -> Self {
        Self {
            logits,
            memory,
            is_changed: false,
        }
    }

    fn get(&self, token: u32) -> Option<f32> {
        let row: &[f32] = if self.is_changed {
            &self.memory.scores
        } else {
            self.logits
        };
        row.get(token as usize).copied()
    }

    fn copied(&mut self) -> &mut RowMemory {
        if !self.is_changed {
            self.is_changed = true;
            self.memory.scores.clear();
            self.memory.scores.extend_from_slice(self.logits);
        }
        self.memory
    }

    fn to_mut(&mut self) -> &mut [f32] {
        &mut self.copied().scores
    }

    fn finish(self) -> &'r [f32] {
        if self.is_changed {
            &self.memory.scores
        } else {
            self.logits
        }
    }
}

impl LogitsProcessors {
    /// The logits as a token is chosen by them: `logits` where nothing is changed. A constraint has
    /// the last word.
    pub(super) fn process<'r>(
        &self,
        logits: &'r [f32],
        place: Place<'_>,
        constraint: Option<&mut (dyn Constraint + 'static)>,
        memory: &'r mut RowMemory,
    ) -> Result<&'r [f32]> {
        let mut row = Row::new(logits, memory);
        self.weigh(&mut row, place);
        self.ban(&mut row, place);
        self.force(&mut row, place);
        self.suppress(&mut row, place);
        if let Some(constraint) = constraint {
            constraint.mask(&place.text[place.prompt..], row.to_mut())?;
        }
        Ok(row.finish())
    }

    fn weigh(&self, row: &mut Row<'_>, Place { text, prompt, .. }: Place<'_>) {
        if !self.sequence_bias.is_empty() {
            add_bias(row.to_mut(), &self.sequence_bias, text);
        }
        for (penalty, tokens) in [
            (1.0 / self.encoder_repetition_penalty, &text[..prompt]),
            (self.repetition_penalty, text),
        ] {
            if (penalty - 1.0).abs() > 0.0 {
                let RowMemory { scores, seen } = row.copied();
                each_once(scores, seen, tokens, |x| {
                    *x = if *x < 0.0 { *x * penalty } else { *x / penalty };
                });
            }
        }
        if self.presence_penalty.abs() + self.frequency_penalty.abs() > 0.0 {
            let RowMemory { scores, seen } = row.copied();
            let once = |x: &mut f32| *x -= self.presence_penalty;
            each_once(scores, seen, &text[prompt..], once);
            for token in &text[prompt..] {
                if let Some(x) = scores.get_mut(*token as usize) {
                    *x -= self.frequency_penalty;
                }
            }
        }
    }

    fn ban(&self, row: &mut Row<'_>, Place { text, prompt, .. }: Place<'_>) {
        for (n, earlier) in [
            (self.no_repeat_ngram_size, text),
            (self.encoder_no_repeat_ngram_size, &text[..prompt]),
        ] {
            if n > 0 {
                ban_all(row.to_mut(), followers(earlier, text, n));
            }
        }
        if !self.bad_words_ids.is_empty() {
            let complete = |word: &Vec<u32>| {
                let (last, before) = word.split_last()?;
                (text.ends_with(before) && !(before.is_empty() && self.ends.contains(last)))
                    .then_some(*last)
            };
            ban_all(row.to_mut(), self.bad_words_ids.iter().filter_map(complete));
        }
        let too_short = self
            .min_new_tokens
            .map_or(text.len() < self.min_length, |least| {
                text.len() < prompt.saturating_add(least)
            });
        if too_short {
            ban_all(row.to_mut(), self.ends.iter().copied());
        }
    }

    fn force(&self, row: &mut Row<'_>, Place { text, most, .. }: Place<'_>) {
        if text.len() == 1
            && let Some(token) = self.forced_bos_token_id
        {
            only(row.to_mut(), &[token]);
        }
        if text.len().saturating_add(1) == most && !self.forced_eos_token_id.is_empty() {
            only(row.to_mut(), &self.forced_eos_token_id);
        }
    }

    fn suppress(&self, row: &mut Row<'_>, Place { text, prompt, .. }: Place<'_>) {
        if self.remove_invalid_values {
            for x in row.to_mut() {
                *x = if x.is_nan() {
                    0.0
                } else {
                    x.clamp(f32::MIN, f32::MAX)
                };
            }
        }
        if let Some((start, factor)) = self.exponential_decay_length_penalty
            && text.len() > prompt.saturating_add(start)
        {
            let beyond = text.len() - prompt - start;
            let rise = (factor.powf(beyond as f64) - 1.0)
                .clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32;
            for (i, end) in self.ends.iter().enumerate() {
                // Each once, should one be named twice.
                if let Some(x) = row.get(*end).filter(|x| x.is_finite())
                    && !self.ends[..i].contains(end)
                {
                    row.to_mut()[*end as usize] = (x + x.abs() * rise).clamp(f32::MIN, f32::MAX);
                }
            }
        }
        if !self.suppress_tokens.is_empty() {
            ban_all(row.to_mut(), self.suppress_tokens.iter().copied());
        }
        // A forced first token isn't held back.
        let begin = if prompt > 1 || self.forced_bos_token_id.is_none() {
            prompt
        } else {
            prompt + 1
        };
        if text.len() == begin && !self.begin_suppress_tokens.is_empty() {
            ban_all(row.to_mut(), self.begin_suppress_tokens.iter().copied());
        }
    }
}

/// Adds the biases of all sequences of which only the last token is missing; those of the same last
/// token add up first.
fn add_bias(row: &mut [f32], sequences: &[(Vec<u32>, f32)], text: &[u32]) {
    let mut sums: BTreeMap<u32, f32> = BTreeMap::new();
    for (sequence, bias) in sequences {
        if let Some((last, before)) = sequence.split_last()
            && text.ends_with(before)
        {
            *sums.entry(*last).or_default() += bias;
        }
    }
    for (token, bias) in sums {
        if let Some(x) = row.get_mut(token as usize) {
            *x += bias;
        }
    }
}

/// Changes the score of each token of `tokens` once, however often it stands there.
fn each_once(scores: &mut [f32], seen: &mut Vec<bool>, tokens: &[u32], change: impl Fn(&mut f32)) {
    seen.resize(scores.len(), false);
    for &token in tokens {
        if let (Some(x), Some(seen)) =
            (scores.get_mut(token as usize), seen.get_mut(token as usize))
            && !std::mem::replace(seen, true)
        {
            change(x);
        }
    }
    for &token in tokens {
        if let Some(seen) = seen.get_mut(token as usize) {
            *seen = false;
        }
    }
}

/// What followed the last `n - 1` tokens of `text` wherever they stand in `earlier`.
fn followers(earlier: &[u32], text: &[u32], n: usize) -> impl Iterator<Item = u32> {
    let last = text.len().checked_sub(n - 1).map(|start| &text[start..]);
    let grams = earlier.windows(n).filter_map(|gram| gram.split_last());
    grams
        .filter(move |(_, before)| Some(*before) == last)
        .map(|(token, _)| *token)
}

fn ban_all(row: &mut [f32], tokens: impl Iterator<Item = u32>) {
    for token in tokens {
        if let Some(x) = row.get_mut(token as usize) {
            *x = f32::NEG_INFINITY;
        }
    }
}

fn only(row: &mut [f32], tokens: &[u32]) {
    row.fill(f32::NEG_INFINITY);
    for &token in tokens {
        if let Some(x) = row.get_mut(token as usize) {
            *x = 0.0;
        }
    }
}

#[cfg(test)]
mod tests;
