//! What lookups bring: texts that a model wrote are decoded again by a model that says what stands
//! in them, without a draft. Counts alone; nothing is timed.
//!
//! ```text
//! dlc run BUNDLE --prompts FILE --max-tokens 200 --no-draft --no-lookup --no-generation-config --jsonl > texts.jsonl
//! cargo bench -p dlc-methods --bench lookups -- texts.jsonl
//! ```
#![allow(clippy::print_stdout, missing_docs)]

use std::collections::HashMap;
use std::ops::ControlFlow;

use dlc_methods::speculation::{
    DecodeOptions, Decoder, DraftLength, Logits, Stats, SuffixIndex, TokenModel,
};
use dlc_methods::{MethodError, Result};
use serde::Deserialize;

/// Tokens of earlier texts that are kept.
const HISTORY: usize = 1 << 16;

/// A record of `dlc run --jsonl`.
#[derive(Deserialize)]
struct Record {
    prompt_tokens: Vec<u32>,
    tokens: Vec<u32>,
}

/// Says that a text goes on as it does.
struct Replay {
    vocab: usize,
    text: Vec<u32>,
    read: usize,
}

impl TokenModel for Replay {
    fn vocab_size(&self) -> usize {
        self.vocab
    }

    fn context_length(&self) -> usize {
        usize::MAX
    }

    fn len(&self) -> usize {
        self.read
    }

    fn extend(&mut self, tokens: &[u32], want: usize) -> Result<Logits<'_>> {
        self.read += tokens.len();
        let mut logits = vec![0.0; want * self.vocab];
        for (row, next) in logits
            .chunks_mut(self.vocab)
            .zip(self.read + 1 - want..=self.read)
        {
            row[self.text.get(next).map_or(0, |&token| token as usize)] = 1.0;
        }
        Ok(Logits::new(self.vocab, logits))
    }

    fn rollback(&mut self, len: usize) {
        self.read = self.read.min(len);
    }
}

fn main() -> Result<()> {
    for path in std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
    {
        let records = read(&path)?;
        println!("{path}: {} texts", records.len());
        println!(
            "{:<34} {:>11} {:>14} {:>7} {:>9}",
            "", "tokens/pass", "guesses/pass", "wasted", "predicted"
        );
        let lengths = [
            ("as many as pay", DraftLength::Adaptive),
            ("4", DraftLength::Fixed(4)),
            ("8", DraftLength::Fixed(8)),
        ];
        for (name, draft_length) in lengths {
            for least in [1, 2, 3] {
                for (kind, history) in [("cold", 0), ("warm", HISTORY)] {
                    let options = DecodeOptions {
                        lookup: Some(least),
                        draft_length,
                        ..DecodeOptions::default()
                    };
                    let stats = replay(&records, &options, SuffixIndex::new(history))?;
                    println!(
                        "{:<34} {:>11.3} {:>14.3} {:>6.0}% {:>8.3}x",
                        format!("{name}, after {least} tokens, {kind}"),
                        stats.tokens_per_round(),
                        stats.drafted() as f64 / stats.rounds as f64,
                        100.0 * (1.0 - stats.accepted() as f64 / stats.drafted() as f64),
                        stats.predicted_speedup(),
                    );
                }
            }
        }
    }
    Ok(())
}

/// The texts of a file, their tokens numbered anew.
fn read(path: &str) -> Result<Vec<Record>> {
    let place = |error: &dyn std::fmt::Display| MethodError::Input(format!("{path}: {error}"));
    let text = std::fs::read_to_string(path).map_err(|error| place(&error))?;
    let mut numbers = HashMap::new();
    let mut records = Vec::new();
    for line in text.lines() {
        let mut record: Record = serde_json::from_str(line).map_err(|error| place(&error))?;
        for token in record.prompt_tokens.iter_mut().chain(&mut record.tokens) {
            let next = numbers.len() as u32;
            *token = *numbers.entry(*token).or_insert(next);
        }
        records.push(record);
    }
    Ok(records)
}

/// Decodes the texts one after the other, each with what `history` then has of those before.
fn replay(records: &[Record], options: &DecodeOptions, mut history: SuffixIndex) -> Result<Stats> {
    let all = records
        .iter()
        .flat_map(|record| record.prompt_tokens.iter().chain(&record.tokens));
    let vocab = all.max().map_or(1, |&token| token as usize + 1);
    let mut stats = Stats::default();
    for record in records {
        let mut model = Replay {
            vocab,
            text: [&record.prompt_tokens[..], &record.tokens].concat(),
            read: 0,
        };
        let options = DecodeOptions {
            max_tokens: record.tokens.len(),
            ..options.clone()
        };
        let mut decoder = Decoder::new(&mut model, None, options)?.remembering(history);
        let generation =
            decoder.generate(&record.prompt_tokens, &mut |_| ControlFlow::Continue(()))?;
        assert_eq!(generation.tokens, record.tokens);
        stats.add(&generation.stats);
        history = decoder.into_history();
    }
    Ok(stats)
}
