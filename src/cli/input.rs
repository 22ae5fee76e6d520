//! Texts from files and from stdin.

use std::io::{self, BufRead, IsTerminal, Read};
use std::path::Path;

use dlc_files::{read_text, without_mark};

use super::failure::{Context, Result, bail};

/// The largest text that is read: far more than any context takes.
const TEXT_CAP: u64 = 16 << 20;
/// The longest line of a conversation, in bytes.
const LINE_CAP: usize = 1 << 20;

/// A text, and where it is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Text {
    pub content: String,
    /// For messages: a file and line, or what text of the command line it is.
    pub place: String,
}

/// Whether text can be waited for on stdin, nobody typing it.
pub(super) fn is_piped() -> bool {
    !io::stdin().is_terminal()
}

/// Whether `path` stands for stdin.
pub(super) fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// All of stdin, up to `cap` bytes.
pub(super) fn stdin(cap: u64) -> Result<String> {
    let mut bytes = Vec::new();
    io::stdin()
        .lock()
        .take(cap + 1)
        .read_to_end(&mut bytes)
        .context("stdin can't be read")?;
    if bytes.len() as u64 > cap {
        bail!("stdin holds more than {cap} bytes, which is more than dlc reads of a text");
    }
    String::from_utf8(bytes)
        .ok()
        .map(without_mark)
        .context("stdin isn't UTF-8 text")
}

/// What messages call a file, or stdin.
pub(super) fn place(path: &Path) -> String {
    if is_stdin(path) {
        "stdin".to_owned()
    } else {
        path.display().to_string()
    }
}

/// What a flag says: the text itself, or `-` for that of stdin. `place` is what messages call it.
pub(super) fn given(content: &str, place: String) -> Result<Text> {
    if content == "-" {
        return text(Path::new(content));
    }
    let content = content.to_owned();
    Ok(Text { content, place })
}

/// The text of a file, or of stdin for `-`, without the line break at its end.
pub(super) fn text(path: &Path) -> Result<Text> {
    let mut text = if is_stdin(path) {
        stdin(TEXT_CAP)?
    } else {
        read_text(path, TEXT_CAP)?
    };
    let whole = text
        .strip_suffix('\n')
        .map(|text| text.strip_suffix('\r').unwrap_or(text).len());
    text.truncate(whole.unwrap_or(text.len()));
    let place = place(path);
    if text.is_empty() {
        bail!("{place} holds no text");
    }
    Ok(Text {
        content: text,
        place,
    })
}

/// What somebody said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Text(String),
    /// Longer than a line may be; it was passed over.
    TooLong,
    /// Not UTF-8; it was passed over.
    NotText,
    End,
}

/// The next line, without its end.
pub(super) fn line(input: &mut impl BufRead) -> io::Result<Line> {
    line_up_to(input, LINE_CAP)
}

fn line_up_to(input: &mut impl BufRead, cap: usize) -> io::Result<Line> {
    let mut bytes = Vec::new();
    if input
        .by_ref()
        .take(cap as u64 + 1)
        .read_until(b'\n', &mut bytes)?
        == 0
    {
        return Ok(Line::End);
    }
    let complete = bytes.ends_with(b"\n");
    if !complete && bytes.len() > cap {
        skip_line(input)?;
        return Ok(Line::TooLong);
    }
    let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    Ok(String::from_utf8(text.to_vec()).map_or(Line::NotText, Line::Text))
}

/// Reads to the end of the line and keeps nothing.
fn skip_line(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = input.fill_buf()?;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let (used, done) = (
            end.map_or(buffer.len(), |end| end + 1),
            end.is_some() || buffer.is_empty(),
        );
        input.consume(used);
        if done {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    #[test]
    fn lines_that_are_too_long_or_no_text_are_passed_over() {
        let mut input =
            BufReader::with_capacity(3, &b"hello\n\r\n0123456789abcdef\n\xFF\n12345678\nlast"[..]);
        let lines: Vec<Line> = std::iter::repeat_with(|| line_up_to(&mut input, 8).unwrap())
            .take(7)
            .collect();
        let text = |text: &str| Line::Text(text.to_owned());
        assert_eq!(
            lines,
            [
                text("hello"),
                text(""),
                Line::TooLong,
                Line::NotText,
                text("12345678"),
                text("last"),
                Line::End
            ]
        );
    }
}
