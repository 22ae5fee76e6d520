//! A typed reader of `config.json` that remembers which keys were asked for, and collects what is wrong instead of stopping.
//!
//! After a problem a reader returns a stand-in, so callers read everything and then [`finish`](ConfigReader::finish) before they use anything.

use std::collections::BTreeSet;
use std::path::Path;

use dlc_ir::Fault;
use serde_json::{Map, Value};

use super::error::{ConfigProblem, ImportError};
use super::keys::{HARMLESS, NEUTRAL};
use crate::checkpoint::shown;

/// Reads one JSON object.
pub(super) struct ConfigReader<'a> {
    values: &'a Map<String, Value>,
    prefix: String,
    asked: BTreeSet<&'static str>,
    problems: Vec<ConfigProblem>,
}

impl<'a> ConfigReader<'a> {
    /// A reader whose messages put `prefix` before each key.
    pub(super) fn new(values: &'a Map<String, Value>, prefix: &str) -> Self {
        Self { values, prefix: prefix.to_owned(), asked: BTreeSet::new(), problems: Vec::new() }
    }

    /// The value of a key, unless it is absent or null.
    pub(super) fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.asked.insert(key);
        self.values.get(key).filter(|v| !v.is_null())
    }

    /// Whether the key is there at all, null included.
    pub(super) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// A whole number from 1 to `cap`, if the key is there.
    pub(super) fn size(&mut self, key: &'static str, cap: usize) -> Option<usize> {
        let value = self.get(key)?;
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=cap).contains(n));
        if size.is_none() {
            self.bad(key, format!("is {}; it must be a whole number from 1 to {cap}", show(value)));
        }
        Some(size.unwrap_or(1))
    }

    /// [`size`](Self::size) of a key that has to be there.
    pub(super) fn required_size(&mut self, key: &'static str, cap: usize) -> usize {
        let size = self.size(key, cap);
        if size.is_none() {
            self.bad(key, "is missing; it must be a whole number".into());
        }
        size.unwrap_or(1)
    }

    /// A finite number for which `fits` holds, if the key is there; `range` says what fits.
    pub(super) fn number(&mut self, key: &'static str, range: &str, fits: impl Fn(f64) -> bool) -> Option<f64> {
        let value = self.get(key)?;
        let number = value.as_f64().filter(|x| (*x as f32).is_finite() && fits(*x));
        if number.is_none() {
            self.bad(key, format!("is {}; it must be a number {range}", show(value)));
        }
        Some(number.unwrap_or(1.0))
    }

    /// A factor or base of sensible size, if the key is there: neither it nor its inverse nears the ends of single precision.
    pub(super) fn factor(&mut self, key: &'static str) -> Option<f64> {
        self.number(key, "from 1e-6 to 1e12", |x| (1e-6..=1e12).contains(&x))
    }

    /// [`factor`](Self::factor) of a key that has to be there.
    pub(super) fn required_factor(&mut self, key: &'static str) -> f64 {
        let factor = self.factor(key);
        if factor.is_none() {
            self.bad(key, "is missing; it must be a number".into());
        }
        factor.unwrap_or(1.0)
    }

    /// A boolean, or `default` where the key is absent.
    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> bool {
        let Some(value) = self.get(key) else { return default };
        if !value.is_boolean() {
            self.bad(key, format!("is {}; it must be true or false", show(value)));
        }
        value.as_bool().unwrap_or(default)
    }

    /// A string, if the key is there.
    pub(super) fn text(&mut self, key: &'static str) -> Option<&'a str> {
        let value = self.get(key)?;
        if !value.is_string() {
            self.bad(key, format!("is {}; it must be a string", show(value)));
        }
        value.as_str()
    }

    /// A reader of the object under a key, if the key is there and the object isn't empty. Give it back with [`absorb`](Self::absorb).
    pub(super) fn object(&mut self, key: &'static str) -> Option<ConfigReader<'a>> {
        let value = self.get(key)?;
        match value {
            Value::Object(object) if object.is_empty() => None,
            Value::Object(object) => Some(ConfigReader::new(object, &format!("{}{key}.", self.prefix))),
            other => {
                self.bad(key, format!("is {}; it must be an object", show(other)));
                None
            }
        }
    }

    /// Takes over what an [`object`](Self::object) reader found, unknown keys included.
    pub(super) fn absorb(&mut self, inner: ConfigReader<'_>) {
        self.problems.extend(inner.all_problems(&[]));
    }

    /// Takes over only what another reader has reported, whatever else is in its object.
    pub(super) fn absorb_reported(&mut self, inner: ConfigReader<'_>) {
        self.problems.extend(inner.problems);
    }

    /// Whether nothing was reported so far. Comparing values with each other makes sense only then, as some may be stand-ins.
    pub(super) fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// Reports a value that is wrong.
    pub(super) fn bad(&mut self, key: &str, problem: String) {
        self.report(key, Fault::BadInput, problem);
    }

    /// Reports a value that asks for something dlc can't do.
    pub(super) fn unsupported(&mut self, key: &str, problem: String) {
        self.report(key, Fault::Unsupported, problem);
    }

    fn report(&mut self, key: &str, fault: Fault, problem: String) {
        self.problems.push(ConfigProblem { key: format!("{}{}", self.prefix, shown(key)), fault, problem });
    }

    /// An error if anything was wrong, or if a key was never asked for that may change the model.
    pub(super) fn finish(self, path: &Path) -> Result<(), ImportError> {
        let problems = self.all_problems(HARMLESS);
        if problems.is_empty() { Ok(()) } else { Err(ImportError::Config { path: path.to_owned(), problems }) }
    }

    fn all_problems(mut self, harmless: &[&str]) -> Vec<ConfigProblem> {
        for (key, value) in self.values {
            let key = key.as_str();
            if self.asked.contains(key) || value.is_null() {
                continue;
            }
            if let Some((_, neutral, reason)) = NEUTRAL.iter().find(|(name, ..)| *name == key) {
                if !neutral.accepts(value) {
                    self.unsupported(key, format!("is {}, which {reason}; dlc can't do that", show(value)));
                }
            } else if !harmless.contains(&key) && *value != Value::Bool(false) {
                let known = "dlc doesn't know whether it changes the model. If it doesn't, remove it";
                self.unsupported(key, format!("is {}; {known}", show(value)));
            }
        }
        self.problems
    }
}

/// A value as messages show it.
pub(super) fn show(value: &Value) -> String {
    shown(&value.to_string())
}
