//! YAML that anyone may have written: how much there is of it, how deep it nests and what aliases
//! make of it is known before it is read.
//!
//! The parser takes time that is quadratic in the depth of `[` and `{` and in the number of `%TAG`
//! lines, holds every event of a document in memory, and follows aliases as often as they stand
//! there. Callers cap the size of the file.

use std::collections::HashSet;
use std::fmt;

use serde::de::{
    DeserializeOwned, DeserializeSeed, EnumAccess, Error as _, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};
use serde::{Deserialize, Deserializer};
use serde_yaml::Error;

use crate::guard::contain_panics;

/// Most entries of lists and of maps: twice as many as the manifest of a large sampler has. The
/// parser takes up to 2 microseconds and 300 bytes for each.
const MOST_ENTRIES: usize = 1 << 19;
/// Most brackets that may be open, times the entries.
const MOST_WORK: usize = 1 << 28;
/// Most lines with directives.
const MOST_DIRECTIVES: usize = 16;
/// What aliases may add, in values and in bytes.
const MOST_REPEATED: usize = 1 << 16;

/// Reads a document.
///
/// # Errors
/// What is wrong with it: the place where it is no YAML, a key that stands twice, what `T` lacks,
/// or that it is too large to be read.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    contain_panics("the YAML parser", || read_bounded(text))
        .and_then(|read| read.map_err(|error| error.to_string()))
}

fn read_bounded<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    let extent = Extent::of(text);
    extent.check().map_err(Error::custom)?;
    let mut budget = Budget {
        values: 4 * extent.entries + MOST_REPEATED,
        bytes: text.len() + MOST_REPEATED,
    };
    Walk(&mut budget).deserialize(serde_yaml::Deserializer::from_str(text))?;
    serde_yaml::from_str(text)
}

/// How much there is of a document, at most: found in one pass, without knowing what is quoted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Extent {
    entries: usize,
    /// Brackets that are open at once.
    open: usize,
    directives: usize,
}

impl Extent {
    fn of(text: &str) -> Self {
        let mut extent = Self::default();
        for line in text.split(['\n', '\r']) {
            extent.directives += usize::from(line.starts_with('%'));
            // What closes in a quotation or a comment closes nothing. Nothing else can stand
            // between brackets and not be meant.
            let may_close = !line.contains(['"', '\'', '#', '!', '%']);
            let mut open = 0usize;
            let mut bytes = line.bytes().peekable();
            while let Some(byte) = bytes.next() {
                match byte {
                    b'[' | b'{' => open += 1,
                    b']' | b'}' => open = open.saturating_sub(usize::from(may_close)),
                    b'-' if bytes.peek().is_some_and(|next| !next.is_ascii_whitespace()) => {
                        continue;
                    }
                    b'-' | b',' | b':' | b'?' | b'&' | b'*' | b'!' => {}
                    _ => continue,
                }
                extent.entries += 1;
            }
            extent.open += open;
        }
        extent
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.entries > MOST_ENTRIES {
            return Err("it holds more entries than any file that dlc reads");
        }
        if self.open.saturating_mul(self.entries) > MOST_WORK {
            return Err(
                "it nests too deeply, or has too many brackets that close on another line or beside quotation marks",
            );
        }
        if self.directives > MOST_DIRECTIVES {
            return Err("it has too many lines that start with `%`");
        }
        Ok(())
    }
}

/// How much more may be read.
struct Budget {
    values: usize,
    bytes: usize,
}

impl Budget {
    fn spend<E: serde::de::Error>(&mut self, bytes: usize) -> Result<(), E> {
        let left = (self.values.checked_sub(1), self.bytes.checked_sub(bytes));
        let (Some(values), Some(bytes)) = left else {
            return Err(E::custom("its aliases stand for more than can be read"));
        };
        (self.values, self.bytes) = (values, bytes);
        Ok(())
    }
}

/// Goes through a value as its reader will, aliases followed, and keeps nothing. The result is the
/// text of a scalar.
struct Walk<'b>(&'b mut Budget);

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

