//! The tokens of prompts, as the pipeline of diffusers makes them: padded to the length that the
//! text encoder takes, and cut where they are longer.

use std::borrow::Cow;

use dlc_ir::TextEncoder;

use crate::{Result, RuntimeError, TextTokenizer};

/// What CLIP's tokens have in the place of the space after a word.
const WORD_END: &str = "</w>";

/// The tokenizer of a text encoder, which fills texts up.
#[derive(Debug)]
pub struct PromptTokenizer {
    tokenizer: TextTokenizer,
    padding: u32,
    /// Tokens of every text, padding among them.
    length: usize,
    reads: TextEncoder,
}

/// A text as a text encoder takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptTokens {
    /// The tokens, padding at the end.
    pub ids: Vec<u32>,
    /// How many aren't padding.
    pub real: usize,
    /// What was cut off, as a sentence.
    pub note: Option<String>,
}

impl PromptTokenizer {
    /// For a text encoder; none if the tokenizer has no token to fill texts up with.
    pub fn new(tokenizer: TextTokenizer, reads: &TextEncoder) -> Option<Self> {
        let longest = tokenizer.model_max_length();
        let longest = longest.filter(|longest| reads.shortened && *longest > 1);
        Some(Self {
            padding: tokenizer.pad_token()?,
            length: longest.map_or(reads.length, |longest| longest.min(reads.length)),
            tokenizer,
            reads: reads.clone(),
        })
    }

    /// The tokens of a text; `what` is what the text is called in messages.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for tokens that the encoder doesn't have, and what the tokenizer
    /// says.
    pub fn encode(&self, what: &str, text: &str) -> Result<PromptTokens> {
        let text: Cow<'_, str> = if self.reads.lower_case {
            text.to_lowercase().trim().to_owned().into()
        } else {
            text.into()
        };
        let (cut, whole) = self.tokenizer.analyse_cut(&text, self.length, false)?;
        let mut ids = cut.ids;
        let own = ids.iter().copied().chain([self.padding]);
        let known = self.reads.vocab_size;
        if let Some(id) = own.max().filter(|id| *id as usize >= known) {
            return Err(RuntimeError::Input(format!(
                "the {what} has the token {id}, and graph `{}` knows {known}: the tokenizer is another model's",
                self.reads.graph
            )));
        }
        let mut note = None;
        if whole > self.length {
            let all = self.tokenizer.encode(&text, true)?;
            // The last token ends the text, cut or not.
            let lost = all.get(self.length - 1..whole - 1).unwrap_or_default();
            note = Some(format!(
                "the {what} has {whole} tokens, and the text encoder takes {}; cut off: `{}`",
                self.length,
                self.tokenizer.decode(lost)?.replace(WORD_END, " ").trim()
            ));
        }
        let real = ids.len();
        ids.resize(self.length, self.padding);
        Ok(PromptTokens { ids, real, note })
    }
}
