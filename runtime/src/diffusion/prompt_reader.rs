//! How prompts become what a denoiser is conditioned on, whoever runs the text encoders.
//!
//! A text is read as the pipeline of diffusers reads it: padded to the length that the encoder
//! takes, padding seen like any token unless it is hidden, and cut where it is longer. The states of
//! several encoders stand side by side.

use std::path::PathBuf;

use dlc_ir::{Diffusion, ModelInfo, TextEncoder};

use super::feeds::{Conditions, NEGATIVE};
use super::prompt_tensors::{Joined, NamedTensor, TextState, TextTokens, sizes, zeros};
use super::prompt_tokenizer::{PromptTokenizer, PromptTokens};
use crate::{Result, RuntimeError};

/// Runs text encoders.
pub trait TextStates {
    /// What can go wrong.
    type Error: From<RuntimeError>;

    /// What `encoder` makes of each of the texts, in order.
    ///
    /// # Errors
    /// What the graph can't take, and what running it says.
    fn states(
        &mut self,
        encoder: &TextEncoder,
        texts: &[TextTokens],
    ) -> Result<Vec<TextState>, Self::Error>;
}

/// What images are led away from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Negative<'t> {
    /// Nothing: there is no guidance.
    None,
    /// What the pipeline leads them away from by itself: the empty text, or zeros.
    Usual,
    /// What a text says.
    Text(&'t str),
}

/// What images are conditioned on by a text.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedPrompt {
    /// One row, for any number of images.
    pub conditions: Conditions,
    /// What was cut off, a sentence for each text and encoder.
    pub notes: Vec<String>,
}

/// Reads prompts for the text encoders of a model.
#[derive(Debug)]
pub struct PromptReader {
    /// One for each text encoder.
    tokenizers: Vec<PromptTokenizer>,
    zeros_without_negative: bool,
    /// Height and width of the model's own images, in entries of the latents.
    own_size: [usize; 2],
    /// Pixels of an entry, on an axis.
    pixels: usize,
}

/// A text as every encoder takes it.
struct ReadText {
    tokens: Vec<TextTokens>,
    notes: Vec<String>,
}

impl PromptReader {
    /// The reader of a `model` with text encoders, by the tokenizers among the files that `find`
    /// gives by name. `pixels` is how many of a picture stand for an entry of the latents, on both
    /// axes; `place` is named in messages.
    ///
    /// # Errors
    /// [`RuntimeError::Unsupported`] for a model without text encoders; [`RuntimeError::Input`] for
    /// tokenizers that read texts at different lengths; and as [`PromptTokenizer::open`].
    pub fn open(
        place: &str,
        (model, pixels): (&ModelInfo, usize),
        find: impl Fn(&str) -> Option<PathBuf>,
    ) -> Result<Self> {
        let Some(prompts) = &model.prompts else {
            let fix = "Compile the folder of the whole pipeline, or give the texts' hidden states with `--embeddings FILE`";
            return Err(RuntimeError::unsupported(
                place,
                "there is no text encoder",
                fix,
            ));
        };
        let encoders = prompts.encoders.iter();
        let tokenizers = encoders.map(|encoder| PromptTokenizer::open(place, encoder, &find));
        let tokenizers: Vec<PromptTokenizer> = tokenizers.collect::<Result<_>>()?;
        let mut lengths = tokenizers.iter().map(PromptTokenizer::length);
        if let Some(first) = lengths.next()
            && let Some(other) = lengths.find(|other| *other != first)
        {
            return Err(RuntimeError::Input(format!(
                "one tokenizer reads texts in {first} tokens and another in {other}: `model_max_length` of their tokenizer_config.json must be the same"
            )));
        }
        let size = |side: fn(&Diffusion) -> usize| model.diffusion.as_ref().map_or(1, side);
        Ok(Self {
            tokenizers,
            zeros_without_negative: prompts.zeros_without_negative,
            own_size: [size(|model| model.height), size(|model| model.width)],
            pixels,
        })
    }

    /// The tokens of a text, padding among them, by the graph that reads them.
    ///
    /// # Errors
    /// As [`PromptTokenizer::encode`].
    pub fn token_ids(&self, text: &str) -> Result<Vec<(&str, Vec<u32>)>> {
        let tokenizers = self.tokenizers.iter();
        tokenizers
            .map(|t| Ok((t.reads().graph.as_str(), t.encode("text", text)?.ids)))
            .collect()
    }

