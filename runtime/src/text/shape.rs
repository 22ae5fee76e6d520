//! How large a `tokenizer.json` is in what its parser has to build: counted while it is read,
//! nothing is kept.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Values of a file, keys included: those of 260 000 tokens with as many merges in pairs have 2
/// million.
const MOST_VALUES: usize = 3_000_000;
/// The longest text: tokens and patterns have some hundred bytes, the table of a sentencepiece
/// normalizer a few hundred thousand.
const LONGEST_TEXT: usize = 8 << 20;
/// The longest key, which in a vocabulary is a token.
const LONGEST_KEY: usize = 8192;

/// Checks the size of a file, and that it is JSON.
pub(super) fn check(bytes: &[u8]) -> Result<(), serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    Shape {
        values: &mut 0,
        key: false,
    }
    .deserialize(&mut deserializer)?;
    deserializer.end()
}

struct Shape<'c> {
    values: &'c mut usize,
    key: bool,
}

impl Shape<'_> {
    fn inner(&mut self, key: bool) -> Shape<'_> {
        Shape {
            values: self.values,
            key,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Shape<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        *self.values += 1;
        if *self.values > MOST_VALUES {
            return Err(D::Error::custom(format!(
                "it holds more than {MOST_VALUES} values, which no tokenizer needs"
            )));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Shape<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        let most = if self.key { LONGEST_KEY } else { LONGEST_TEXT };
        if text.len() > most {
            return Err(E::custom(format!(
                "it holds a text of {} bytes, more than the {most} that a tokenizer needs",
                text.len()
            )));
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(self.inner(false))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<(), A::Error> {
        while entries.next_key_seed(self.inner(true))?.is_some() {
            entries.next_value_seed(self.inner(false))?;
        }
        Ok(())
    }
}
