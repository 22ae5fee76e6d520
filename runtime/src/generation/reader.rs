//! Values of `generation_config.json`, checked. null reads as absent.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use crate::{Result, RuntimeError};

/// The largest count, such as of tokens.
const MOST: u64 = 1 << 31;
/// The most entries of a list.
const LONGEST: usize = 1 << 16;
/// The most tokens of all sequences of a list.
const MOST_TOKENS: usize = 1 << 20;
/// Penalties and factors.
const FACTORS: RangeInclusive<f64> = 1e-6..=1e6;

/// The values of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    pub path: &'a Path,
    pub values: &'a Map<String, Value>,
    pub vocab: usize,
}

impl<'a> Reader<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    fn bad(&self, key: &str, expected: &str) -> RuntimeError {
        const SHOWN: usize = 60;
        let value = self
            .values
            .get(key)
            .map(Value::to_string)
            .unwrap_or_default();
        let (start, more) = value
            .char_indices()
            .nth(SHOWN)
            .map_or((value.as_str(), ""), |(end, _)| (&value[..end], "..."));
        RuntimeError::file(
            self.path,
            format!("`{key}` is {start}{more}; it must be {expected}"),
        )
    }

    fn read<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        read(value).map(Some).ok_or_else(|| self.bad(key, expected))
    }

    pub fn number(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f32>> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        self.read(key, &expected, |value| {
            value
                .as_f64()
                .filter(|x| range.contains(x))
                .map(|x| x as f32)
        })
    }

    /// A factor that changes nothing where it isn't given.
    pub fn penalty(&self, key: &str) -> Result<f32> {
        Ok(self.number(key, FACTORS)?.unwrap_or(1.0))
    }

    pub fn count(&self, key: &str, least: u64) -> Result<Option<usize>> {
        let expected = format!("a whole number from {least} to {MOST}");
        self.read(key, &expected, |value| {
            value
                .as_u64()
                .filter(|n| (least..=MOST).contains(n))
                .and_then(|n| usize::try_from(n).ok())
        })
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.read(key, "true or false", Value::as_bool)
    }

    /// One token or a list; negative ones stand for none.
    pub fn tokens(&self, key: &str) -> Result<Vec<u32>> {
        let expected = format!("a token id or a list of up to {LONGEST} of them");
        Ok(self
            .read(key, &expected, |value| tokens(one_or_more(value)))?
            .unwrap_or_default())
    }

    /// [`Self::tokens`] that will be written, and so must be in the vocabulary.
    pub fn forced(&self, key: &str) -> Result<Vec<u32>> {
        let tokens = self.tokens(key)?;
        let foreign = tokens.iter().any(|&token| token as usize >= self.vocab);
        if foreign {
            Err(self.bad(
                key,
                &format!("among the {} tokens of the model", self.vocab),
            ))
        } else {
            Ok(tokens)
        }
    }

    pub fn sequences(&self, key: &str) -> Result<Vec<Vec<u32>>> {
        let expected = format!("a list of up to {LONGEST} lists of token ids, none of them empty");
        let sequences = self.read(key, &expected, |value| {
            let sequences = value
                .as_array()
                .filter(|list| list.len() <= LONGEST)?
                .iter()
                .map(sequence)
                .collect::<Option<Vec<_>>>()?;
            (sequences.iter().map(Vec::len).sum::<usize>() <= MOST_TOKENS).then_some(sequences)
        });
        Ok(sequences?.unwrap_or_default())
    }

    /// `[[[token, ...], bias], ...]`.
    pub fn biases(&self, key: &str) -> Result<Vec<(Vec<u32>, f32)>> {
        const MOST_BIASES: usize = 1 << 12;
        let expected =
            format!("a list of up to {MOST_BIASES} pairs: a list of token ids, and a number");
        let bias = |entry: &Value| match entry.as_array().map(Vec::as_slice) {
            Some([tokens, bias]) => Some((
                sequence(tokens)?,
                bias.as_f64().map(|x| x as f32).filter(|x| x.is_finite())?,
            )),
            _ => None,
        };
        let biases = self.read(key, &expected, |value| {
            value
                .as_array()
                .filter(|list| list.len() <= MOST_BIASES)?
                .iter()
                .map(bias)
                .collect()
        });
        Ok(biases?.unwrap_or_default())
    }

    /// `[start, factor]`.
    pub fn decay(&self, key: &str) -> Result<Option<(usize, f64)>> {
        self.read(
            key,
            "a pair: a number of tokens, and a factor from 1e-6 to 1e6",
            |value| match value.as_array().map(Vec::as_slice) {
                Some([start, factor]) => {
                    let start = start
                        .as_u64()
                        .filter(|n| *n <= MOST)
                        .and_then(|n| usize::try_from(n).ok())?;
                    Some((start, factor.as_f64().filter(|x| FACTORS.contains(x))?))
                }
                _ => None,
            },
        )
    }

    /// One text or a list of them.
    pub fn texts(&self, key: &str) -> Result<Vec<String>> {
        const MOST_TEXTS: usize = 1 << 10;
        let expected =
            format!("a text or a list of up to {MOST_TEXTS} of them, none of them empty");
        let texts = self.read(key, &expected, |value| {
            let list = Some(one_or_more(value)).filter(|list| list.len() <= MOST_TEXTS)?;
            list.iter()
                .map(|text| {
                    text.as_str()
                        .filter(|text| !text.is_empty())
                        .map(str::to_owned)
                })
                .collect()
        });
        Ok(texts?.unwrap_or_default())
    }
}

fn one_or_more(value: &Value) -> &[Value] {
    value
        .as_array()
        .map_or(std::slice::from_ref(value), Vec::as_slice)
}

fn tokens(list: &[Value]) -> Option<Vec<u32>> {
    let ids = Some(list)
        .filter(|list| list.len() <= LONGEST)?
        .iter()
        .map(Value::as_i64)
        .collect::<Option<Vec<i64>>>()?;
    ids.into_iter()
        .filter(|id| *id >= 0)
        .map(|id| u32::try_from(id).ok())
        .collect()
}

fn sequence(value: &Value) -> Option<Vec<u32>> {
    let list = value.as_array().filter(|list| !list.is_empty())?;
    list.iter()
        .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
        .collect()
}
