//! Writes texts: shows them as they come, ends them at stop strings, and says why they ended.

use std::ops::ControlFlow;

use dlc_methods::speculation::{Decoder, Generation, SourceStats, StopReason, TokenLogprobs};
use dlc_runtime::{StopStrings, TextTokenizer};
use serde_json::{Value, json};

use super::failure::{Failure, Result};
use super::{output, phases};

/// Shows texts while they are written.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    pub tokenizer: &'a TextTokenizer,
    /// Texts end before these.
    pub stops: &'a [String],
    /// Whether text goes to stdout as it comes.
    pub shows: bool,
}

/// A finished text.
#[derive(Debug)]
pub(super) struct Written {
    pub text: String,
    /// Its tokens are those up to the one that completed a stop string.
    pub generation: Generation,
    pub ending: Ending,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    EndOfText(u32),
    Complete,
    MaxTokens,
    ContextFull,
    StopString,
    Interrupted,
}

impl Ending {
    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::EndOfText(_) => "end of text",
            Self::Complete => "complete by the grammar",
            Self::MaxTokens => "stopped at max tokens",
            Self::ContextFull => "context is full",
            Self::StopString => "stop string",
            Self::Interrupted => "interrupted",
        }
    }

    /// For machines.
    pub fn name(self) -> String {
        match self {
            Self::EndOfText(token) => format!("stop token {token}"),
            Self::Complete => "grammar complete".into(),
            Self::MaxTokens => "max tokens".into(),
            Self::ContextFull => "context full".into(),
            Self::StopString => "stop string".into(),
            Self::Interrupted => "interrupted".into(),
        }
    }
}

const READING: &str = "reading the prompt";

/// Shows how much of a prompt is read; for
/// [`DecodeOptions::on_prompt`](dlc_methods::speculation::DecodeOptions::on_prompt).
pub(super) fn show_reading(done: usize, total: usize) {
    phases::step(READING, done as u64, total as u64);
}

impl Writer<'_> {
    /// Continues `tokens`, showing `before` and then text as it comes.
    pub fn write(
        &self,
        decoder: &mut Decoder<'_>,
        before: &str,
        tokens: &[u32],
    ) -> Result<Written> {
        let (mut stream, mut stops) = (self.tokenizer.stream(), StopStrings::new(self.stops));
        let (mut text, mut taken) = (String::new(), 0);
        // Shown with the first tokens, so that nothing is if the options or the prompt are refused.
        let mut before = Some(before);
        let mut failure = None;
        phases::begin(READING);
        let mut take = |token: u32| {
            if taken == 0 {
                if self.shows {
                    phases::pause();
                } else {
                    phases::begin("writing text");
                }
            }
            taken += 1;
            let piece = stops.push(&stream.push(&[token])?);
            self.show(before.take().unwrap_or_default())?;
            self.show(&piece)?;
            text.push_str(&piece);
            Ok::<bool, Failure>(stops.found())
        };
        let mut generation = decoder.generate(tokens, &mut |new| {
            for &token in new {
                match take(token) {
                    Ok(false) => {}
                    Ok(true) => return ControlFlow::Break(()),
                    Err(error) => {
                        failure = Some(error);
                        return ControlFlow::Break(());
                    }
                }
            }
            ControlFlow::Continue(())
        })?;
        phases::pause();
        if let Some(error) = failure {
            return Err(error);
        }
        generation.tokens.truncate(taken);
        generation.logprobs.truncate(taken);
        generation.stats.tokens = taken;
        let mut rest = if stops.found() {
            String::new()
        } else {
            stops.push(&stream.finish()?)
        };
        let ending = if stops.found() {
            Ending::StopString
        } else {
            ending(generation.stop)
        };
        rest += &stops.finish();
        self.show(before.unwrap_or_default())?;
        self.show(&rest)?;
        Ok(Written {
            text: text + &rest,
            generation,
            ending,
        })
    }

    fn show(&self, piece: &str) -> Result<()> {
        if self.shows {
            output::piece(piece)
        } else {
            Ok(())
        }
    }
}

fn ending(stop: StopReason) -> Ending {
    match stop {
        StopReason::StopToken(token) => Ending::EndOfText(token),
        StopReason::Complete => Ending::Complete,
        StopReason::MaxTokens => Ending::MaxTokens,
        StopReason::ContextFull => Ending::ContextFull,
        StopReason::Caller | StopReason::Interrupted => Ending::Interrupted,
    }
}

impl Written {
    /// Speed, guesses and the reason for the end, in a line.
    pub fn summary(&self) -> String {
        let stats = &self.generation.stats;
        let s = if stats.tokens == 1 { "" } else { "s" };
        let mut line = format!(
            "{} token{s}, {:.1} tokens/s",
            stats.tokens,
            stats.tokens_per_second()
        );
        for (source, counts) in [
            ("draft", stats.draft),
            ("looked-up", stats.lookup),
            ("forced", stats.forced),
        ] {
            if counts.drafted > 0 {
                line += &format!(
                    ", {:.0}% of {} judged {source} tokens accepted",
                    100.0 * counts.acceptance(),
                    counts.tested
                );
            }
        }
        if stats.drafted() > 0 {
            line += &format!(", {:.2} tokens a round", stats.tokens_per_round());
        }
        format!("{line}; {}", self.ending.describe())
    }

    /// The record of a text.
    pub fn json(&self, prompt: &str, prompt_tokens: &[u32]) -> Value {
        let Generation {
            stats,
            tokens,
            logprobs,
            ..
        } = &self.generation;
        let mut record = json!({
            "prompt": prompt,
            "prompt_tokens": prompt_tokens,
            "tokens": tokens,
            "text": self.text,
            "stop": self.ending.name(),
            "stats": {
                "rounds": stats.rounds, "drafted": stats.drafted(), "accepted": stats.accepted(), "acceptance": stats.acceptance(),
                "draft": sourced(&stats.draft), "lookup": sourced(&stats.lookup), "forced": sourced(&stats.forced),
                "tokens_per_round": stats.tokens_per_round(), "tokens_per_second": stats.tokens_per_second(),
                "prompt_seconds": stats.prefill_time.as_secs_f64(),
            },
        });
        if !logprobs.is_empty() {
            record["logprobs"] = tokens.iter().zip(logprobs).map(said).collect();
        }
        record
    }
}

/// What the model said of a token.
fn said((token, said): (&u32, &TokenLogprobs)) -> Value {
    let entry = |token: u32, logprob: f32| json!({"token": token, "logprob": TokenLogprobs::finite(logprob)});
    let mut value = entry(*token, said.logprob);
    let top = said.top.iter();
    value["top"] = top.map(|&(token, logprob)| entry(token, logprob)).collect();
    value
}

/// The counts of one source of proposals.
pub(super) fn sourced(counts: &SourceStats) -> Value {
    json!({
        "rounds": counts.rounds, "drafted": counts.drafted, "tested": counts.tested, "accepted": counts.accepted, "runner_up": counts.runner_up,
    })
}
