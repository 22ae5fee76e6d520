//! Prompts: what images are conditioned on by a text, by the tokenizers and the text encoders of a
//! bundle.
//!
//! A text is read as the pipeline of diffusers reads it: padded to the length that the encoder
//! takes, padding seen like any token unless it is hidden, and cut where it is longer. The states of
//! several encoders stand side by side.

use std::sync::Arc;

use dlc_ir::{Prompts, TextEncoder};
use dlc_methods::diffusion::inputs;

use super::feeds::{Conditions, NEGATIVE};
use super::prompt_tokenizer::{PromptTokenizer, PromptTokens};
use super::tensors::FloatTensor;
use crate::{
    Backend, Bundle, HostTensor, Result, RuntimeError, Session, SessionOptions, SharedWeights,
    TextTokenizer,
};

/// The component with the first tokenizer, whose files lie in the bundle itself.
const TOKENIZER: &str = "tokenizer";

/// The text encoders of a bundle with their tokenizers.
#[derive(Debug)]
pub struct PromptEncoder {
    encoders: Vec<Encoder>,
    zeros_without_negative: bool,
    /// Height and width of the model's own images, in entries of the latents.
    own_size: [usize; 2],
    /// Pixels of an entry, on an axis.
    pixels: usize,
}

/// An input of the denoiser, and what it takes.
type NamedTensor = (&'static str, FloatTensor);

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

/// What images are conditioned on by texts.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedPrompt {
    /// One row, for any number of images.
    pub conditions: Conditions,
    /// What was cut off, a sentence for each text and encoder.
    pub notes: Vec<String>,
}

impl PromptEncoder {
    /// Loads the text encoders of a bundle.
    ///
    /// # Errors
    /// [`RuntimeError::Unsupported`] for a bundle without a text encoder or a tokenizer for it, and
    /// as [`TextTokenizer::of_bundle`] and [`Session::load`].
    pub fn open(
        backend: &Backend,
        bundle: &Bundle,
        weights: Option<&Arc<SharedWeights>>,
        options: &SessionOptions,
    ) -> Result<Self> {
        let model = &bundle.manifest().model;
        let Some(prompts) = &model.prompts else {
            let fix = "Compile the folder of the whole pipeline, or give the texts' hidden states with `--embeddings FILE`";
            return Err(lacks(bundle, "text encoder", fix));
        };
        let Prompts {
            encoders,
            zeros_without_negative,
            pixels,
        } = prompts;
        let load = |encoder: &TextEncoder| {
            Ok(Encoder {
                tokenizer: tokenizer(bundle, encoder)?,
                session: Session::load(backend, bundle, &encoder.graph, weights, options)?,
                reads: encoder.clone(),
            })
        };
        let size = |side: fn(&dlc_ir::Diffusion) -> usize| model.diffusion.as_ref().map_or(1, side);
        Ok(Self {
            encoders: encoders.iter().map(load).collect::<Result<_>>()?,
            zeros_without_negative: *zeros_without_negative,
            own_size: [size(|model| model.height), size(|model| model.width)],
            pixels: *pixels,
        })
    }

    /// The tokens of a text, padding among them, by the graph that reads them.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for tokens that an encoder doesn't have, and what the tokenizers say.
    pub fn token_ids(&self, text: &str) -> Result<Vec<(&str, Vec<u32>)>> {
        let tokens = |encoder: &'_ Encoder| encoder.tokenizer.encode("text", text);
        let encoders = self.encoders.iter();
        encoders
            .map(|encoder| Ok((encoder.reads.graph.as_str(), tokens(encoder)?.ids)))
            .collect()
    }

