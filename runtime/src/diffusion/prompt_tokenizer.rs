//! The tokens of prompts, as the pipeline of diffusers makes them: padded to the length that the
//! text encoder takes, and cut where they are longer.

use std::borrow::Cow;
use std::path::PathBuf;

use dlc_ir::TextEncoder;

use crate::{Result, RuntimeError, TextTokenizer};

/// What CLIP's tokens have in the place of the space after a word.
const WORD_END: &str = "</w>";

/// The component of a pipeline with the first tokenizer, whose files lie in the bundle itself.
const TOKENIZER: &str = "tokenizer";

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
    /// The tokenizer of a text encoder, among the files that `find` gives by name; `place` is named
    /// in messages.
    ///
    /// # Errors
    /// [`RuntimeError::Unsupported`] where there is none, or no token to fill texts up with, and as
    /// [`TextTokenizer::among`].
    pub fn open(
        place: &str,
        reads: &TextEncoder,
        find: impl Fn(&str) -> Option<PathBuf>,
    ) -> Result<Self> {
        let (what, folder) = match reads.tokenizer.as_str() {
            "" => ("tokenizer".to_owned(), TOKENIZER),
            folder => (format!("tokenizer in `{folder}`"), folder),
        };
        let lacks = |what: &str, fix: String| {
            RuntimeError::unsupported(place, format!("there is no {what}"), fix)
        };
        let tokenizer = TextTokenizer::among(&reads.tokenizer, find)?.ok_or_else(|| {
            let fix = format!(
                "Put the tokenizer's files into the pipeline's folder `{folder}` and compile it again"
            );
            lacks(&what, fix)
        })?;
        let padding = tokenizer.pad_token().ok_or_else(|| {
            let fix =
                format!("Name it in {folder}/tokenizer_config.json and compile the pipeline again");
            lacks("`pad_token`, which prompts are filled up with", fix)
        })?;
        let longest = tokenizer.model_max_length();
        let longest = longest.filter(|longest| reads.shortened && *longest > 1);
        Ok(Self {
            padding,
            length: longest.map_or(reads.length, |longest| longest.min(reads.length)),
            tokenizer,
            reads: reads.clone(),
        })
    }

    /// Tokens of every text, padding among them.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The text encoder that it is for.
    pub fn reads(&self) -> &TextEncoder {
        &self.reads
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
