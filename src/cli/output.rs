//! stdout for results, stderr for people.

use std::io::{self, IsTerminal, Write};

use dlc_errors::printable::{escaped, escaped_json};
use serde::Serialize;

use super::failure::{Failure, Result};
use super::phases::{self, LogLevel};

/// Where a command's words go. With `--json`, stdout gets one JSON document and nothing else.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// A result for people; left out with `--json`.
    pub fn result(self, text: &str) -> Result<()> {
        if !self.json {
            phases::beside_bar(|| write_to(io::stdout().lock(), &escaped(text)))?;
        }
        Ok(())
    }

    /// A result for machines; left out without `--json`.
    pub fn json(self, value: &impl Serialize) -> Result<()> {
        if self.json {
            let text = serde_json::to_string_pretty(value).map_err(Failure::bug)?;
            phases::beside_bar(|| write_to(io::stdout().lock(), &escaped_json(&text)))?;
        }
        Ok(())
    }
}

/// A picture of coloured characters, which only a terminal shows; says whether there is one.
pub(super) fn show(picture: &str) -> Result<bool> {
    let mut stdout = io::stdout();
    let shown = stdout.is_terminal();
    if shown {
        phases::beside_bar(|| stdout.write_all(picture.as_bytes()))?;
    }
    Ok(shown)
}

/// What people may want to know beside the result.
pub(super) fn note(text: &str) -> Result<()> {
    say(LogLevel::Info, text)
}

/// What people should know beside the result.
pub(super) fn warn(text: &str) -> Result<()> {
    say(LogLevel::Warn, &format!("warning: {text}"))
}

fn say(level: LogLevel, text: &str) -> Result<()> {
    if phases::says(level) {
        phases::beside_bar(|| write_to(io::stderr().lock(), &escaped(text)))?;
    }
    Ok(())
}

/// A piece of the text that a model writes, as it is; on a terminal, what would steer it is
/// escaped.
pub(super) fn piece(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let shown = if stdout.is_terminal() {
        escaped(text)
    } else {
        text.into()
    };
    stdout.write_all(shown.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

fn write_to(mut stream: impl Write, text: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes())?;
    if !text.ends_with('\n') && !text.is_empty() {
        stream.write_all(b"\n")?;
    }
    stream.flush()
}
