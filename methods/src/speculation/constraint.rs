//! The face of grammars that say what a text may be. Which tokens may follow is a function of the
//! text before them, so drafting stays lossless: target and draft choose under the same mask.

use std::fmt::Debug;

use crate::Result;

/// What a text may be.
pub trait Grammar: Debug + Send + Sync {
    /// A reader that has read nothing yet.
    fn start(&self) -> Box<dyn Constraint>;
}

/// Reads a text that a grammar rules. Texts are those after the prompt; each call may go on from
/// the last one's or go back to an earlier place.
pub trait Constraint: Debug + Send {
    /// Lowers the logits of tokens that may not follow `text` to -inf.
    ///
    /// # Errors
    /// [`MethodError::Input`](crate::MethodError::Input) for a text that broke the rules, and for a
    /// grammar that is too much for its limits.
    fn mask(&mut self, text: &[u32], logits: &mut [f32]) -> Result<()>;

    /// Appends tokens that should follow `text` since the grammar leaves no other text.
    ///
    /// # Errors
    /// As [`Self::mask`].
    fn forced(&mut self, text: &[u32], tokens: &mut Vec<u32>) -> Result<()>;

    /// Whether nothing can follow `text`.
    ///
    /// # Errors
    /// As [`Self::mask`].
    fn is_complete(&mut self, text: &[u32]) -> Result<bool>;
}
