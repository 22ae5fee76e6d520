//! The tokens of prompts, as diffusers' `StableDiffusionPipeline` makes them: padded to the length
//! that the text encoder takes, and cut where they are longer.

use dlc_ir::ModelInfo;

use crate::{Result, RuntimeError, TextTokenizer};

/// What CLIP's tokens have in the place of the space after a word.
const WORD_END: &str = "</w>";

/// A tokenizer that fills texts up.
#[derive(Debug)]
pub struct PromptTokenizer {
    tokenizer: TextTokenizer,
    /// Tokens of every text, padding among them.
    length: usize,
    padding: u32,
    vocabulary: usize,
}

impl PromptTokenizer {
    /// For the text encoder of a model; none if the tokenizer has no token to fill texts up with.
    pub fn new(tokenizer: TextTokenizer, model: &ModelInfo) -> Option<Self> {
        let longest = model.context_length;
        let length = tokenizer.model_max_length().unwrap_or(longest);
        Some(Self {
            length: length.min(longest),
            padding: tokenizer.pad_token()?,
            vocabulary: model.vocab_size,
            tokenizer,
        })
    }

    /// The tokens of a text, filled up, and a note of what was cut off. `what` is what the text is
    /// called in messages.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for tokens that the encoder doesn't have, and what the tokenizer
    /// says.
    pub fn encode(&self, what: &str, text: &str) -> Result<(Vec<u32>, Option<String>)> {
        let (cut, whole) = self.tokenizer.analyse_cut(text, self.length, false)?;
        let mut ids = cut.ids;
        let own = ids.iter().copied().chain([self.padding]);
        if let Some(id) = own.max().filter(|id| *id as usize >= self.vocabulary) {
            return Err(RuntimeError::Input(format!(
                "the {what} has the token {id}, and the text encoder knows {}: the tokenizer is another model's",
                self.vocabulary
            )));
        }
        let mut note = None;
        if whole > self.length {
            let all = self.tokenizer.encode(text, true)?;
            // The last token ends the text, cut or not.
            let lost = all.get(self.length - 1..whole - 1).unwrap_or_default();
            note = Some(format!(
                "the {what} has {whole} tokens, and the text encoder takes {}; cut off: `{}`",
                self.length,
                self.tokenizer.decode(lost)?.replace(WORD_END, " ").trim()
            ));
        }
        ids.resize(self.length, self.padding);
        Ok((ids, note))
    }
}
