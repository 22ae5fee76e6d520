//! How a request wants its texts continued: fields of OpenAI's API and those that vLLM and llama.cpp
//! added to it. What a request doesn't say, the model's `generation_config.json` does.

use std::collections::BTreeMap;
use std::sync::Arc;

use dlc_runtime::methods::speculation::{DecodeOptions, Grammar, SamplingOptions};
use serde::Deserialize;

use crate::serve::fields::{Fields, Object};
use crate::serve::models::TextModel;
use crate::serve::problem::Problem;

/// Texts of one request.
const MOST_TEXTS: usize = 32;
/// Strings at which a text ends.
const MOST_STOPS: usize = 64;
/// Biases of one request, as in OpenAI's API.
const MOST_BIASES: usize = 1024;
/// Likeliest tokens that are told of each place.
pub(super) const MOST_LOGPROBS: usize = 20;

/// One or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(in crate::serve) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// What a request says of its texts, but for the prompt and their lengths.
#[derive(Debug)]
pub(super) struct Sampling {
    options: DecodeOptions,
    /// How many texts.
    pub n: usize,
    pub stops: Vec<String>,
    pub streams: bool,
    pub tells_usage: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

impl Sampling {
    /// Takes the fields. `logprobs` is how many likeliest tokens are told, if any.
    pub fn take(
        fields: &mut Fields,
        model: &TextModel,
        logprobs: Option<usize>,
    ) -> Result<Self, Problem> {
        let mut options = model.info.options.clone();
        options.logprobs = logprobs;
        options.processors = model.info.config.processors.clone();
        options.processors.ends.clone_from(&options.stop_tokens);
        options.sampling = sampling(fields, model)?;
        penalties(fields, &mut options)?;
        options
            .processors
            .sequence_bias
            .extend(biases(fields, model)?);
        if let Some(least) = fields.count("min_tokens", 0..=1 << 30)? {
            options.processors.min_new_tokens = Some(least);
        }
        if fields.flag("ignore_eos")? {
            options.stop_tokens.clear();
        }
        let ends = "a list of token ids";
        let ends = fields.take::<Vec<u32>>("stop_token_ids", ends)?;
        let ends = ends.unwrap_or_default();
        if let Some(token) = ends
            .iter()
            .find(|&&token| token as usize >= model.info.vocab)
        {
            let message = format!(
                "token {token} isn't among the {} of the model",
                model.info.vocab
            );
            return Err(Problem::field("stop_token_ids", message));
        }
        options.stop_tokens.extend(ends);
        options.grammar = super::format::take(fields, model)?;
        let n = fields.count("n", 1..=MOST_TEXTS)?.unwrap_or(1);
        let stops = fields.take::<OneOrMany<String>>("stop", "a text or a list of texts")?;
        let stops = stops.map(OneOrMany::into_vec).unwrap_or_default();
        if stops.len() > MOST_STOPS || stops.iter().any(String::is_empty) {
            let message = format!("`stop` must be up to {MOST_STOPS} texts, none of them empty");
            return Err(Problem::field("stop", message));
        }
        let streams = fields.flag("stream")?;
        let usage = "an object with `include_usage`";
        let usage = fields.take::<Object<StreamOptions>>("stream_options", usage)?;
        if usage.is_some() && !streams {
            let message = "`stream_options` is for answers with `stream: true`";
            return Err(Problem::field("stream_options", message));
        }
        Ok(Self {
            options,
            n,
            stops: [model.info.config.stop_strings.clone(), stops].concat(),
            streams,
            tells_usage: usage.is_some_and(|usage| usage.include_usage),
        })
    }

    /// Holds the texts to a grammar, where the request names no other.
    pub fn demand(&mut self, grammar: Arc<dyn Grammar>) -> Result<(), Problem> {
        if self.options.grammar.replace(grammar).is_some() {
            let message = "`tool_choice` demands a call, and the request another form of text";
            return Err(Problem::field("tool_choice", message));
        }
        Ok(())
    }

    /// The options of each text.
    pub fn texts(&self, max_tokens: usize) -> Vec<DecodeOptions> {
        let of = |i: usize| {
            let mut options = self.options.clone();
            options.max_tokens = max_tokens;
            options.sampling.seed = options.sampling.seed.wrapping_add(i as u64);
            options
        };
        (0..self.n).map(of).collect()
    }
}

fn sampling(fields: &mut Fields, model: &TextModel) -> Result<SamplingOptions, Problem> {
    let defaults = &model.info.config.sampling;
    let file = &defaults.options;
    let temperature = fields.number("temperature", 0.0..=100.0)?;
    let top_k = fields.take::<i64>("top_k", "a whole number, 0 or -1 for all")?;
    let top_k = top_k.map(|k| usize::try_from(k).unwrap_or(0));
    let options = SamplingOptions {
        temperature: temperature.unwrap_or(if defaults.do_sample {
            file.temperature
        } else {
            0.0
        }),
        top_k: top_k.unwrap_or(file.top_k),
        top_p: top_p(fields)?.unwrap_or(file.top_p),
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(file.min_p),
        seed: fields
            .take::<i64>("seed", "a whole number")?
            .map_or_else(rand::random, i64::cast_unsigned),
        ..file.clone()
    };
    Ok(if options.temperature > 0.0 {
        options
    } else {
        SamplingOptions::default()
    })
}

/// A share of nothing leaves the most likely token.
fn top_p(fields: &mut Fields) -> Result<Option<f32>, Problem> {
    let share = fields.number("top_p", 0.0..=1.0)?;
    Ok(share.map(|share| share.max(f32::MIN_POSITIVE)))
}

fn penalties(fields: &mut Fields, options: &mut DecodeOptions) -> Result<(), Problem> {
    let processors = &mut options.processors;
    for (name, penalty) in [
        ("presence_penalty", &mut processors.presence_penalty),
        ("frequency_penalty", &mut processors.frequency_penalty),
    ] {
        if let Some(given) = fields.number(name, -100.0..=100.0)? {
            *penalty = given;
        }
    }
    if let Some(given) = fields.number("repetition_penalty", 1e-6..=1e6)? {
        processors.repetition_penalty = given;
    }
    Ok(())
}

fn biases(fields: &mut Fields, model: &TextModel) -> Result<Vec<(Vec<u32>, f32)>, Problem> {
    let expected = "an object of token ids with a bias from -100 to 100 each";
    let biases = fields
        .take::<BTreeMap<String, f32>>("logit_bias", expected)?
        .unwrap_or_default();
    let wrong = || Problem::field("logit_bias", format!("`logit_bias` must be {expected}"));
    if biases.len() > MOST_BIASES {
        let message = format!("`logit_bias` has more than {MOST_BIASES} tokens");
        return Err(Problem::field("logit_bias", message));
    }
    let bias = |(token, bias): (String, f32)| {
        let token: u32 = token.parse().map_err(|_| wrong())?;
        if token as usize >= model.info.vocab || !(-100.0..=100.0).contains(&bias) {
            return Err(wrong());
        }
        Ok((vec![token], bias))
    };
    biases.into_iter().map(bias).collect()
}
