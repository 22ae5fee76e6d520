//! The keys of a checkpoint's side files: which are heeded, which can't matter, and a warning that
//! names the rest.
//!
//! One table for each kind of file, beside its reader. Nothing here reads a setting.

use serde_json::{Map, Value};

use super::error::shown;

/// Most keys that a warning names.
const MOST_NAMED: usize = 12;

/// What is known of the keys of one kind of file. A key that stands in no list is named as not
/// heeded, unless its value says nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SideKeys {
    /// Keys that a reader asks for.
    pub(crate) heeded: &'static [&'static str],
    /// Keys that change nothing of what dlc makes or does.
    pub(crate) harmless: &'static [&'static str],
    /// Keys that change nothing while they have one of these values, each written as JSON.
    pub(crate) neutral: &'static [(&'static str, &'static [&'static str])],
}

impl SideKeys {
    /// One line that names the keys of `object` that are not heeded, `file` before it; none if
    /// there are none.
    pub(crate) fn warning(&self, file: &str, object: &Map<String, Value>) -> Option<String> {
        let unheeded: Vec<&String> = object
            .iter()
            .filter(|(key, value)| !self.knows(key, value))
            .map(|(key, _)| key)
            .collect();
        let named: Vec<String> = unheeded
            .iter()
            .take(MOST_NAMED)
            .map(|key| format!("`{}`", shown(key)))
            .collect();
        let more = if unheeded.len() > MOST_NAMED {
            format!(" and {} more", unheeded.len() - MOST_NAMED)
        } else {
            String::new()
        };
        (!named.is_empty()).then(|| format!("{file}: not heeded: {}{more}", named.join(", ")))
    }

    fn knows(&self, key: &str, value: &Value) -> bool {
        let neutral = || {
            self.neutral
                .iter()
                .filter(|(name, _)| *name == key)
                .flat_map(|(_, values)| *values)
        };
        let is_neutral = || {
            neutral()
                .any(|text| serde_json::from_str::<Value>(text).is_ok_and(|known| known == *value))
        };
        says_nothing(value)
            || self.heeded.contains(&key)
            || self.harmless.contains(&key)
            || is_neutral()
    }
}

/// Null, and what is empty.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEYS: SideKeys = SideKeys {
        heeded: &["limit"],
        harmless: &["version"],
        neutral: &[("mode", &["\"plain\"", "1"])],
    };

    fn warning(object: &Value) -> Option<String> {
        KEYS.warning("x.json", object.as_object().unwrap())
    }

    #[test]
    fn keys_that_are_heeded_or_can_not_matter_are_not_named() {
        assert_eq!(
            warning(&json!({"limit": 3, "version": {"a": 1}, "mode": "plain"})),
            None
        );
        assert_eq!(
            warning(&json!({"mode": 1, "a": null, "b": [], "c": {}, "d": ""})),
            None
        );
    }

    #[test]
    fn all_other_keys_are_named_in_one_line() {
        let found = warning(&json!({"mode": "other", "flag": false, "\u{1b}[31m": 1})).unwrap();
        assert!(
            found.starts_with("x.json: not heeded: ")
                && ["`mode`", "`flag`", "`\\u{1b}[31m`"]
                    .iter()
                    .all(|key| found.contains(key)),
            "{found}"
        );
        let many: Map<String, Value> = (0..20)
            .map(|i| (format!("key{i:02}"), json!(true)))
            .collect();
        let found = KEYS.warning("x.json", &many).unwrap();
        assert!(
            found.contains("`key11`")
                && found.ends_with(" and 8 more")
                && !found.contains("`key12`"),
            "{found}"
        );
    }
}
