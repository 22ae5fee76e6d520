//! Encoders: texts in, the numbers of each text out, whatever the batch.
//!
//! Knows no task; [`super::answers`] makes sense of the numbers.

use std::sync::Arc;

use super::{
    Backend, Bundle, HostTensor, Result, RuntimeError, Session, SessionOptions, SharedWeights,
    TokenizedText,
};

/// A loaded encoder.
#[derive(Debug)]
pub struct EncoderSession {
    session: Session,
    graph: String,
    inputs: Vec<String>,
    outputs: &'static [&'static str],
    /// What padding holds.
    pad: i64,
    context_length: usize,
}

/// What a graph says of one text: a row for each token, or one row for the whole text. Of several
/// outputs with a number for each token a row has one number of each.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// Numbers in a row.
    pub width: usize,
    /// The rows, one after the other.
    pub data: Vec<f32>,
}

impl Rows {
    /// The rows in order.
    pub fn each(&self) -> std::slice::ChunksExact<'_, f32> {
        self.data.chunks_exact(self.width.max(1))
    }
}

impl EncoderSession {
    /// Opens the graph `name` of a bundle.
    ///
    /// # Errors
    /// As [`Session::load`]; [`RuntimeError::Port`] for inputs that no encoder has.
    pub fn open(
        backend: &Backend,
        bundle: &Bundle,
        name: &str,
        weights: Option<&Arc<SharedWeights>>,
        options: &SessionOptions,
    ) -> Result<Self> {
        let (graph, model) = (bundle.graph(name)?, &bundle.manifest().model);
        let inputs: Vec<String> = graph.inputs.iter().map(|port| port.name.clone()).collect();
        if let Some(strange) = inputs
            .iter()
            .find(|name| !matches!(name.as_str(), IDS | MASK | TYPES))
        {
            return Err(RuntimeError::port(
                name,
                strange,
                "encoders take tokens, a mask and segments alone",
            ));
        }
        let outputs = model.task.outputs();
        let is_there = |output: &&&str| graph.outputs.iter().any(|port| port.name == ***output);
        if let Some(output) = outputs.iter().find(|output| !is_there(output)) {
            return Err(RuntimeError::port(
                name,
                output,
                "the graph has no such output",
            ));
        }
        let session = Session::load(backend, bundle, name, weights, options)?;
        let pad = i64::from(model.pad_token_id.unwrap_or(0));
        Ok(Self {
            session,
            graph: name.to_owned(),
            inputs,
            outputs,
            pad,
            context_length: model.context_length,
        })
    }

    /// The longest text, in tokens.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// Runs all texts, together with those of about their length.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for a text without tokens or longer than the model takes, and what
    /// the backend says.
    pub fn run(&mut self, texts: &[TokenizedText]) -> Result<Vec<Rows>> {
        for (number, text) in (1..).zip(texts) {
            let (n, most) = (text.ids.len(), self.context_length);
            if n == 0 || n > most {
                return Err(RuntimeError::Input(format!(
                    "text {number} has {n} tokens, and the model takes 1 to {most}"
                )));
            }
        }
        let lengths: Vec<usize> = texts.iter().map(|t| t.ids.len()).collect();
        let mut results: Vec<Option<Rows>> = vec![None; texts.len()];
        for batch in batches(&lengths) {
            let chosen: Vec<&TokenizedText> = batch.iter().map(|&i| &texts[i]).collect();
            for (i, rows) in batch.iter().zip(self.run_batch(&chosen)?) {
                results[*i] = Some(rows);
            }
        }
        Ok(results.into_iter().flatten().collect())
    }

