//! Prompts and texts from files.

use std::path::Path;

use dlc_files::read_text;
use serde::Deserialize;

use super::failure::{Failure, Result, bail};
use super::input::{self, Text};

/// Largest file of prompts.
const CAP: u64 = 64 << 20;

#[derive(Deserialize)]
struct Record {
    #[serde(alias = "text")]
    prompt: String,
}

/// The prompts in a file, or on stdin for `-`: one a line, or for `.jsonl` one `{"prompt": ...}` or
/// `{"text": ...}` a line.
pub(super) fn read(path: &Path) -> Result<Vec<Text>> {
    let text = if input::is_stdin(path) {
        input::stdin(CAP)?
    } else {
        read_text(path, CAP)?
    };
    let file = input::place(path);
    let json = path.extension().is_some_and(|e| e == "jsonl");
    let lines = (1..)
        .zip(text.lines())
        .filter(|(_, l)| !l.trim().is_empty());
    let prompts = lines.map(|(number, line)| {
        let place = format!("{file}, line {number}");
        let content = if json {
            let record = serde_json::from_str::<Record>(line);
            let problem =
                |error| Failure::usage(format!("{place}: lines are {{\"prompt\": ...}}: {error}"));
            record.map_err(problem)?.prompt
        } else {
            line.to_owned()
        };
        Ok(Text { content, place })
    });
    let prompts: Vec<Text> = prompts.collect::<Result<_>>()?;
    if prompts.is_empty() {
        bail!("{file} holds no prompts; write one a line");
    }
    Ok(prompts)
}
