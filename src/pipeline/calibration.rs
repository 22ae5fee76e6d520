//! Calibration samples: text or JSON lines, tokenised with the checkpoint's own tokenizer.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use dlc_files::{InputProblem, read_text};
use dlc_passes::{Calibration, PassError};
use dlc_runtime::TextTokenizer;
use serde::Deserialize;

/// Text that is always at hand: the King James Bible (public domain), Psalms 23 to 24 and 1
/// Corinthians 13, and Lincoln's Gettysburg address.
const BUILT_IN: &str = include_str!("calibration.txt");
const BUILT_IN_NAME: &str = "the built-in text";

/// Largest calibration file.
const CAP: u64 = 256 << 20;

/// Reads calibration files and tokenises them.
#[derive(Debug)]
pub struct TextCalibration {
    tokenizer: Option<PathBuf>,
    vocab: usize,
    /// What is to be said of the files that were read.
    warnings: Mutex<BTreeSet<String>>,
}

/// A line of a `.jsonl` file.
#[derive(Deserialize)]
struct Record {
    text: Option<String>,
    tokens: Option<Vec<u32>>,
}

impl TextCalibration {
    /// `tokenizer` is the path of a `tokenizer.json`; without one only pre-tokenised samples can be
    /// used.
    pub fn new(tokenizer: Option<PathBuf>, vocab: usize) -> Self {
        Self {
            tokenizer,
            vocab,
            warnings: Mutex::default(),
        }
    }

    /// What is to be said of the files that were read so far.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }

    /// Takes note of samples that are less than any choice can rest on.
    fn note_scarce(&self, file: Option<&Path>, wanted: usize, found: &[Vec<u32>]) {
        let [only] = found else { return };
        let n = only.len();
        let (source, way_out) = match file {
            _ if wanted == 1 => ("samples=1 asks for".to_owned(), "ask for more"),
            Some(file) => (
                format!("{} holds", file.display()),
                "give a file with more text",
            ),
            None => return,
        };
        let warning = format!(
            "{source} one sample, of {n} tokens: what passes choose by it is chance; {way_out}"
        );
        self.warnings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(warning);
    }

    fn tokens(
        &self,
        record: Record,
        tokenizer: &mut Option<TextTokenizer>,
    ) -> Result<Vec<u32>, String> {
        if let Some(tokens) = record.tokens {
            return match tokens.iter().find(|t| **t as usize >= self.vocab) {
                Some(t) => Err(format!(
                    "token {t} is outside of the vocabulary of {}",
                    self.vocab
                )),
                None => Ok(tokens),
            };
        }
        let text = record
            .text
            .ok_or_else(|| format!("has neither `text` nor `tokens`; {LINES}"))?;
        if tokenizer.is_none() {
            let path = self.tokenizer.as_ref().ok_or(
                "is text, but the checkpoint has no tokenizer.json; put one beside it, or give calibration=FILE.jsonl with lines {\"tokens\": [...]}",
            )?;
            *tokenizer = Some(TextTokenizer::load(path).map_err(|e| e.to_string())?);
        }
        let Some(tokenizer) = tokenizer else {
            return Ok(vec![]);
        };
        tokenizer.encode(&text, true).map_err(|e| e.to_string())
    }
}

const LINES: &str = "lines are {\"text\": ...} or {\"tokens\": [...]}";

fn calibration_error(place: &str, problem: impl Display) -> PassError {
    PassError::Calibration {
        problem: format!("{place}: {problem}"),
    }
}

/// The records of a file (of the built-in text if there is none), each with its place.
fn records(file: Option<&Path>) -> Result<Vec<(String, Record)>, PassError> {
    let Some(path) = file else {
        return Ok(paragraphs(BUILT_IN_NAME, BUILT_IN));
    };
    let name = path.display().to_string();
    let fail = |problem: String| calibration_error(&name, problem);
    let text = read_text(path, CAP).map_err(|e| match e.problem {
        InputProblem::TooLarge(_) => fail(format!(
            "is larger than {CAP} bytes; a few hundred kilobytes of typical text are enough"
        )),
        problem => fail(problem.to_string()),
    })?;
    if path.extension().is_none_or(|e| e != "jsonl") {
        return Ok(paragraphs(&name, &text));
    }
    let record = |(i, line): (usize, &str)| {
        let place = format!("{name}, line {}", i + 1);
        // The parser counts lines from the line that it got.
        let problem = |e: serde_json::Error| {
            format!(
                "{}; {LINES}",
                e.to_string().replace(" at line 1 column", " at column")
            )
        };
        serde_json::from_str(line)
            .map_err(|e| calibration_error(&place, problem(e)))
            .map(|record| (place.clone(), record))
    };
    text.lines()
        .enumerate()
        .filter(|(_, l)| !l.trim().is_empty())
        .map(record)
        .collect()
}

/// What empty lines separate.
fn paragraphs(name: &str, text: &str) -> Vec<(String, Record)> {
    let normal = text.replace("\r\n", "\n");
    let parts = normal
        .split("\n\n")
        .map(str::trim)
        .filter(|p| !p.is_empty());
    parts
        .map(|p| {
            (
                name.to_owned(),
                Record {
                    text: Some(p.to_owned()),
                    tokens: None,
                },
            )
        })
        .collect()
}

impl Calibration for TextCalibration {
    fn samples(
        &self,
        file: Option<&Path>,
        samples: usize,
        length: usize,
    ) -> Result<Vec<Vec<u32>>, PassError> {
        let mut tokenizer = None;
        let mut found = Vec::new();
        for (place, record) in records(file)? {
            let tokens = self
                .tokens(record, &mut tokenizer)
                .map_err(|e| calibration_error(&place, e))?;
            // Long texts give several samples; a rest of one token predicts nothing.
            found.extend(
                tokens
                    .chunks(length)
                    .filter(|c| c.len() >= 2)
                    .map(<[u32]>::to_vec),
            );
            if found.len() >= samples {
                break;
            }
        }
        found.truncate(samples);
        self.note_scarce(file, samples, &found);
        if found.is_empty() {
            let place = file.map_or_else(|| BUILT_IN_NAME.into(), |f| f.display().to_string());
            return Err(calibration_error(
                &place,
                "holds no sample of 2 tokens or more; give a file with some text",
            ));
        }
        Ok(found)
    }

    fn basic_tokens(&self) -> Result<Vec<u32>, PassError> {
        let Some(path) = &self.tokenizer else {
            return Ok(vec![]);
        };
        let tokenizer = TextTokenizer::load(path)
            .map_err(|e| calibration_error(&path.display().to_string(), e))?;
        Ok(tokenizer.basic_tokens())
    }
}
