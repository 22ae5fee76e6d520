//! The small face that the decoding loop is written against: a model that scores tokens and can
//! forget them again.
//!
//! Never knows what a session, a cache layout or a backend is.

use std::borrow::Cow;

use crate::Result;

/// A causal language model with a cache, one sequence at a time.
pub trait TokenModel {
    /// Number of entries of the vocabulary.
    fn vocab_size(&self) -> usize;

    /// The longest sequence that the model takes, in tokens.
    fn context_length(&self) -> usize;

    /// Tokens that the cache holds.
    fn len(&self) -> usize;

    /// Whether the cache holds nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends `tokens` to the cached sequence and returns the logits of the last `want` of them:
    /// row `i` scores what follows token `tokens.len() - want + i`.
    ///
    /// # Errors
    /// [`MethodError::Input`] for tokens that the model doesn't have or its context has no room
    /// for; [`MethodError::Model`] for what the model says. The cache is then in an unknown state;
    /// [`Self::rollback`] to 0 makes it usable.
    ///
    /// [`MethodError::Input`]: crate::MethodError::Input
    /// [`MethodError::Model`]: crate::MethodError::Model
    fn extend(&mut self, tokens: &[u32], want: usize) -> Result<Logits<'_>>;

    /// Says that a text of `len` tokens is about to be read, and returns how. A rotation that
    /// depends on the length of the text takes this one, until another is expected; tokens in the
    /// cache that were rotated otherwise are forgotten.
    fn expect(&mut self, len: usize, piece: usize) -> Reading {
        let _ = len;
        Reading::Pieces(piece)
    }

    /// How many of `most` guessed tokens can be appended behind `pending` decided ones in one call,
    /// such that the model says of each what it would say of it alone.
    fn guesses(&self, pending: usize, most: usize) -> usize {
        let _ = pending;
        most
    }

    /// Forgets everything after the first `len` tokens. Does nothing if no more than that are
    /// cached.
    fn rollback(&mut self, len: usize);

    /// Holds, from now on, what the model whose cache it reads holds of the first `len` tokens.
    /// Does nothing where the cache is its own.
    ///
    /// # Errors
    /// [`MethodError::Model`](crate::MethodError::Model) for what the model says.
    fn adopt(&mut self, len: usize) -> Result<()> {
        let _ = len;
        Ok(())
    }

    /// Tokens that the cache would hold after [`Self::adopt`] of `len`.
    fn len_after_adopting(&self, len: usize) -> usize {
        let _ = len;
        self.len()
    }
}

/// How a text is to be read, so that pieces are what the whole is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// So many tokens at a time.
    Pieces(usize),
    /// All at once, its last token too.
    Whole,
}

impl Reading {
    /// How many tokens of a text of `len` to read at a time, at least one.
    pub fn piece(self, len: usize) -> usize {
        match self {
            Self::Pieces(piece) => piece.max(1),
            Self::Whole => len.max(1),
        }
    }
}

/// Scores of the vocabulary at a few positions, row-major `[rows, vocab]`: where the model has them,
/// until its next call, or numbers of their own.
#[derive(Debug, Clone, PartialEq)]
pub struct Logits<'m> {
    vocab: usize,
    data: Cow<'m, [f32]>,
}

impl<'m> Logits<'m> {
    /// Rows of `vocab` scores each; an incomplete last row is none.
    pub fn new(vocab: usize, data: impl Into<Cow<'m, [f32]>>) -> Self {
        let data = data.into();
        Self { vocab, data }
    }

    /// The same scores, apart from the model.
    pub fn into_owned(self) -> Logits<'static> {
        Logits::new(self.vocab, self.data.into_owned())
    }

    /// Number of positions.
    pub fn rows(&self) -> usize {
        self.data.len().checked_div(self.vocab).unwrap_or(0)
    }

    /// The scores at position `i`, or an empty slice past the end.
    pub fn row(&self, i: usize) -> &[f32] {
        let start = i.saturating_mul(self.vocab);
        self.data
            .get(start..start.saturating_add(self.vocab))
            .unwrap_or_default()
    }
}
