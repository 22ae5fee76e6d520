//! The text encoders of a bundle, which make of prompts what images are conditioned on.

use std::collections::BTreeMap;
use std::sync::Arc;

use dlc_ir::TextEncoder;

use super::autoencoder::ImageDecoder;
use super::prompt_reader::{EncodedPrompt, Negative, PromptReader, TextStates};
use super::prompt_tensors::{TextState, TextTokens};
use super::tensors::FloatTensor;
use crate::{
    Backend, Bundle, HostTensor, Result, RuntimeError, Session, SessionOptions, SharedWeights,
};

/// The text encoders of a bundle with their tokenizers.
#[derive(Debug)]
pub struct PromptEncoder {
    reader: PromptReader,
    sessions: Sessions,
}

impl PromptEncoder {
    /// Loads the text encoders of a bundle.
    ///
    /// # Errors
    /// As [`PromptReader::open`], [`ImageDecoder::scale`] and [`Session::load`].
    pub fn open(
        backend: &Backend,
        bundle: &Bundle,
        weights: Option<&Arc<SharedWeights>>,
        options: &SessionOptions,
    ) -> Result<Self> {
        let model = &bundle.manifest().model;
        let pixels = ImageDecoder::scale(bundle)?.unwrap_or(1);
        let place = bundle.folder().display().to_string();
        let reader = PromptReader::open(&place, (model, pixels), |name| bundle.side_file(name))?;
        let encoders = model.prompts.iter().flat_map(|prompts| &prompts.encoders);
        let load = |TextEncoder { graph, .. }: &TextEncoder| {
            let session = Session::load(backend, bundle, graph, weights, options)?;
            Ok((graph.clone(), session))
        };
        let sessions = encoders.map(load).collect::<Result<_>>()?;
        Ok(Self {
            reader,
            sessions: Sessions(sessions),
        })
    }

    /// As [`PromptReader::token_ids`].
    ///
    /// # Errors
    /// Those of [`PromptReader::token_ids`].
    pub fn token_ids(&self, text: &str) -> Result<Vec<(&str, Vec<u32>)>> {
        self.reader.token_ids(text)
    }

    /// As [`PromptReader::encode`], by the bundle's graphs.
    ///
    /// # Errors
    /// Those of [`PromptReader::encode`], and what the backend says.
    pub fn encode(
        &mut self,
        prompts: &[impl AsRef<str>],
        negative: Negative<'_>,
        size: Option<[usize; 2]>,
    ) -> Result<Vec<EncodedPrompt>> {
        let Self { reader, sessions } = self;
        reader.encode(sessions, prompts, negative, size)
    }
}

/// The graphs of the text encoders, by name.
#[derive(Debug)]
struct Sessions(BTreeMap<String, Session>);

impl TextStates for Sessions {
    type Error = RuntimeError;

    fn states(&mut self, encoder: &TextEncoder, texts: &[TextTokens]) -> Result<Vec<TextState>> {
        let session = self.0.get_mut(&encoder.graph);
        let missing = || RuntimeError::Bug(format!("graph `{}` isn't loaded", encoder.graph));
        let session = session.ok_or_else(missing)?;
        let texts = texts.iter();
        texts.map(|text| state(session, encoder, text)).collect()
    }
}

fn state(session: &mut Session, encoder: &TextEncoder, text: &TextTokens) -> Result<TextState> {
    let row = |data: &[i64]| HostTensor::i64([1, data.len()], data.to_vec());
    let inputs = text.inputs().map(|(name, data)| (name, row(data)));
    let mut inputs = inputs.to_vec();
    // A graph that sees every token takes no mask.
    let known = session.input_names();
    inputs.retain(|(name, _)| *name != TextTokens::MASK || encoder.masked || known.contains(name));
    let mut outputs = session.run_host(&inputs)?;
    let mut take = |name: &str| {
        let at = outputs.iter().position(|(output, _)| output == name)?;
        let (_, tensor) = outputs.swap_remove(at);
        let data = tensor.to_f32()?;
        let shape = tensor.shape;
        Some(FloatTensor { shape, data })
    };
    let missing = || {
        RuntimeError::port(
            &encoder.graph,
            &encoder.states,
            "the backend gave no numbers",
        )
    };
    Ok(TextState {
        states: take(&encoder.states).ok_or_else(missing)?,
        pooled: take(TextEncoder::POOLED),
    })
}
