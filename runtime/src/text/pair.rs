//! A question and the text that it is about, as one sequence of tokens.

use std::ops::Range;

use dlc_files::guard::contain_panics;
use tokenizers::{
    Encoding, TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings,
};

use super::{TextTokenizer, TokenizedText};
use crate::Result;

/// A question and a text as an encoder reads them; one entry for each token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizedPair {
    /// The tokens of both, the question's first.
    pub tokens: TokenizedText,
    /// For tokens of the text the bytes of their words in it.
    pub places: Vec<Option<Range<usize>>>,
    /// How many tokens both have, those included that were left out.
    pub whole: usize,
}

impl TextTokenizer {
    /// The tokens of `question` and `text`; with those at the end of the text left out that make
    /// it longer than `most`.
    ///
    /// # Errors
    /// [`RuntimeError::File`](crate::RuntimeError::File) for a tokenizer that fails on the texts.
    pub fn analyse_pair(&self, question: &str, text: &str, most: usize) -> Result<TokenizedPair> {
        let [first, mut second, whole] = self.apart_and_joined(question, text)?;
        let n = whole.len();
        if n <= most {
            return Ok(TokenizedPair::of(&whole, n));
        }
        let room = second.len().saturating_sub(n - most);
        second.truncate(room, 0, TruncationDirection::Right);
        second.take_overflowing();
        Ok(TokenizedPair::of(&self.joined(first, second)?, n))
    }

    /// The tokens of two texts of equal standing: of the longer one the last go first, until both
    /// have `most`.
    ///
    /// # Errors
    /// [`RuntimeError::File`](crate::RuntimeError::File) for a tokenizer that fails on the texts.
    pub fn analyse_both(&self, first: &str, second: &str, most: usize) -> Result<TokenizedText> {
        let [first, second, whole] = self.apart_and_joined(first, second)?;
        let surplus = whole.len().saturating_sub(most);
        if surplus == 0 {
            return Ok(TokenizedText::of(&whole));
        }
        let bounds = TruncationParams {
            max_length: (first.len() + second.len()).saturating_sub(surplus),
            strategy: TruncationStrategy::LongestFirst,
            ..TruncationParams::default()
        };
        let cut = truncate_encodings(first, Some(second), &bounds);
        let (mut first, second) = cut.map_err(|error| self.failed(&error.to_string()))?;
        let mut second = second.unwrap_or_default();
        first.take_overflowing();
        second.take_overflowing();
        Ok(TokenizedText::of(&self.joined(first, second)?))
    }

    /// Each of two texts, and both with what the tokenizer puts around them.
    fn apart_and_joined(&self, first: &str, second: &str) -> Result<[Encoding; 3]> {
        let (first, mut second) = (self.encoding(first, false)?, self.encoding(second, false)?);
        // What a tokenizer without a post-processor leaves as it is.
        second.set_type_ids(vec![1; second.len()]);
        let whole = self.joined(first.clone(), second.clone())?;
        Ok([first, second, whole])
    }

    /// Both with what the tokenizer puts around them.
    fn joined(&self, first: Encoding, second: Encoding) -> Result<Encoding> {
        contain_panics("the tokenizer", || {
            self.tokenizer
                .post_process(first, Some(second), true)
                .map_err(|error| error.to_string())
        })
        .and_then(|encoding| encoding)
        .map_err(|problem| self.failed(&problem))
    }
}

impl TokenizedPair {
    fn of(encoding: &Encoding, whole: usize) -> Self {
        let (sequences, words) = (encoding.get_sequence_ids(), encoding.get_word_ids());
        let offsets = encoding.get_offsets();
        let of_text = |i: usize| sequences.get(i).copied().flatten() == Some(1);
        // The words of a text follow each other.
        let place = |i: usize| {
            let same = |j: &usize| *j == i || words[*j].is_some() && words[*j] == words[i];
            let first = (0..=i)
                .rev()
                .take_while(|j| of_text(*j) && same(j))
                .last()?;
            let last = (i..offsets.len())
                .take_while(|j| of_text(*j) && same(j))
                .last()?;
            Some(offsets[first].0..offsets[last].1)
        };
        Self {
            tokens: TokenizedText::of(encoding),
            places: (0..encoding.len()).map(place).collect(),
            whole,
        }
    }
}