    /// Runs texts at once, shorter ones padded on the right.
    fn run_batch(&mut self, texts: &[&TokenizedText]) -> Result<Vec<Rows>> {
        let longest = texts.iter().map(|t| t.ids.len()).max().unwrap_or(0);
        let table = |numbers: &dyn Fn(&TokenizedText, usize) -> i64| {
            let data = texts
                .iter()
                .flat_map(|text| (0..longest).map(move |i| numbers(text, i)))
                .collect();
            HostTensor::i64([texts.len(), longest], data)
        };
        let or = |list: &[u32], i: usize, otherwise: i64| {
            list.get(i).map_or(otherwise, |x| i64::from(*x))
        };
        let inputs: Vec<(&str, HostTensor)> = self
            .inputs
            .iter()
            .map(|name| {
                let tensor = match name.as_str() {
                    IDS => table(&|text, i| or(&text.ids, i, self.pad)),
                    MASK => table(&|text, i| i64::from(i < text.ids.len())),
                    _ => table(&|text, i| or(&text.types, i, 0)),
                };
                (name.as_str(), tensor)
            })
            .collect();
        let outputs = self.session.run_host(&inputs)?;
        let (shape, data) = self.joined(&outputs)?;
        let width = shape.last().copied().unwrap_or(1);
        let per_text = data.len() / texts.len();
        let rows = |(text, numbers): (&&TokenizedText, &[f32])| {
            let real = if shape.len() == 3 {
                text.ids.len() * width
            } else {
                per_text
            };
            Rows {
                width,
                data: numbers.get(..real).unwrap_or(numbers).to_vec(),
            }
        };
        Ok(texts
            .iter()
            .zip(data.chunks(per_text.max(1)))
            .map(rows)
            .collect())
    }

    /// Shape and numbers of all outputs that answer, see [`Rows`].
    fn joined(&self, outputs: &[(String, HostTensor)]) -> Result<(Vec<usize>, Vec<f32>)> {
        let numbers = self.outputs.iter().map(|wanted| {
            let (_, tensor) = outputs.iter().find(|(name, _)| name == wanted)?;
            Some((tensor.shape.clone(), tensor.to_f32()?))
        });
        let numbers: Option<Vec<_>> = numbers.collect();
        numbers.and_then(interleaved).ok_or_else(|| {
            let first = self.outputs.first().copied().unwrap_or_default();
            RuntimeError::port(&self.graph, first, "the backend gave no numbers")
        })
    }
}

/// `numbers`, one list for each output, entry by entry: shape and data.
fn interleaved(numbers: Vec<(Vec<usize>, Vec<f32>)>) -> Option<(Vec<usize>, Vec<f32>)> {
    let width = numbers.len();
    let (shape, _) = numbers.first()?;
    if width == 1 {
        return numbers.into_iter().next();
    }
    if numbers.iter().any(|(other, _)| other != shape) {
        return None;
    }
    let data = (0..numbers[0].1.len())
        .flat_map(|i| numbers.iter().map(move |(_, data)| data.get(i).copied()))
        .collect::<Option<_>>()?;
    Some(([shape.as_slice(), &[width]].concat(), data))
}

/// Texts by number, in groups of about the same length: the longest of a group times their number
/// is at most [`BATCH_TOKENS`], unless it is one text alone.
fn batches(lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| lengths[i]);
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for i in order {
        match batches.last_mut() {
            Some(batch) if (batch.len() + 1) * lengths[i] <= BATCH_TOKENS => batch.push(i),
            _ => batches.push(vec![i]),
        }
    }
    batches
}

/// Tokens that are run at once, padding included.
const BATCH_TOKENS: usize = 4096;

const IDS: &str = "input_ids";
const MASK: &str = "attention_mask";
const TYPES: &str = "token_type_ids";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{BATCH_TOKENS, batches};

    proptest! {
        #[test]
        fn every_text_is_in_one_batch_that_is_small_or_a_text_alone(lengths in proptest::collection::vec(1..6000usize, 0..200)) {
            let batches = batches(&lengths);
            let mut all: Vec<usize> = batches.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
            let padded = |batch: &Vec<usize>| batch.len() * batch.iter().map(|&i| lengths[i]).max().unwrap_or(0);
            prop_assert!(batches.iter().all(|batch| batch.len() == 1 || padded(batch) <= BATCH_TOKENS));
        }
    }

    #[test]
    fn a_long_text_does_not_make_short_ones_long() {
        let lengths: Vec<usize> = [500].into_iter().chain([8; 199]).collect();
        assert_eq!(
            batches(&lengths).iter().map(Vec::len).collect::<Vec<_>>(),
            [199, 1]
        );
    }
}
