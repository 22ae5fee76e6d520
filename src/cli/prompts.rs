//! Prompts and texts from files.

use std::path::Path;

use dlc_files::read_text;

use super::failure::{Failure, Result, bail};
use super::input::{self, Text};
use crate::pipeline::prompt_lines;

/// Largest file of prompts.
const CAP: u64 = 64 << 20;

/// The prompts in a file, or on stdin for `-`: one a line, or for `.jsonl` one `{"prompt": ...}` or
/// `{"text": ...}` a line.
pub(super) fn read(path: &Path) -> Result<Vec<Text>> {
    let text = if input::is_stdin(path) {
        input::stdin(CAP)?
    } else {
        read_text(path, CAP)?
    };
    let file = input::place(path);
    let place = |number: usize| format!("{file}, line {number}");
    let lines = prompt_lines(path, &text)
        .map_err(|bad| Failure::usage(format!("{}: {}", place(bad.number), bad.problem)))?;
    if lines.is_empty() {
        bail!("{file} holds no prompts; write one a line");
    }
    let prompt = |(number, content)| Text {
        content,
        place: place(number),
    };
    Ok(lines.into_iter().map(prompt).collect())
}
