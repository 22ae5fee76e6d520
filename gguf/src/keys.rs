//! Reads the metadata key by key, and keeps account of what was read and what is wrong.

use std::collections::BTreeSet;

use crate::metadata::{Array, Metadata, Value};

/// Keys that tell where a model comes from, how it was quantised or how llama.cpp shows it.
const ABOUT: [&str; 6] = [
    "general.",
    "quantize.",
    "split.",
    "clip.has_",
    "mradermacher.",
    "unsloth.",
];

/// The metadata, with what was found on the way.
#[derive(Debug)]
pub(crate) struct Keys<'b> {
    metadata: Metadata<'b>,
    /// Before the point of the keys of an architecture.
    architecture: String,
    read: BTreeSet<String>,
    /// What dlc can't follow.
    pub problems: Vec<String>,
    /// What dlc leaves out.
    pub notes: Vec<String>,
}

impl<'b> Keys<'b> {
    pub fn new(metadata: Metadata<'b>) -> Self {
        let architecture = metadata
            .get("general.architecture")
            .and_then(Value::text)
            .unwrap_or_default()
            .to_owned();
        Self {
            metadata,
            architecture,
            read: BTreeSet::new(),
            problems: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// `general.architecture`; empty if there is none.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The full name of a key of the architecture.
    pub fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// The value of a full key.
    pub fn get(&mut self, key: &str) -> Option<Value<'b>> {
        self.read.insert(key.to_owned());
        self.metadata.get(key)
    }

    fn typed<T>(
        &mut self,
        key: &str,
        what: &str,
        convert: impl FnOnce(Value<'b>) -> Option<T>,
    ) -> Option<T> {
        let value = self.get(key)?;
        let converted = convert(value);
        if converted.is_none() {
            self.problems
                .push(format!("key `{key}` is {}, not {what}", value.shown()));
        }
        converted
    }

    /// A size; of one that is told layer by layer, that of all layers.
    pub fn size(&mut self, key: &str) -> Option<usize> {
        let one = |value: Value<'b>| match value.array() {
            None => value.size(),
            Some(layers) => {
                let mut sizes = layers.iter().map(Value::size);
                let first = sizes.next()??;
                sizes.all(|size| size == Some(first)).then_some(first)
            }
        };
        self.typed(key, "one size for all layers", one)
    }

    /// A number above or below 0, finite.
    pub fn number(&mut self, key: &str) -> Option<f64> {
        self.typed(key, "a finite number", |value| {
            value.number().filter(|x| x.is_finite())
        })
    }

    pub fn flag(&mut self, key: &str) -> Option<bool> {
        self.typed(key, "true or false", Value::flag)
    }

    pub fn text(&mut self, key: &str) -> Option<&'b str> {
        self.typed(key, "a text in UTF-8", Value::text)
    }

    pub fn array(&mut self, key: &str) -> Option<Array<'b>> {
        self.typed(key, "an array", Value::array)
    }

    /// A size of the architecture that must be there.
    pub fn required_size(&mut self, key: &str) -> usize {
        let key = self.full(key);
        let size = self.size(&key);
        self.require(&key, size.filter(|n| *n > 0)).unwrap_or(1)
    }

    /// A number of the architecture that must be there.
    pub fn required_number(&mut self, key: &str) -> f64 {
        let key = self.full(key);
        let number = self.number(&key);
        self.require(&key, number).unwrap_or(1.0)
    }

    fn require<T>(&mut self, key: &str, value: Option<T>) -> Option<T> {
        if value.is_none() && self.problems.iter().all(|p| !p.contains(key)) {
            self.problems
                .push(format!("key `{key}` is missing or empty"));
        }
        value
    }

    /// Refuses a key of the architecture unless it says what changes nothing.
    pub fn refuse_unless(&mut self, key: &str, changes_nothing: impl FnOnce(Value<'b>) -> bool) {
        let key = self.full(key);
        if let Some(value) = self.get(&key)
            && !changes_nothing(value)
        {
            self.problems.push(format!(
                "key `{key}` is {}, which dlc doesn't follow",
                value.shown()
            ));
        }
    }

    /// Notes the keys that nobody read.
    pub fn note_unread(&mut self) {
        let unread: Vec<&str> = self
            .metadata
            .entries()
            .map(|(key, _)| key)
            .filter(|key| !self.read.contains(*key))
            .filter(|key| !ABOUT.iter().any(|about| key.starts_with(about)))
            .collect();
        if !unread.is_empty() {
            let names: Vec<String> = unread
                .iter()
                .map(|key| format!("`{}`", dlc_errors::printable::shown(key)))
                .collect();
            self.notes
                .push(format!("dlc doesn't follow {}", names.join(", ")));
        }
    }
}