    /// Refuses prompts that can't be read.
    ///
    /// # Errors
    /// As [`PromptTokenizer::encode`].
    pub fn check(&self, prompts: &[impl AsRef<str>]) -> Result<()> {
        let mut prompts = prompts.iter();
        prompts.try_for_each(|text| self.read("prompt", text.as_ref()).map(drop))
    }

    /// What images of each of the prompts are conditioned on, by `encoders`; the first has what they
    /// are led away from too. `size` is their height and width in entries of the latents, none for
    /// the model's own.
    ///
    /// # Errors
    /// [`RuntimeError::Port`] for states that aren't as they must be, as
    /// [`PromptTokenizer::encode`], and what `encoders` say.
    pub fn encode<S: TextStates>(
        &self,
        encoders: &mut S,
        prompts: &[impl AsRef<str>],
        negative: Negative<'_>,
        size: Option<[usize; 2]>,
    ) -> Result<Vec<EncodedPrompt>, S::Error> {
        let read = prompts
            .iter()
            .map(|text| self.read("prompt", text.as_ref()));
        let mut texts: Vec<ReadText> = read.collect::<Result<_>>()?;
        let away = match negative {
            Negative::Usual if !self.zeros_without_negative => Some(""),
            Negative::None | Negative::Usual => None,
            Negative::Text(text) => Some(text),
        };
        let away = away.map(|text| self.read("negative prompt", text));
        texts.extend(away.transpose()?);
        let mut made = self.tensors(encoders, &texts)?;
        let away = made.split_off(prompts.len()).pop();
        let first = made.first().filter(|_| negative == Negative::Usual);
        let mut away = away.or_else(|| first.map(|first| zeros(first)));
        let mut cut = texts.split_off(prompts.len()).pop();
        let sizes = sizes(size.unwrap_or(self.own_size), self.pixels);
        let prompt = |(tensors, text): (Vec<NamedTensor>, ReadText)| {
            let own = tensors.into_iter().chain(sizes.clone());
            let own = own.map(|(name, tensor)| (name.to_owned(), tensor));
            let away = away.take().into_iter().flatten();
            let away = away.map(|(name, tensor)| (format!("{NEGATIVE}{name}"), tensor));
            let cut = cut.take().into_iter().flat_map(|text| text.notes);
            EncodedPrompt {
                conditions: Conditions::of_texts(own.chain(away).collect()),
                notes: text.notes.into_iter().chain(cut).collect(),
            }
        };
        Ok(made.into_iter().zip(texts).map(prompt).collect())
    }

    /// A text as every encoder takes it; `what` is what it is called in messages.
    fn read(&self, what: &str, text: &str) -> Result<ReadText> {
        let (mut tokens, mut notes) = (Vec::new(), Vec::new());
        for tokenizer in &self.tokenizers {
            let PromptTokens { ids, real, note } = tokenizer.encode(what, text)?;
            notes.extend(note.filter(|note| !notes.contains(note)));
            let masked = tokenizer.reads().masked;
            let seen = |at: usize| i64::from(!masked || at < real);
            tokens.push(TextTokens {
                mask: (0..ids.len()).map(seen).collect(),
                ids: ids.into_iter().map(i64::from).collect(),
            });
        }
        Ok(ReadText { tokens, notes })
    }

    /// What each of the texts makes of the denoiser's inputs.
    fn tensors<S: TextStates>(
        &self,
        encoders: &mut S,
        texts: &[ReadText],
    ) -> Result<Vec<Vec<NamedTensor>>, S::Error> {
        let mut made: Vec<Joined> = texts.iter().map(|_| Joined::default()).collect();
        for (at, tokenizer) in self.tokenizers.iter().enumerate() {
            let reads = tokenizer.reads();
            let tokens = texts.iter().filter_map(|text| text.tokens.get(at));
            let tokens: Vec<TextTokens> = tokens.cloned().collect();
            let states = encoders.states(reads, &tokens)?;
            if states.len() != tokens.len() {
                let problem = "a text encoder left texts out".to_owned();
                return Err(RuntimeError::Bug(problem).into());
            }
            for ((joined, tokens), state) in made.iter_mut().zip(&tokens).zip(states) {
                joined.add(reads, tokens, state)?;
            }
        }
        Ok(made.into_iter().map(Joined::tensors).collect())
    }
}
