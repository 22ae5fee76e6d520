//! How consumers of a bundle choose tokens by default.

/// Defaults for choosing tokens; [`Default`] is transformers'.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SearchDefaults {
    /// Whether tokens are drawn, not the most likely one taken.
    pub do_sample: bool,
    /// Divides the logits where tokens are drawn.
    pub temperature: f32,
    /// Tokens are drawn from so many most likely ones; 0 is all.
    pub top_k: usize,
    /// Tokens are drawn from the most likely ones that make up this probability.
    pub top_p: f32,
    /// Makes tokens of the text less likely; 1 doesn't.
    pub repetition_penalty: f32,
    /// No so many tokens in a row are repeated; 0 allows all.
    pub no_repeat_ngram_size: usize,
    /// Tokens of prompt and text before which no text ends.
    pub min_length: usize,
}

impl SearchDefaults {
    /// Whether onnxruntime-genai decodes with a draft under these: 0.18 refuses to where n-grams
    /// mustn't be repeated.
    pub fn allows_speculation(&self) -> bool {
        self.no_repeat_ngram_size == 0
    }
}

impl Default for SearchDefaults {
    fn default() -> Self {
        Self {
            do_sample: false,
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            min_length: 0,
        }
    }
}