    /// What images of `prompt` are conditioned on, and what they are led away from; `size` is their
    /// height and width in entries of the latents, none for the model's own.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for tokens that an encoder doesn't have and for texts that encoders
    /// read at different lengths, and what the tokenizers and the backend say.
    pub fn encode(
        &mut self,
        prompt: &str,
        negative: Negative<'_>,
        size: Option<[usize; 2]>,
    ) -> Result<EncodedPrompt> {
        let (mut tensors, mut notes) = self.text("prompt", prompt)?;
        let negative = match negative {
            Negative::None => Vec::new(),
            Negative::Usual if self.zeros_without_negative => {
                let zero = |(name, tensor): &NamedTensor| {
                    let data = vec![0.0; tensor.data.len()];
                    let shape = tensor.shape.clone();
                    (*name, FloatTensor { shape, data })
                };
                tensors.iter().map(zero).collect()
            }
            Negative::Usual => self.text("negative prompt", "")?.0,
            Negative::Text(text) => {
                let (tensors, cut) = self.text("negative prompt", text)?;
                notes.extend(cut);
                tensors
            }
        };
        tensors.extend(sizes(size.unwrap_or(self.own_size), self.pixels));
        let negative = negative.into_iter();
        let negative = negative.map(|(name, tensor)| (format!("{NEGATIVE}{name}"), tensor));
        let positive = tensors.into_iter();
        let positive = positive.map(|(name, tensor)| (name.to_owned(), tensor));
        Ok(EncodedPrompt {
            conditions: Conditions::of_texts(positive.chain(negative).collect()),
            notes,
        })
    }

    /// What a text makes of the denoiser's inputs, and what was cut off of it.
    fn text(&mut self, what: &str, text: &str) -> Result<(Vec<NamedTensor>, Vec<String>)> {
        let (mut notes, mut all) = (Vec::new(), Vec::new());
        let (mut pooled, mut mask) = (None, None);
        for encoder in &mut self.encoders {
            let PromptTokens { ids, real, note } = encoder.tokenizer.encode(what, text)?;
            notes.extend(note.filter(|note| !notes.contains(note)));
            let (states, whole) = encoder.states(&ids, real)?;
            all.push(states);
            pooled = pooled.or(whole);
            if encoder.reads.masked {
                let places = 0..ids.len();
                let data = places.map(|at| f32::from(u8::from(at < real))).collect();
                let shape = vec![1, ids.len()];
                mask = Some(FloatTensor { shape, data });
            }
        }
        let states = side_by_side(all)?;
        let tensors = [
            (inputs::TEXT, Some(states)),
            (inputs::POOLED_TEXT, pooled),
            (inputs::TEXT_MASK, mask),
        ];
        let tensors = tensors.into_iter();
        let tensors = tensors.filter_map(|(name, tensor)| Some((name, tensor?)));
        Ok((tensors.collect(), notes))
    }
}

fn lacks(bundle: &Bundle, what: &str, fix: &str) -> RuntimeError {
    let place = bundle.folder().display().to_string();
    RuntimeError::unsupported(place, format!("the bundle has no {what}"), fix)
}

/// The tokenizer of an encoder.
fn tokenizer(bundle: &Bundle, encoder: &TextEncoder) -> Result<PromptTokenizer> {
    let (what, folder) = match encoder.tokenizer.as_str() {
        "" => ("tokenizer".to_owned(), TOKENIZER),
        folder => (format!("tokenizer in `{folder}`"), folder),
    };
    let found = TextTokenizer::in_folder(bundle, &encoder.tokenizer)?.ok_or_else(|| {
        let fix = format!(
            "Put the tokenizer's files into the pipeline's folder `{folder}` and compile it again"
        );
        lacks(bundle, &what, &fix)
    })?;
    PromptTokenizer::new(found, encoder).ok_or_else(|| {
        let fix =
            format!("Name it in {folder}/tokenizer_config.json and compile the pipeline again");
        let what = "`pad_token`, which prompts are filled up with";
        lacks(bundle, what, &fix)
    })
}

