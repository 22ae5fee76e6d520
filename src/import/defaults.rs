//! What the classes of transformers and diffusers say of their keys: what stands for a key that a
//! configuration leaves out, and whether null means none or is refused.
//!
//! `fixtures/configurations.json` holds the libraries' own answers, with which tests compare these
//! tables.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// A key of a configuration's class.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    name: &'static str,
    absent: Absent,
    /// Whether null stands for none; else the class refuses it.
    nullable: bool,
}

/// What stands for a key that isn't there.
#[derive(Debug, Clone, Copy)]
pub(super) enum Absent {
    /// Nothing, or what depends on other keys.
    Nothing,
    Flag(bool),
    Whole(u64),
    Real(f64),
    Text(&'static str),
    Texts(&'static [&'static str]),
    Wholes(&'static [u64]),
}

impl Absent {
    fn value(self) -> Option<Value> {
        Some(match self {
            Self::Nothing => return None,
            Self::Flag(flag) => flag.into(),
            Self::Whole(n) => n.into(),
            Self::Real(x) => x.into(),
            Self::Text(text) => text.into(),
            Self::Texts(texts) => texts.to_vec().into(),
            Self::Wholes(numbers) => numbers.to_vec().into(),
        })
    }
}

pub(super) const fn key(name: &'static str, absent: Absent) -> Key {
    Key {
        name,
        absent,
        nullable: false,
    }
}

/// A key that may be null.
pub(super) const fn optional(name: &'static str, absent: Absent) -> Key {
    Key {
        name,
        absent,
        nullable: true,
    }
}

/// What is in the objects that describe rotations.
pub(super) const ROPE: &[Key] = &[
    key("rope_type", Absent::Nothing),
    key("rope_theta", Absent::Nothing),
    optional("factor", Absent::Nothing),
    key("low_freq_factor", Absent::Nothing),
    key("high_freq_factor", Absent::Nothing),
    key("original_max_position_embeddings", Absent::Nothing),
];

/// Other names that a class takes for keys, and the keys.
pub(super) type Aliases = &'static [(&'static str, &'static str)];

/// A configuration, whole: with what its class says of the keys that it leaves out.
#[derive(Debug)]
pub(super) struct Resolved {
    values: Map<String, Value>,
    keys: &'static [Key],
    aliases: Aliases,
    filled: BTreeSet<&'static str>,
}

impl Resolved {
    /// `written` with what is missing of `keys`.
    pub(super) fn new(
        written: &Map<String, Value>,
        keys: &'static [Key],
        aliases: Aliases,
    ) -> Self {
        let mut values = written.clone();
        for (alias, key) in aliases {
            if let Some(value) = written.get(*alias).filter(|_| !written.contains_key(*key)) {
                values.insert((*key).to_owned(), value.clone());
            }
        }
        let mut filled = BTreeSet::new();
        for key in keys {
            if let Some(value) = key
                .absent
                .value()
                .filter(|_| !values.contains_key(key.name))
            {
                values.insert(key.name.to_owned(), value);
                filled.insert(key.name);
            }
        }
        Self {
            values,
            keys,
            aliases,
            filled,
        }
    }

    pub(super) fn values(&self) -> &Map<String, Value> {
        &self.values
    }

    /// The keys of the class.
    pub(super) fn keys(&self) -> &'static [Key] {
        self.keys
    }

    /// Other names of keys.
    pub(super) fn aliases(&self) -> Aliases {
        self.aliases
    }

    /// Whether the configuration leaves `key` out, and the value is the class's own.
    pub(super) fn is_filled(&self, key: &str) -> bool {
        self.filled.contains(key)
    }
}

/// Whether the class of `keys` refuses null for `key`.
pub(super) fn refuses_null(keys: &[Key], key: &str) -> bool {
    keys.iter().any(|k| k.name == key && !k.nullable)
}
