//! Prompts and texts from files.

use std::path::Path;

use dlc_files::read_text;
use serde::Deserialize;

use super::failure::{Failure, Result, bail};
use super::input;

/// Largest file of prompts.
const CAP: u64 = 64 << 20;

#[derive(Deserialize)]
struct Record {
    #[serde(alias = "text")]
    prompt: String,
}

/// The prompts in a file, or on stdin for `-`: one a line, or for `.jsonl` one `{"prompt": ...}` or
/// `{"text": ...}` a line.
pub(super) fn read(path: &Path) -> Result<Vec<String>> {
    let text = if input::is_stdin(path) {
        input::stdin(CAP)?
    } else {
        read_text(path, CAP)?
    };
    let json = path.extension().is_some_and(|e| e == "jsonl");
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, l)| !l.trim().is_empty());
    let prompts = lines.map(|(i, line)| {
        if !json {
            return Ok(line.to_owned());
        }
        let record = serde_json::from_str::<Record>(line);
        record.map(|record| record.prompt).map_err(|error| {
            let (path, line) = (path.display(), i + 1);
            Failure::usage(format!(
                "{path}, line {line}: lines are {{\"prompt\": ...}}: {error}"
            ))
        })
    });
    let prompts: Vec<String> = prompts.collect::<Result<_>>()?;
    if prompts.is_empty() {
        bail!("{} holds no prompts; write one a line", path.display());
    }
    Ok(prompts)
}