macro_rules! scalars {
    ($($visit:ident: $ty:ty),*) => {
        $(fn $visit<E: serde::de::Error>(self, value: $ty) -> Result<Self::Value, E> {
            self.visit_str(&value.to_string())
        })*
    };
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    scalars!(visit_bool: bool, visit_i64: i64, visit_i128: i128, visit_u64: u64, visit_u128: u128, visit_f64: f64);

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Self::Value, E> {
        self.0.spend(value.len())?;
        Ok(Some(value.to_owned()))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        self.visit_str("null")
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        self.0.spend(0)?;
        while list.next_element_seed(Walk(self.0))?.is_some() {}
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        self.0.spend(0)?;
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key_seed(Walk(self.0))? {
            if let Some(key) = key
                && let Some(key) = keys.replace(key)
            {
                return Err(A::Error::custom(format_args!(
                    "the key `{}` stands twice",
                    key.chars().take(60).collect::<String>()
                )));
            }
            map.next_value_seed(Walk(self.0))?;
        }
        Ok(None)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Self::Value, A::Error> {
        self.0.spend(0)?;
        let (Tag, value) = data.variant()?;
        value.newtype_variant_seed(Walk(self.0))
    }
}

/// The name of a value's type, which nothing here looks at.
struct Tag;

impl<'de> Deserialize<'de> for Tag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_yaml::Value;

    use super::*;

    fn refused(text: &str) -> String {
        let start = Instant::now();
        let error = read::<Value>(text).unwrap_err().clone();
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{:?}: {error}",
            start.elapsed()
        );
        error
    }

    #[test]
    fn what_people_write_is_read() {
        for text in [
            "",
            "a: 1\nb: [1, 2, {c: null}]\n",
            "base: &base {drop: 4}\npasses:\n- fit-prune: *base\n- fit-prune: *base\n",
            "set: {peft_type: DUAL_LORA}\ntensors:\n  '(.+)\\.mag_[in]': 'base.${1}'\n",
            "- !Other text\n- !tagged {a: 1}\n- .nan\n- 1e400\n",
            "it's: don't\n? [complex]\n: key\n",
        ] {
            assert_eq!(
                read::<Value>(text).unwrap(),
                serde_yaml::from_str::<Value>(text).unwrap(),
                "{text}"
            );
        }
    }

    #[test]
    fn documents_that_would_take_the_parser_long_are_refused_at_once() {
        let hidden = format!("a: it's\nb: {}", "[']', ".repeat(100_000));
        let quoted = "- \"a\"\n- [ # ]\n".repeat(50_000);
        let cases = [
            ("[".repeat(200_000), "nests too deeply"),
            ("{a: ".repeat(50_000), "nests too deeply"),
            (hidden, "nests too deeply"),
            (quoted, "nests too deeply"),
            ("- ".repeat(100_000), "recursion limit"),
            ("[".repeat(9_000), "recursion limit"),
            (format!("[{}]", "1,".repeat(2_000_000)), "more entries"),
            (
                (0..40_000).fold(String::new(), |text, i| text + &format!("%TAG !a{i}! x\n"))
                    + "--- 1",
                "start with `%`",
            ),
        ];
        for (text, reason) in cases {
            let error = refused(&text);
            assert!(error.contains(reason), "{}: {error}", &text[..20]);
        }
    }

    #[test]
    fn aliases_may_not_multiply() {
        let wide = format!(
            "- &a [{}]\n- [{}]\n",
            "1,".repeat(10_000),
            "*a,".repeat(10_000)
        );
        let long = format!(
            "- &a {}\n- [{}]\n",
            "x".repeat(100_000),
            "*a,".repeat(10_000)
        );
        let deep = (1..30).fold("a0: &a0 [x]\n".to_owned(), |text, i| {
            text + &format!("a{i}: &a{i} [*a{0}, *a{0}]\n", i - 1)
        });
        for text in [wide, long, deep] {
            let error = refused(&text);
            assert!(
                error.contains("aliases stand for more") || error.contains("repetition limit"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_key_that_stands_twice_is_named() {
        for text in ["a: {b: 1, c: 2, b: 3}", "- b: 1\n  'b': 2\n"] {
            assert!(refused(text).contains("the key `b` stands twice"), "{text}");
        }
        let error = read::<std::collections::BTreeMap<String, u64>>("b: 1\nb: 2\n")
            .unwrap_err()
            .clone();
        assert!(error.contains("the key `b` stands twice"), "{error}");
    }
}
