//! `generation_config.json`: how a model wants its texts written, as transformers' `generate` reads
//! it.
//!
//! null and absent are one. What dlc doesn't heed is named, never passed over; what is out of range
//! is refused with the file's name.

mod keys;
mod reader;
#[cfg(test)]
mod tests;

use std::path::Path;

use dlc_files::read_input;
use dlc_methods::speculation::{LogitsProcessors, SamplingOptions};
use serde_json::{Map, Value};

use self::keys::unheeded;
use self::reader::Reader;
use super::{Bundle, Result, RuntimeError};

/// The file's name.
const FILE: &str = "generation_config.json";
/// The largest that is read: those with many sequences have some MB.
const FILE_CAP: u64 = 16 << 20;
/// Most likely tokens to draw from where the file doesn't say it, as transformers has it.
const TOP_K: usize = 50;

/// What a file says; [`Default`] is what transformers does without one, but for lengths.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GenerationConfig {
    /// What changes logits, for greedy and sampled texts alike.
    pub processors: LogitsProcessors,
    /// How tokens are drawn if they are.
    pub sampling: SamplingDefaults,
    /// The most tokens to write.
    pub max_new_tokens: Option<usize>,
    /// The most tokens of prompt and text together; `max_new_tokens` decides over it.
    pub max_length: Option<usize>,
    /// Texts that end a text.
    pub stop_strings: Vec<String>,
    /// What isn't heeded, a phrase each.
    pub unheeded: Vec<String>,
}

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingDefaults {
    /// Whether the model wants its tokens drawn.
    pub do_sample: bool,
    /// Temperature and cuts; the seed is nobody's.
    pub options: SamplingOptions,
}

impl Default for SamplingDefaults {
    fn default() -> Self {
        Self {
            do_sample: false,
            options: SamplingOptions {
                temperature: 1.0,
                top_k: TOP_K,
                ..SamplingOptions::default()
            },
        }
    }
}

impl GenerationConfig {
    /// What a bundle's file says; the default if it has none.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn of_bundle(bundle: &Bundle) -> Result<Self> {
        let Some(path) = bundle.side_file(FILE) else {
            return Ok(Self::default());
        };
        Self::read(&path, bundle.manifest().model.vocab_size)
    }

    /// Reads a file. Tokens that have to be written must be among `vocab`.
    ///
    /// # Errors
    /// [`RuntimeError::File`] for a file that can't be read, and for values that are out of range.
    pub fn read(path: &Path, vocab: usize) -> Result<Self> {
        let value = serde_json::from_slice(&read_input(path, FILE_CAP)?);
        match value.map_err(|error| RuntimeError::file(path, format!("isn't JSON: {error}")))? {
            Value::Object(values) => Self::parse(path, &values, vocab),
            _ => Err(RuntimeError::file(
                path,
                "holds JSON, but no object `{...}`",
            )),
        }
    }

    fn parse(path: &Path, values: &Map<String, Value>, vocab: usize) -> Result<Self> {
        let read = Reader {
            path,
            values,
            vocab,
        };
        let mut unheeded = unheeded(values);
        let processors = processors(&read, &mut unheeded)?;
        Ok(Self {
            processors,
            sampling: sampling(&read)?,
            max_new_tokens: read.count("max_new_tokens", 1)?,
            max_length: read.count("max_length", 1)?,
            stop_strings: read.texts("stop_strings")?,
            unheeded,
        })
    }
}

fn processors(read: &Reader<'_>, unheeded: &mut Vec<String>) -> Result<LogitsProcessors> {
    let neutral = LogitsProcessors::default();
    let mut biases = Vec::new();
    for (sequence, bias) in read.biases("sequence_bias")? {
        // Of sequences that are given twice the last bias counts.
        biases.retain(|(other, _)| *other != sequence);
        biases.push((sequence, bias));
    }
    let mut words = read.sequences("bad_words_ids")?;
    for (key, left_out) in [
        (
            "sequence_bias",
            drop_foreign(&mut biases, |b| &b.0, read.vocab),
        ),
        ("bad_words_ids", drop_foreign(&mut words, |w| w, read.vocab)),
    ] {
        if left_out > 0 {
            unheeded.push(format!("{left_out} of the sequences of {key}, whose tokens aren't all among the {} that the model writes", read.vocab));
        }
    }
    Ok(LogitsProcessors {
        sequence_bias: biases,
        encoder_repetition_penalty: read.penalty("encoder_repetition_penalty")?,
        repetition_penalty: read.penalty("repetition_penalty")?,
        no_repeat_ngram_size: read
            .count("no_repeat_ngram_size", 0)?
            .unwrap_or(neutral.no_repeat_ngram_size),
        encoder_no_repeat_ngram_size: read
            .count("encoder_no_repeat_ngram_size", 0)?
            .unwrap_or(neutral.encoder_no_repeat_ngram_size),
        bad_words_ids: words,
        min_length: read.count("min_length", 0)?.unwrap_or(neutral.min_length),
        min_new_tokens: read.count("min_new_tokens", 0)?,
        forced_bos_token_id: read.forced("forced_bos_token_id")?.first().copied(),
        forced_eos_token_id: read.forced("forced_eos_token_id")?,
        remove_invalid_values: read.flag("remove_invalid_values")?.unwrap_or(false),
        exponential_decay_length_penalty: read.decay("exponential_decay_length_penalty")?,
        suppress_tokens: read.tokens("suppress_tokens")?,
        begin_suppress_tokens: read.tokens("begin_suppress_tokens")?,
        ..neutral
    })
}

/// Takes out what has a token that the model can't write, and so never happens; returns how many
/// these were.
fn drop_foreign<T>(list: &mut Vec<T>, tokens: impl Fn(&T) -> &Vec<u32>, vocab: usize) -> usize {
    let before = list.len();
    list.retain(|entry| tokens(entry).iter().all(|&token| (token as usize) < vocab));
    before - list.len()
}

fn sampling(read: &Reader<'_>) -> Result<SamplingDefaults> {
    let SamplingDefaults {
        do_sample,
        options: default,
    } = SamplingDefaults::default();
    let share = |key| read.number(key, 0.0..=1.0);
    // A share of nothing still leaves the most likely token.
    let some = |key| share(key).map(|x| x.map(|x: f32| x.max(f32::MIN_POSITIVE)));
    Ok(SamplingDefaults {
        do_sample: read.flag("do_sample")?.unwrap_or(do_sample),
        options: SamplingOptions {
            temperature: read
                .number("temperature", 0.0..=1e6)?
                .unwrap_or(default.temperature),
            top_h: some("top_h")?,
            top_k: read.count("top_k", 0)?.unwrap_or(default.top_k),
            top_p: some("top_p")?.unwrap_or(default.top_p),
            min_p: share("min_p")?.unwrap_or(default.min_p),
            typical_p: some("typical_p")?.unwrap_or(default.typical_p),
            epsilon_cutoff: share("epsilon_cutoff")?.unwrap_or(default.epsilon_cutoff),
            eta_cutoff: share("eta_cutoff")?.unwrap_or(default.eta_cutoff),
            seed: default.seed,
        },
    })
}