/// What denoisers are told of the size of an image, whether or not this one is: height and width in
/// pixels, that it is whole, and their ratio.
fn sizes(size: [usize; 2], pixels: usize) -> [NamedTensor; 3] {
    let [height, width] = size.map(|side| side as f32 * pixels as f32);
    let row = |data: Vec<f32>| FloatTensor {
        shape: vec![1, data.len()],
        data,
    };
    [
        // Original size, upper left corner of what was cut out, and size of the image.
        (
            inputs::TIME_IDS,
            row(vec![height, width, 0.0, 0.0, height, width]),
        ),
        (inputs::RESOLUTION, row(vec![height, width])),
        (inputs::ASPECT_RATIO, row(vec![height / width])),
    ]
}

/// The states of one text by several encoders, joined along the last axis.
fn side_by_side(all: Vec<FloatTensor>) -> Result<FloatTensor> {
    let mut all = all.into_iter();
    let first = all.next();
    let first = first.ok_or_else(|| RuntimeError::Input("there is no text encoder".to_owned()))?;
    all.try_fold(first, |left, right| {
        let [1, tokens, a] = left.shape[..] else {
            return Err(RuntimeError::Bug("states of more than a text".to_owned()));
        };
        let (other, b) = (right.shape[1], right.shape[2]);
        if tokens != other {
            return Err(RuntimeError::Input(format!(
                "one tokenizer reads texts in {tokens} tokens and another in {other}: `model_max_length` of their tokenizer_config.json must be the same"
            )));
        }
        let rows = left.data.chunks(a.max(1)).zip(right.data.chunks(b.max(1)));
        Ok(FloatTensor {
            data: rows.flat_map(|(a, b)| [a, b].concat()).collect(),
            shape: vec![1, tokens, a + b],
        })
    })
}

/// A text encoder with its tokenizer.
#[derive(Debug)]
struct Encoder {
    session: Session,
    tokenizer: PromptTokenizer,
    reads: TextEncoder,
}

impl Encoder {
    /// The hidden states of one text's tokens, `[1, tokens, width]`, of which the first `real`
    /// aren't padding; and the state of the text as a whole, `[1, width]`, where there is one.
    fn states(&mut self, ids: &[u32], real: usize) -> Result<(FloatTensor, Option<FloatTensor>)> {
        let row = |data: Vec<i64>| HostTensor::i64([1, ids.len()], data);
        let tokens = row(ids.iter().map(|id| i64::from(*id)).collect());
        let masked = self.reads.masked;
        let seen = |at: usize| i64::from(!masked || at < real);
        let mask = row((0..ids.len()).map(seen).collect());
        let mut inputs = vec![("input_ids", tokens), ("attention_mask", mask)];
        // A graph that sees every token takes no mask.
        let known = self.session.input_names();
        inputs.retain(|(name, _)| *name != "attention_mask" || masked || known.contains(name));
        let mut outputs = self.session.run_host(&inputs)?;
        let mut take = |name: &str, rank: usize| {
            let at = outputs.iter().position(|(output, _)| output == name)?;
            let (_, tensor) = outputs.swap_remove(at);
            let found = tensor.to_f32().filter(|_| tensor.shape.len() == rank);
            Some(self.checked(name, found, tensor.shape))
        };
        let states = take(&self.reads.states, 3)
            .unwrap_or_else(|| Err(self.broken(&self.reads.states, "the backend gave no numbers")));
        let pooled = take(TextEncoder::POOLED, 2).transpose()?;
        Ok((states?, pooled))
    }

    fn checked(
        &self,
        output: &str,
        data: Option<Vec<f32>>,
        shape: Vec<usize>,
    ) -> Result<FloatTensor> {
        let problem = "the backend gave no numbers of this rank";
        let data = data.ok_or_else(|| self.broken(output, problem))?;
        if !data.iter().all(|x| x.is_finite()) {
            return Err(self.broken(
                output,
                "isn't finite: the model or its weights are broken (check with `dlc verify`)",
            ));
        }
        Ok(FloatTensor { shape, data })
    }

    fn broken(&self, output: &str, problem: &str) -> RuntimeError {
        RuntimeError::port(&self.reads.graph, output, problem)
    }
}
