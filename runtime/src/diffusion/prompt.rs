//! Prompts: the hidden states of a text, by the tokenizer and the text encoder of a bundle.
//!
//! Padding is seen like any token, as in diffusers' `StableDiffusionPipeline`.

use std::sync::Arc;

use dlc_ir::{Diffusion, Task};
use dlc_methods::diffusion::inputs;

use super::feeds::{Conditions, NEGATIVE};
use super::prompt_tokenizer::PromptTokenizer;
use super::tensors::FloatTensor;
use crate::{
    Backend, Bundle, HostTensor, Result, RuntimeError, Session, SessionOptions, SharedWeights,
    TextTokenizer,
};

const GRAPH: &str = Diffusion::TEXT_ENCODER;

/// A text encoder with its tokenizer.
#[derive(Debug)]
pub struct PromptEncoder {
    session: Session,
    tokenizer: PromptTokenizer,
}

/// What images are conditioned on by texts.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedPrompt {
    /// One row, for any number of images.
    pub conditions: Conditions,
    /// What was cut off, a sentence for each text.
    pub notes: Vec<String>,
}

impl PromptEncoder {
    /// Loads the text encoder of a bundle.
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
        let lacks = |what: &str, fix: &str| {
            let place = bundle.folder().display().to_string();
            RuntimeError::unsupported(place, format!("the bundle has no {what}"), fix)
        };
        if !bundle.has_graph(GRAPH) {
            let fix = "Compile the folder of the whole pipeline, or give the texts' hidden states with `--embeddings FILE`";
            return Err(lacks("text encoder", fix));
        }
        let tokenizer = TextTokenizer::of_bundle(bundle)?.ok_or_else(|| {
            let fix = "Put the tokenizer's files into the pipeline's folder `tokenizer` and compile it again";
            lacks("tokenizer", fix)
        })?;
        let tokenizer = PromptTokenizer::new(tokenizer, &bundle.manifest().model);
        let tokenizer = tokenizer.ok_or_else(|| {
            let fix = "Name it in tokenizer_config.json and compile the pipeline again";
            lacks("`pad_token`, which prompts are filled up with", fix)
        })?;
        Ok(Self {
            session: Session::load(backend, bundle, GRAPH, weights, options)?,
            tokenizer,
        })
    }

    /// What images of `prompt` are conditioned on; with guidance `negative` is what they are led
    /// away from, usually the empty text.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for tokens that the encoder doesn't have, and what the tokenizer and
    /// the backend say.
    pub fn encode(&mut self, prompt: &str, negative: Option<&str>) -> Result<EncodedPrompt> {
        let texts = [
            (inputs::TEXT.to_owned(), "prompt", Some(prompt)),
            (
                format!("{NEGATIVE}{}", inputs::TEXT),
                "negative prompt",
                negative,
            ),
        ];
        let (mut tensors, mut notes) = (Vec::new(), Vec::new());
        for (name, what, text) in texts {
            let Some(text) = text else { continue };
            let (ids, note) = self.tokenizer.encode(what, text)?;
            notes.extend(note);
            tensors.push((name, self.states(&ids)?));
        }
        Ok(EncodedPrompt {
            conditions: Conditions::of_texts(tensors),
            notes,
        })
    }

    /// The hidden states of one text's tokens, `[1, tokens, width]`.
    fn states(&mut self, ids: &[u32]) -> Result<FloatTensor> {
        let row = |data: Vec<i64>| HostTensor::i64([1, ids.len()], data);
        let tokens = row(ids.iter().map(|id| i64::from(*id)).collect());
        let mask = row(vec![1; ids.len()]);
        let inputs = [("input_ids", tokens), ("attention_mask", mask)];
        let outputs = self.session.run_host(&inputs)?;
        let output = Task::FeatureExtraction.output();
        let found = outputs.into_iter().find(|(name, _)| name == output);
        let states = found.and_then(|(_, tensor)| Some((tensor.to_f32()?, tensor.shape)));
        let fail = |problem: &str| RuntimeError::port(GRAPH, output, problem);
        let (data, shape) = states.ok_or_else(|| fail("the backend gave no numbers"))?;
        if !data.iter().all(|x| x.is_finite()) {
            return Err(fail(
                "isn't finite: the model or its weights are broken (check with `dlc verify`)",
            ));
        }
        Ok(FloatTensor { shape, data })
    }
}
