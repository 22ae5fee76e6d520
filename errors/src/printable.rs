//! Text of strangers as messages and terminals may show it: what would steer a terminal is escaped,
//! what is long is cut.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};

/// Characters of a name or value that are shown.
const LONGEST: usize = 120;
/// Lines of a list in a message.
const LONGEST_LIST: usize = 20;

/// Whether a terminal would do something else with `c` than show it: control characters, and marks
/// that turn the order of the text around them.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

/// `text` with everything escaped that steers a terminal, but for newlines and tabs.
pub fn escaped(text: &str) -> Cow<'_, str> {
    escape(text, |c, escaped| escaped.extend(c.escape_default()))
}

/// JSON in which everything that steers a terminal is escaped as JSON does it; the values stay the
/// same.
pub fn escaped_json(json: &str) -> Cow<'_, str> {
    // All of these have 4 digits at most.
    escape(json, |c, escaped| {
        escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
    })
}

fn escape(text: &str, put: impl Fn(char, &mut String)) -> Cow<'_, str> {
    let is_plain = |c: char| matches!(c, '\n' | '\t') || !steers(c);
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_plain(c) {
            escaped.push(c);
        } else {
            put(c, &mut escaped);
        }
    }
    Cow::Owned(escaped)
}

/// The beginning of `text`, with dots for what is left out of it.
pub fn cut(text: &str, longest: usize) -> Cow<'_, str> {
    match text.char_indices().nth(longest) {
        Some((end, _)) => Cow::Owned(format!("{}...", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// A name or a value out of a file, on one line.
pub fn shown(text: &str) -> String {
    let mut shown = String::new();
    for c in cut(text, LONGEST).chars() {
        if matches!(c, '"' | '\'' | '\\') {
            shown.push(c);
        } else {
            shown.extend(c.escape_debug());
        }
    }
    shown
}

/// Items on lines of their own, each after a newline; the last line counts what is left out.
pub fn list<T: Display>(items: &[T]) -> String {
    let mut text = String::new();
    for item in items.iter().take(LONGEST_LIST) {
        // Writing to a `String` can't fail.
        let _ = write!(text, "\n  - {item}");
    }
    if items.len() > LONGEST_LIST {
        let _ = write!(text, "\n  - and {} more", items.len() - LONGEST_LIST);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_escaped() {
        let hostile = "\u{1b}]0;x\u{7}\r\u{8}\u{9b}31m\u{202e}gnp.a";
        assert_eq!(
            escaped(hostile),
            r"\u{1b}]0;x\u{7}\r\u{8}\u{9b}31m\u{202e}gnp.a"
        );
        assert_eq!(escaped("Grüße, 世界\t█ | é\n"), "Grüße, 世界\t█ | é\n");
        assert!(matches!(escaped("plain"), Cow::Borrowed(_)));
    }

    #[test]
    fn json_keeps_its_values() {
        let value = serde_json::json!({"a\u{9b}": "\u{7f}\u{202e}\u{1b} é"});
        let text = serde_json::to_string_pretty(&value).unwrap();
        let escaped = escaped_json(&text);
        assert!(escaped.chars().all(|c| c == '\n' || !steers(c)));
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&escaped).unwrap(),
            value
        );
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(
            (cut("ééé", 2), cut("ééé", 3)),
            ("éé...".into(), "ééé".into())
        );
        assert_eq!(
            shown(&"\n".repeat(500)),
            format!("{}...", "\\n".repeat(120))
        );
    }
}
