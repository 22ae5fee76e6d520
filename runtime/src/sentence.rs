//! Vectors of texts, as Sentence Transformers makes them of an encoder's rows; and how long texts may
//! be.

use std::sync::Arc;

use dlc_ir::{Pooling, Sentence};

use super::{
    Backend, Bundle, EncoderSession, Result, RuntimeError, SessionOptions, SharedWeights,
    TextTokenizer, TokenizedText, sentence_vector,
};

/// How long the texts of an encoder may be, and what becomes of longer ones.
#[derive(Debug, Clone, Copy)]
pub struct TextLimits {
    /// Tokens, those that the tokenizer puts around a text included.
    pub most: usize,
    /// Whether longer texts are cut; else they are refused.
    pub cuts: bool,
    /// Whether they are cut at their start.
    pub at_start: bool,
}

impl TextLimits {
    /// Sentence Transformers cuts texts at the limit of the checkpoint; other encoders do it where
    /// they are asked to.
    pub fn new(sentence: Option<&Sentence>, context: usize, cuts: bool) -> Self {
        let limit = sentence.and_then(|sentence| sentence.max_tokens);
        Self {
            most: limit.map_or(context, |limit| limit.min(context)),
            cuts: cuts || sentence.is_some(),
            at_start: sentence.is_some_and(|sentence| sentence.cut_start),
        }
    }

    /// The tokens of a text as far as they fit, and how many it has.
    ///
    /// # Errors
    /// [`RuntimeError::File`] for a tokenizer that fails on the text.
    pub fn tokenize(
        &self,
        tokenizer: &TextTokenizer,
        text: &str,
    ) -> Result<(TokenizedText, usize)> {
        tokenizer.analyse_cut(text, self.most, self.at_start)
    }

    /// Whether a text of `n` tokens is too long, and not to be cut.
    pub fn refuses(&self, n: usize) -> bool {
        n > self.most && !self.cuts
    }

    /// How many tokens at the start of texts are those of a prompt before them: all that it has by
    /// itself, but for a token that ends texts.
    ///
    /// # Errors
    /// [`RuntimeError::File`] for a tokenizer that fails on it.
    pub fn prompt_tokens(&self, tokenizer: &TextTokenizer, prompt: &str) -> Result<usize> {
        if prompt.is_empty() {
            return Ok(0);
        }
        let (tokens, _) = self.tokenize(tokenizer, prompt)?;
        let ends = |id: &u32| tokenizer.is_special(*id);
        Ok(tokens.ids.len() - usize::from(tokens.ids.last().is_some_and(ends)))
    }
}

/// How a checkpoint of Sentence Transformers makes the vector of a text; None of another one.
///
/// # Errors
/// [`RuntimeError::Unsupported`] for a way that isn't known.
pub fn sentence_of(bundle: &Bundle) -> Result<Option<Sentence>> {
    let sentence = bundle.manifest().model.sentence.clone();
    if let Some(step) = sentence.as_ref().and_then(Sentence::unsupported) {
        let known: Vec<&str> = Pooling::ALL.iter().map(Pooling::name).collect();
        return Err(RuntimeError::unsupported(
            bundle.folder().display().to_string(),
            format!(
                "the checkpoint makes the vector of a text by {step}; dlc knows the pooling modes {}",
                known.join(", ")
            ),
            "Pool the outputs of model.onnx yourself",
        ));
    }
    Ok(sentence)
}

/// The encoder of a bundle and its tokenizer.
///
/// # Errors
/// [`RuntimeError::Unsupported`] for a bundle without tokenizer; else as [`EncoderSession::open`].
pub(crate) fn open_with_tokenizer(
    backend: &Backend,
    bundle: &Bundle,
    options: &SessionOptions,
) -> Result<(EncoderSession, TextTokenizer)> {
    let tokenizer = TextTokenizer::of_bundle(bundle)?.ok_or_else(|| {
        let reason = "the bundle has no tokenizer.json, so it can't read text";
        let fix = "Compile it again with one beside config.json";
        RuntimeError::unsupported(bundle.folder().display().to_string(), reason, fix)
    })?;
    let weights: Option<Arc<SharedWeights>> = SharedWeights::open(bundle, backend)?;
    let session = EncoderSession::open(backend, bundle, "target", weights.as_ref(), options)?;
    Ok((session, tokenizer))
}

/// An encoder whose texts become vectors.
#[derive(Debug)]
pub struct SentenceEncoder {
    session: EncoderSession,
    tokenizer: TextTokenizer,
    sentence: Sentence,
    limits: TextLimits,
    /// What is put before every text.
    prompt: String,
    prompt_tokens: usize,
}

/// The vector of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct TextVector {
    /// The numbers.
    pub vector: Vec<f32>,
    /// Tokens that were read.
    pub tokens: usize,
}

impl SentenceEncoder {
    /// Loads an encoder, with the prompt that the checkpoint puts before texts by itself.
    ///
    /// # Errors
    /// [`RuntimeError::Unsupported`] for a bundle without tokenizer, and for a way to make vectors
    /// that isn't known; else as [`EncoderSession::open`].
    pub fn open(backend: &Backend, bundle: &Bundle, options: &SessionOptions) -> Result<Self> {
        let sentence = sentence_of(bundle)?;
        let (session, tokenizer) = open_with_tokenizer(backend, bundle, options)?;
        Self::of(session, tokenizer, sentence)
    }

    fn of(
        session: EncoderSession,
        mut tokenizer: TextTokenizer,
        sentence: Option<Sentence>,
    ) -> Result<Self> {
        if sentence.as_ref().is_some_and(|s| s.lower_case) {
            tokenizer.lower_case()?;
        }
        let limits = TextLimits::new(sentence.as_ref(), session.context_length(), false);
        let sentence = sentence.unwrap_or_default();
        let name = sentence.default_prompt.as_deref();
        let prompt = name.and_then(|name| sentence.prompts.get(name)).cloned();
        let prompt = prompt.unwrap_or_default();
        let prompt_tokens = limits.prompt_tokens(&tokenizer, &prompt)?;
        Ok(Self {
            session,
            tokenizer,
            sentence,
            limits,
            prompt,
            prompt_tokens,
        })
    }

    /// The vectors of texts, each what it is alone.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for a text without tokens, and for one that is too long and isn't to
    /// be cut; what the tokenizer and the backend say.
    pub fn encode(&mut self, texts: &[String]) -> Result<Vec<TextVector>> {
        let tokens = (1..)
            .zip(texts)
            .map(|(number, text)| self.tokens(number, text));
        let tokens = tokens.collect::<Result<Vec<_>>>()?;
        let rows = self.session.run(&tokens)?;
        let vector = |(rows, tokens): (_, &TokenizedText)| TextVector {
            vector: sentence_vector(rows, &self.sentence, self.prompt_tokens),
            tokens: tokens.ids.len(),
        };
        Ok(rows.iter().zip(&tokens).map(vector).collect())
    }

    fn tokens(&self, number: usize, text: &str) -> Result<TokenizedText> {
        let whole = format!("{}{text}", self.prompt);
        let (tokens, n) = self.limits.tokenize(&self.tokenizer, &whole)?;
        let most = self.limits.most;
        match n {
            0 => Err(RuntimeError::Input(format!(
                "text {number} has no token, so there is nothing to read"
            ))),
            n if self.limits.refuses(n) => Err(RuntimeError::Input(format!(
                "text {number} has {n} tokens, and the model takes {most}: shorten it"
            ))),
            _ => Ok(tokens),
        }
    }
}
