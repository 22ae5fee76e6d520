//! A typed reader of `config.json` that remembers which keys were asked for, and collects what is
//! wrong instead of stopping.
//!
//! After a problem a reader returns a stand-in, so callers read everything and then
//! [`finish`](ConfigReader::finish) before they use anything.

use std::collections::BTreeSet;
use std::path::Path;

use dlc_errors::Fault;
use serde_json::{Map, Value};

use super::defaults::{self, Key, Resolved};
use super::error::{ConfigProblem, ImportError};
use super::keys::{self, Verdict};
use crate::checkpoint::shown;

/// Reads one JSON object.
pub(super) struct ConfigReader<'a> {
    values: &'a Map<String, Value>,
    prefix: String,
    /// What the class says of null.
    keys: &'static [Key],
    /// Where values are those of a whole configuration.
    resolved: Option<&'a Resolved>,
    asked: BTreeSet<&'static str>,
    problems: Vec<ConfigProblem>,
    /// Keys that nobody asked for and that may change the model, unless the user knows that they
    /// don't.
    refused: Vec<ConfigProblem>,
    /// Keys that nobody asked for and of which nothing is known.
    unknown: Vec<String>,
    notes: Vec<String>,
}

impl<'a> ConfigReader<'a> {
    /// A reader whose messages put `prefix` before each key.
    pub(super) fn new(values: &'a Map<String, Value>, prefix: &str, keys: &'static [Key]) -> Self {
        Self {
            values,
            prefix: prefix.to_owned(),
            keys,
            resolved: None,
            asked: BTreeSet::new(),
            problems: Vec::new(),
            refused: Vec::new(),
            unknown: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// A reader of a model's configuration.
    pub(super) fn whole(resolved: &'a Resolved) -> Self {
        let mut reader = Self {
            resolved: Some(resolved),
            ..Self::new(resolved.values(), "", resolved.keys())
        };
        for (alias, key) in resolved.aliases() {
            let values = [reader.get(alias), reader.values.get(*key)];
            if let [Some(a), Some(b)] = values
                && a != b
            {
                reader.bad(alias, format!("is {}, but `{key}`, which it stands for, is {}. Keep the one that is right", show(a), show(b)));
            }
        }
        reader
    }

    /// The value of a key, its class's own where it is absent; nothing if it is null, which is
    /// reported where the class refuses that.
    pub(super) fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        let first = self.asked.insert(key);
        let value = self.values.get(key)?;
        if value.is_null() && first && defaults::refuses_null(self.keys, key) {
            self.bad(key, "is null, which its class refuses. Give its value, or remove the key for the class's own".into());
        }
        Some(value).filter(|v| !v.is_null())
    }

    /// Whether the file itself says something of the key.
    pub(super) fn is_written(&self, key: &str) -> bool {
        self.values.contains_key(key)
            && !self
                .resolved
                .is_some_and(|resolved| resolved.is_filled(key))
    }

    /// Reports a key that has to be there, unless more was said of it.
    fn missing(&mut self, key: &'static str, what: &str) {
        let full = format!("{}{key}", self.prefix);
        if !self.problems.iter().any(|problem| problem.key == full) {
            self.bad(key, format!("is missing; it must be {what}"));
        }
    }

    /// A whole number from 1 to `cap`, if the key is there.
    pub(super) fn size(&mut self, key: &'static str, cap: usize) -> Option<usize> {
        let value = self.get(key)?;
        let size = value
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| (1..=cap).contains(n));
        if size.is_none() {
            self.bad(
                key,
                format!(
                    "is {}; it must be a whole number from 1 to {cap}",
                    show(value)
                ),
            );
        }
        Some(size.unwrap_or(1))
    }

    /// [`size`](Self::size) of a key that has to be there.
    pub(super) fn required_size(&mut self, key: &'static str, cap: usize) -> usize {
        let size = self.size(key, cap);
        if size.is_none() {
            self.missing(key, "a whole number");
        }
        size.unwrap_or(1)
    }

