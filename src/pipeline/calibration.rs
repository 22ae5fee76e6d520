//! Calibration samples: text or JSON lines, tokenised with the checkpoint's own tokenizer.

use std::fs;
use std::path::{Path, PathBuf};

use dlc_passes::{Calibration, PassError};
use serde::Deserialize;

use crate::runtime::TextTokenizer;

/// Text that is always at hand: the King James Bible (public domain), Psalms 23 to 24 and 1 Corinthians 13, and Lincoln's Gettysburg address.
const BUILT_IN: &str = include_str!("calibration.txt");

/// Largest calibration file.
const CAP: u64 = 256 << 20;

/// Reads calibration files and tokenises them.
#[derive(Debug)]
pub struct TextCalibration {
    tokenizer: Option<PathBuf>,
    vocab: usize,
}

/// A line of a `.jsonl` file.
#[derive(Deserialize)]
struct Record {
    text: Option<String>,
    tokens: Option<Vec<u32>>,
}

impl TextCalibration {
    /// `tokenizer` is the path of a `tokenizer.json`; without one only pre-tokenised samples can be used.
    pub fn new(tokenizer: Option<PathBuf>, vocab: usize) -> Self {
        Self { tokenizer, vocab }
    }

    fn texts(&self, file: Option<&Path>) -> Result<Vec<Record>, PassError> {
        let Some(path) = file else { return Ok(paragraphs(BUILT_IN)) };
        let fail = |problem: String| calibration_error(format!("{}: {problem}", path.display()));
        let size = fs::metadata(path).map_err(|e| fail(format!("can't be read: {e}")))?.len();
        if size > CAP {
            return Err(fail(format!("is {size} bytes long; a few hundred kilobytes of typical text are enough, {CAP} bytes the most")));
        }
        let text = fs::read_to_string(path).map_err(|e| fail(format!("can't be read as UTF-8 text: {e}")))?;
        if path.extension().is_none_or(|e| e != "jsonl") {
            return Ok(paragraphs(&text));
        }
        let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
        lines
            .map(|(i, line)| {
                serde_json::from_str(line).map_err(|e| fail(format!("line {}: {e}; lines are {{\"text\": ...}} or {{\"tokens\": [...]}}", i + 1)))
            })
            .collect()
    }

    fn tokens(&self, record: Record, tokenizer: &mut Option<TextTokenizer>) -> Result<Vec<u32>, PassError> {
        if let Some(tokens) = record.tokens {
            return match tokens.iter().find(|t| **t as usize >= self.vocab) {
                Some(t) => Err(calibration_error(format!("token {t} is outside of the vocabulary of {}", self.vocab))),
                None => Ok(tokens),
            };
        }
        let text = record.text.ok_or_else(|| calibration_error("a line has neither `text` nor `tokens`".into()))?;
        if tokenizer.is_none() {
            let path = self.tokenizer.as_ref().ok_or_else(|| {
                calibration_error(
                    "the checkpoint has no tokenizer.json; put one beside it, or give calibration=FILE.jsonl with lines {\"tokens\": [...]}".into(),
                )
            })?;
            *tokenizer = Some(TextTokenizer::load(path).map_err(|e| calibration_error(e.to_string()))?);
        }
        let Some(tokenizer) = tokenizer else { return Ok(vec![]) };
        tokenizer.encode(&text, true).map_err(|e| calibration_error(e.to_string()))
    }
}

fn calibration_error(problem: String) -> PassError {
    PassError::Calibration { problem }
}

/// Paragraphs joined so that each is long enough to say something.
fn paragraphs(text: &str) -> Vec<Record> {
    let normal = text.replace("\r\n", "\n");
    let parts = normal.split("\n\n").map(str::trim).filter(|p| !p.is_empty());
    parts.map(|p| Record { text: Some(p.to_owned()), tokens: None }).collect()
}

impl Calibration for TextCalibration {
    fn samples(&self, file: Option<&Path>, samples: usize, length: usize) -> Result<Vec<Vec<u32>>, PassError> {
        let mut tokenizer = None;
        let mut found = Vec::new();
        for record in self.texts(file)? {
            let tokens = self.tokens(record, &mut tokenizer)?;
            // Long texts give several samples; a rest of one token predicts nothing.
            found.extend(tokens.chunks(length).filter(|c| c.len() >= 2).map(<[u32]>::to_vec));
            if found.len() >= samples {
                break;
            }
        }
        found.truncate(samples);
        if found.is_empty() {
            let place = file.map_or_else(|| "the built-in text".into(), |f| f.display().to_string());
            return Err(calibration_error(format!("{place} holds no sample of 2 tokens or more; give a file with some text")));
        }
        Ok(found)
    }
}
