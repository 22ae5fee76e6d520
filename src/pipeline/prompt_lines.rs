//! Files of prompts: one a line, or for `.jsonl` one `{"prompt": ...}` or `{"text": ...}` a line.

use std::path::Path;

use serde::Deserialize;

/// Prompts for images of many kinds.
const IMAGES: &str = include_str!("prompts.txt");

/// Prompts for images of many kinds, that are always at hand.
pub fn built_in_prompts() -> impl Iterator<Item = &'static str> {
    IMAGES.lines()
}

#[derive(Deserialize)]
struct Record {
    #[serde(alias = "text")]
    prompt: String,
}

/// A line that is no prompt.
#[derive(Debug)]
pub struct BadLine {
    /// Its number, from 1.
    pub number: usize,
    /// What is wrong with it.
    pub problem: String,
}

/// The prompts in the text of the file at `path`, each with the number of its line. Empty lines are
/// left out.
///
/// # Errors
/// The first line that is no prompt.
pub fn prompt_lines(path: &Path, text: &str) -> Result<Vec<(usize, String)>, BadLine> {
    let json = path.extension().is_some_and(|e| e == "jsonl");
    let lines = (1..)
        .zip(text.lines())
        .filter(|(_, line)| !line.trim().is_empty());
    let prompt = |(number, line): (usize, &str)| {
        if !json {
            return Ok((number, line.to_owned()));
        }
        let record = serde_json::from_str::<Record>(line);
        let record = record.map_err(|error| BadLine {
            number,
            problem: format!("lines are {{\"prompt\": ...}}: {error}"),
        })?;
        Ok((number, record.prompt))
    };
    lines.map(prompt).collect()
}