    /// A finite number for which `fits` holds, if the key is there; `range` says what fits.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        range: &str,
        fits: impl Fn(f64) -> bool,
    ) -> Option<f64> {
        let value = self.get(key)?;
        let number = value
            .as_f64()
            .filter(|x| (*x as f32).is_finite() && fits(*x));
        if number.is_none() {
            self.bad(
                key,
                format!("is {}; it must be a number {range}", show(value)),
            );
        }
        Some(number.unwrap_or(1.0))
    }

    /// A factor or base of sensible size, if the key is there: neither it nor its inverse nears the
    /// ends of single precision.
    pub(super) fn factor(&mut self, key: &'static str) -> Option<f64> {
        self.number(key, "from 1e-6 to 1e12", |x| (1e-6..=1e12).contains(&x))
    }

    /// [`factor`](Self::factor) of a key that has to be there.
    pub(super) fn required_factor(&mut self, key: &'static str) -> f64 {
        let factor = self.factor(key);
        if factor.is_none() {
            self.missing(key, "a number");
        }
        factor.unwrap_or(1.0)
    }

    /// The list of [`factor`](Self::factor)s under a key that has to be there.
    pub(super) fn factors(&mut self, key: &'static str) -> Vec<f64> {
        let Some(value) = self.get(key) else {
            self.missing(key, "a list of numbers");
            return Vec::new();
        };
        let entries = value.as_array().map(Vec::as_slice).unwrap_or_default();
        let factor = |entry: &Value| entry.as_f64().filter(|x| (1e-6..=1e12).contains(x));
        let numbers: Option<Vec<f64>> = entries.iter().map(factor).collect();
        let numbers = numbers.filter(|list| !list.is_empty());
        if numbers.is_none() {
            self.bad(
                key,
                format!(
                    "is {}; it must be a list of numbers from 1e-6 to 1e12",
                    show(value)
                ),
            );
        }
        numbers.unwrap_or_default()
    }

    /// A boolean; null, where it is taken, is false as it is in Python.
    pub(super) fn flag(&mut self, key: &'static str) -> bool {
        self.optional_flag(key).unwrap_or(false)
    }

    /// A boolean, if the key is there.
    pub(super) fn optional_flag(&mut self, key: &'static str) -> Option<bool> {
        let value = self.get(key)?;
        if !value.is_boolean() {
            self.bad(key, format!("is {}; it must be true or false", show(value)));
        }
        value.as_bool()
    }

    /// A string, if the key is there.
    pub(super) fn text(&mut self, key: &'static str) -> Option<&'a str> {
        let value = self.get(key)?;
        if !value.is_string() {
            self.bad(key, format!("is {}; it must be a string", show(value)));
        }
        value.as_str()
    }

    /// A reader of the object under a key, if the key is there and the object isn't empty. Give it
    /// back with [`absorb`](Self::absorb).
    pub(super) fn object(&mut self, key: &'static str) -> Option<ConfigReader<'a>> {
        let value = self.get(key)?;
        match value {
            Value::Object(object) if object.is_empty() => None,
            Value::Object(object) => Some(ConfigReader::new(
                object,
                &format!("{}{key}.", self.prefix),
                defaults::ROPE,
            )),
            other => {
                self.bad(key, format!("is {}; it must be an object", show(other)));
                None
            }
        }
    }

    /// Takes over what an [`object`](Self::object) reader found, unknown keys included.
    pub(super) fn absorb(&mut self, mut inner: ConfigReader<'_>) {
        inner.judge_unasked(false);
        self.refused.append(&mut inner.refused);
        self.unknown.append(&mut inner.unknown);
        self.absorb_reported(inner);
    }

    /// Takes over only what another reader has reported, whatever else is in its object.
    pub(super) fn absorb_reported(&mut self, inner: ConfigReader<'_>) {
        self.problems.extend(inner.problems);
        self.notes.extend(inner.notes);
    }

    /// Whether nothing was reported so far. Comparing values with each other makes sense only then,
    /// as some may be stand-ins.
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

    /// Reports a key that may change the model, for a user who knows better to say so.
    pub(super) fn refuse(&mut self, key: &str, problem: &str) {
        let key = format!("{}{}", self.prefix, shown(key));
        let problem = format!("{problem}. If this changes nothing here, give --ignore-key {key}");
        self.refused.push(ConfigProblem {
            key,
            fault: Fault::Unsupported,
            problem,
        });
    }

    /// Says something to the user that stops nothing.
    pub(super) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    fn report(&mut self, key: &str, fault: Fault, problem: String) {
        self.problems.push(ConfigProblem {
            key: format!("{}{}", self.prefix, shown(key)),
            fault,
            problem,
        });
    }

    /// What the user should know: keys that were left out. `ignored` are those that he knows to
    /// change nothing.
    ///
    /// # Errors
    /// All that was wrong, and all keys that were never asked for and may change the model.
    pub(super) fn finish(
        mut self,
        path: &Path,
        ignored: &[String],
    ) -> Result<Vec<String>, ImportError> {
        self.judge_unasked(true);
        let absent = |name: &&String| {
            let top = name.split('.').next().unwrap_or_default();
            !has(self.values, name) || !self.is_written(name) && !self.is_written(top)
        };
        let absent: Vec<&String> = ignored.iter().filter(absent).collect();
        for name in absent {
            self.bad(
                name,
                "is to be ignored, and isn't there. Write it as the configuration does".into(),
            );
        }
        let known = |key: &str| ignored.iter().any(|name| name == key);
        let idle: Vec<String> = ignored
            .iter()
            .filter(|name| !self.refused.iter().any(|p| p.key == **name))
            .map(|name| shown(name))
            .collect();
        self.problems.extend(
            self.refused
                .into_iter()
                .filter(|problem| !known(&problem.key)),
        );
        if !self.problems.is_empty() {
            return Err(ImportError::Config {
                path: path.to_owned(),
                problems: self.problems,
            });
        }
        let place = path.display();
        self.unknown.retain(|key| !known(key));
        if !self.unknown.is_empty() {
            let list: Vec<String> = self.unknown.iter().map(|key| format!("`{key}`")).collect();
            self.notes.push(format!(
                "keys that dlc doesn't know, and leaves out: {}",
                list.join(", ")
            ));
        }
        if !idle.is_empty() {
            self.notes.push(format!(
                "--ignore-key has no effect for {}, which isn't refused",
                idle.join(", ")
            ));
        }
        Ok(self
            .notes
            .into_iter()
            .map(|note| format!("{place}: {note}"))
            .collect())
    }

    /// Sorts the keys that nobody asked for; `whole` where the object is the configuration itself,
    /// in which some are harmless.
    fn judge_unasked(&mut self, whole: bool) {
        let values = self.values;
        for (key, value) in values {
            if self.asked.contains(key.as_str()) || !self.is_written(key) {
                continue;
            }
            match keys::judge(key, value, whole) {
                Verdict::Unknown => self.unknown.push(format!("{}{}", self.prefix, shown(key))),
                Verdict::Null if defaults::refuses_null(self.keys, key) => {
                    self.bad(key, "is null, which its class refuses. Give its value, or remove the key for the class's own".into());
                }
                Verdict::Harmless | Verdict::Null => {}
                Verdict::Refused(reason) => {
                    self.refuse(key, &format!("is {}, {reason}", show(value)));
                }
            }
        }
    }
}

/// Whether a configuration has a key; `a.b` is key `b` of the object `a`.
fn has(values: &Map<String, Value>, name: &str) -> bool {
    let inner = |(outer, inner): (&str, &str)| {
        let object = values.get(outer).and_then(Value::as_object);
        object.is_some_and(|object| has(object, inner))
    };
    values.contains_key(name)
        || name
            .match_indices('.')
            .any(|(at, _)| inner((&name[..at], &name[at + 1..])))
}

/// A value as messages show it.
pub(super) fn show(value: &Value) -> String {
    shown(&value.to_string())
}
