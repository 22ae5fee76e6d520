//! Puts entries into the text of a JSON object without touching its other bytes.

use std::ops::Range;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Deserializer;

/// The text of the object `text`, in which the object under `path` has these entries: each takes
/// the place of the value under its key, or stands after the others. Objects on the path that are
/// missing are made.
///
/// # Errors
/// What is wrong where `text`, or something on the path, is no object.
pub(super) fn with_entries(
    text: &str,
    path: &[&str],
    entries: &[(&str, String)],
) -> Result<String, String> {
    let [key, rest @ ..] = path else {
        return entries
            .iter()
            .try_fold(text.to_owned(), |text, (key, value)| {
                with_entry(&text, key, value)
            });
    };
    let inner = match find(&members(text)?, key) {
        Some(place) => with_entries(&text[place], rest, entries)
            .map_err(|problem| format!("{key}: {problem}"))?,
        None => with_entries("{}", rest, entries)?,
    };
    with_entry(text, key, &inner)
}

fn with_entry(text: &str, key: &str, value: &str) -> Result<String, String> {
    let members = members(text)?;
    let (place, entry) = if let Some(place) = find(&members, key) {
        (place, value.to_owned())
    } else if let Some((_, last)) = members.last() {
        let separator = if text.contains('\n') { ",\n  " } else { ", " };
        (last.end..last.end, format!("{separator}\"{key}\": {value}"))
    } else {
        let start = text.len() - text.trim_start().len() + 1;
        (start..start, format!("\"{key}\": {value}"))
    };
    Ok([&text[..place.start], &entry, &text[place.end..]].concat())
}

/// The value of a key; of a key that stands twice, the one that readers take.
fn find(members: &[(String, Range<usize>)], key: &str) -> Option<Range<usize>> {
    let mut found = members.iter().filter(|(name, _)| name == key);
    found.next_back().map(|(_, place)| place.clone())
}

/// The keys of an object, and where their values stand.
fn members(text: &str) -> Result<Vec<(String, Range<usize>)>, String> {
    const PROBLEM: &str = "is no object";
    // Whoever walks the text below may then rely on its form.
    let (_, end) = value::<serde_json::Map<String, serde_json::Value>>(text, 0).ok_or(PROBLEM)?;
    let mut members = Vec::new();
    let mut at = after(text, 0, '{').ok_or(PROBLEM)?;
    while at < end {
        let Some((key, key_end)) = value::<String>(text, at) else {
            break;
        };
        let start = after(text, key_end, ':').ok_or(PROBLEM)?;
        let start = start + text[start..].len() - text[start..].trim_start().len();
        let (_, value_end) = value::<IgnoredAny>(text, start).ok_or(PROBLEM)?;
        members.push((key, start..value_end));
        at = after(text, value_end, ',').unwrap_or(end);
    }
    Ok(members)
}

/// The value that stands at `at`, and where it ends.
fn value<T: DeserializeOwned>(text: &str, at: usize) -> Option<(T, usize)> {
    let mut stream = Deserializer::from_str(text.get(at..)?).into_iter();
    let value = stream.next()?.ok()?;
    Some((value, at + stream.byte_offset()))
}

/// The place after `mark`, which is what follows at `at` but for spaces.
fn after(text: &str, at: usize, mark: char) -> Option<usize> {
    let rest = text.get(at..)?.trim_start().strip_prefix(mark)?;
    Some(text.len() - rest.len())
}

#[cfg(test)]
mod tests;
