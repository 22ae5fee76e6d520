//! The lists of names in an adapter's configuration.

use serde_json::Value;

/// Most entries of a list of modules, or of patterns of them.
pub(super) const MOST_ENTRIES: usize = 10_000;

/// A list of strings that aren't empty.
pub(super) fn names(value: &Value) -> Option<Vec<String>> {
    value
        .as_array()
        .filter(|list| list.len() <= MOST_ENTRIES)?
        .iter()
        .map(|name| {
            name.as_str()
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
        })
        .collect()
}
