//! Splits a template into what it prints as it is and its tags, and a tag into tokens. Knows
//! nothing of what they mean.

/// A part of a template.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'s> {
    /// Text, comments and `{% raw %}` blocks, delimiters included.
    Verbatim(&'s str),
    /// `{{ ... }}` or `{% ... %}`.
    Tag(Tag<'s>),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tag<'s> {
    /// `{{` or `{%`, with the sign that may follow.
    pub open: &'s str,
    pub tokens: Vec<Token<'s>>,
    /// White space, a sign, and `}}` or `%}`.
    pub close: &'s str,
}

impl Tag<'_> {
    pub fn is_statement(&self) -> bool {
        self.open.starts_with("{%")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'s> {
    /// White space in front of it.
    pub space: &'s str,
    pub text: &'s str,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Name,
    /// A number or a text.
    Literal,
    /// An opening bracket, a closing one, or another sign.
    Open,
    Close,
    Sign,
}

/// All parts, or the line of the tag that doesn't end.
pub(super) fn parts(source: &str) -> Result<Vec<Part<'_>>, usize> {
    let mut parts = Vec::new();
    let (mut rest, mut raw) = (source, false);
    let line = |rest: &str| source[..source.len() - rest.len()].matches('\n').count() + 1;
    while let Some(at) = next_tag(rest) {
        let (text, tail) = rest.split_at(at);
        if !text.is_empty() {
            parts.push(Part::Verbatim(text));
        }
        let verbatim = if raw && statement_name(tail) != Some("endraw") {
            Some(2)
        } else if tail.starts_with("{#") {
            Some(tail.find("#}").ok_or_else(|| line(tail))? + 2)
        } else {
            None
        };
        if let Some(end) = verbatim {
            parts.push(Part::Verbatim(&tail[..end]));
            rest = &tail[end..];
            continue;
        }
        let (tag, length) = tag(tail).ok_or_else(|| line(tail))?;
        raw = tag.is_statement() && matches!(tag.tokens[..], [only] if only.text == "raw");
        parts.push(Part::Tag(tag));
        rest = &tail[length..];
    }
    parts.push(Part::Verbatim(rest));
    Ok(parts)
}

fn next_tag(text: &str) -> Option<usize> {
    text.as_bytes()
        .windows(2)
        .position(|pair| pair[0] == b'{' && matches!(pair[1], b'{' | b'%' | b'#'))
}

/// The name of a statement at the beginning of `text`.
fn statement_name(text: &str) -> Option<&str> {
    let inner = text
        .strip_prefix("{%")?
        .trim_start_matches(['-', '+'])
        .trim_start();
    Some(
        &inner[..inner
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(inner.len())],
    )
}

/// The tag that `text` begins with, and its length.
fn tag(text: &str) -> Option<(Tag<'_>, usize)> {
    let statement = text.starts_with("{%");
    let ending = if statement { "%}" } else { "}}" };
    let start = 2 + usize::from(matches!(text.as_bytes().get(2), Some(b'-' | b'+')));
    let (mut tokens, mut at, mut depth) = (Vec::new(), start, 0_usize);
    loop {
        let rest = &text[at..];
        let trimmed = rest.trim_start();
        let space = &rest[..rest.len() - trimmed.len()];
        if depth == 0 {
            let signed = trimmed.strip_prefix(['-', '+']).unwrap_or(trimmed);
            if let Some(after) = [trimmed, signed]
                .iter()
                .find_map(|t| t.strip_prefix(ending))
            {
                let end = text.len() - after.len();
                return Some((
                    Tag {
                        open: &text[..start],
                        tokens,
                        close: &text[at..end],
                    },
                    end,
                ));
            }
        }
        let (length, kind) = token(trimmed)?;
        match kind {
            Kind::Open => depth += 1,
            Kind::Close => depth = depth.checked_sub(1)?,
            _ => {}
        }
        tokens.push(Token {
            space,
            text: &trimmed[..length],
            kind,
        });
        at += space.len() + length;
    }
}

/// Length and kind of the token that `text` begins with.
fn token(text: &str) -> Option<(usize, Kind)> {
    let first = text.chars().next()?;
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    Some(match first {
        '\'' | '"' => (text_length(text, first)?, Kind::Literal),
        c if c.is_ascii_digit() => (number_length(text), Kind::Literal),
        c if is_name(c) => (text.find(|c| !is_name(c)).unwrap_or(text.len()), Kind::Name),
        '(' | '[' | '{' => (1, Kind::Open),
        ')' | ']' | '}' => (1, Kind::Close),
        _ => {
            let double = ["==", "!=", "<=", ">=", "//", "**"]
                .iter()
                .any(|sign| text.starts_with(sign));
            (if double { 2 } else { first.len_utf8() }, Kind::Sign)
        }
    })
}

fn text_length(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

fn number_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut end = 0;
    while let Some(&byte) = bytes.get(end) {
        let exponent_sign = matches!(byte, b'+' | b'-')
            && end > 0
            && matches!(bytes[end - 1], b'e' | b'E')
            && !text.starts_with("0x");
        // `1.foo` and `1..2` aren't numbers with a point.
        let point = byte == b'.' && bytes.get(end + 1).is_some_and(u8::is_ascii_digit);
        if !(byte.is_ascii_alphanumeric() || byte == b'_' || exponent_sign || point) {
            break;
        }
        end += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str) -> Vec<Vec<&str>> {
        let parts = parts(source).unwrap();
        parts
            .iter()
            .filter_map(|part| {
                if let Part::Tag(tag) = part {
                    Some(tag.tokens.iter().map(|t| t.text).collect())
                } else {
                    None
                }
            })
            .collect()
    }

    #[test]
    fn tags_end_where_their_brackets_do() {
        assert_eq!(
            texts("a{{ {'x': {}} }}b{%- if '%}' == \"}}\" -%}"),
            [
                vec!["{", "'x'", ":", "{", "}", "}"],
                vec!["if", "'%}'", "==", "\"}}\""]
            ]
        );
        assert_eq!(
            texts("{{ -1.5e-3//x.y**2 }}"),
            [vec!["-", "1.5e-3", "//", "x", ".", "y", "**", "2"]]
        );
    }

    #[test]
    fn comments_and_raw_blocks_have_no_tags() {
        assert_eq!(
            texts("{# {{ a }} #}{% raw %}{{ b }}{% if %}{% endraw %}{{ c }}"),
            [vec!["raw"], vec!["endraw"], vec!["c"]]
        );
    }

    #[test]
    fn what_does_not_end_has_no_parts() {
        for source in ["{{ a", "{% if 'x %}", "{# a", "{{ (a }}", "{{ a) }}"] {
            assert_eq!(parts(&format!("a\n{source}")), Err(2), "{source}");
        }
    }
}
