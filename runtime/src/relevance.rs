//! How well texts answer a query, by an encoder that reads both together (a cross-encoder: Nogueira
//! and Cho, *Passage Re-ranking with BERT*, 2019).

use super::sentence::open_with_tokenizer;
use super::{
    Backend, Bundle, EncoderSession, Result, Rows, RuntimeError, SessionOptions, TextTokenizer,
    TokenizedText,
};

/// An encoder that gives a query and a text one number.
#[derive(Debug)]
pub struct CrossEncoder {
    session: EncoderSession,
    tokenizer: TextTokenizer,
}

/// A query and a text that may answer it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryPair {
    /// The query.
    pub query: String,
    /// The text.
    pub text: String,
}

/// How well a text answers a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Relevance {
    /// Within 0 and 1: the logistic function of what the model says.
    pub score: f32,
    /// Tokens that were read.
    pub tokens: usize,
}

impl CrossEncoder {
    /// Whether a bundle is a model of this kind: it classifies, and has one class alone.
    pub fn is(bundle: &Bundle) -> bool {
        bundle.manifest().model.is_cross_encoder()
    }

    /// Loads the model.
    ///
    /// # Errors
    /// [`RuntimeError::Unsupported`] for a model of another kind and a bundle without tokenizer;
    /// else as [`EncoderSession::open`].
    pub fn open(backend: &Backend, bundle: &Bundle, options: &SessionOptions) -> Result<Self> {
        if !Self::is(bundle) {
            let reason = "the model doesn't give a query and a text one number";
            let fix = "Take a cross-encoder: a classifier with one label";
            let place = bundle.folder().display().to_string();
            return Err(RuntimeError::unsupported(place, reason, fix));
        }
        let (session, tokenizer) = open_with_tokenizer(backend, bundle, options)?;
        Ok(Self { session, tokenizer })
    }

    /// How well each text answers its query. Of both, what is longer loses tokens at its end first
    /// where together they are more than the model takes, as in Sentence Transformers.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for a pair without tokens; what the tokenizer and the backend say.
    pub fn score(&mut self, pairs: &[QueryPair]) -> Result<Vec<Relevance>> {
        let most = self.session.context_length();
        let tokens = pairs
            .iter()
            .map(|pair| self.tokenizer.analyse_both(&pair.query, &pair.text, most))
            .collect::<Result<Vec<_>>>()?;
        let rows = self.session.run(&tokens)?;
        let relevance = |(rows, tokens): (&Rows, &TokenizedText)| {
            let logit = rows.data.first().copied().unwrap_or(f32::NAN);
            Relevance {
                score: 1.0 / (1.0 + (-logit).exp()),
                tokens: tokens.ids.len(),
            }
        };
        Ok(rows.iter().zip(&tokens).map(relevance).collect())
    }
}
