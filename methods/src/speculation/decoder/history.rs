//! The text before each row of a pass, for what changes logits by it.

use std::borrow::Cow;

use super::DecodeOptions;
use crate::speculation::processors::Place;

/// Follows a text token by token and changes the logits of what comes next.
#[derive(Debug)]
pub struct History<'o> {
    options: &'o DecodeOptions,
    prompt: usize,
    /// Empty where nothing looks at it.
    text: Vec<u32>,
    neutral: bool,
}

impl<'o> History<'o> {
    /// At the end of `text`, whose first `prompt` tokens are the prompt.
    pub fn new(options: &'o DecodeOptions, prompt: usize, text: &[u32]) -> Self {
        let neutral = options.processors.is_neutral();
        Self {
            options,
            prompt,
            text: if neutral { Vec::new() } else { text.to_vec() },
            neutral,
        }
    }

    /// The text goes on with `token`.
    pub fn push(&mut self, token: u32) {
        if !self.neutral {
            self.text.push(token);
        }
    }

    /// The logits after the text as a token is chosen by them; None if the processors leave none
    /// of those that there are.
    pub fn process<'l>(&self, logits: &'l [f32]) -> Option<Cow<'l, [f32]>> {
        if self.neutral {
            return Some(Cow::Borrowed(logits));
        }
        let place = Place {
            text: &self.text,
            prompt: self.prompt,
            most: self.options.longest(self.prompt),
        };
        let row = self.options.processors.process(logits, place);
        let left = |row: &[f32]| row.iter().any(|x| *x > f32::NEG_INFINITY || x.is_nan());
        (left(&row) || !left(logits)).then_some(row)
    }
}
