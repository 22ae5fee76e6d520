//! `dlc run --chat`: a conversation on stdin, line by line.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::SystemTime;

use dlc_methods::speculation::{DecodeOptions, Decoder, SuffixIndex, TokenModel};
use dlc_runtime::{ChatMessage, ChatTemplate, TextTokenizer};

use super::decoder;
use crate::cli::drafting::HISTORY;
use crate::cli::exit::INTERRUPTED;
use crate::cli::failure::Result;
use crate::cli::input::{Line, line};
use crate::cli::models::Models;
use crate::cli::output::note;
use crate::cli::phases;
use crate::cli::records::{RecordArgs, Records};
use crate::cli::signals::{converses, resume, set_idle};
use crate::cli::write::{Ending, Writer, Written};

/// Of the context, the share that an answer should find free.
const ANSWER_SHARE: usize = 4;

/// A conversation and what answers in it.
struct Conversation<'a> {
    template: &'a ChatTemplate,
    tokenizer: &'a TextTokenizer,
    messages: Vec<ChatMessage>,
    /// Tokens that fit, turns and answer together.
    context: usize,
    /// Tokens kept free for an answer.
    room: usize,
}

/// Reads lines from stdin until its end, and answers each.
pub(super) fn converse(
    models: &mut Models,
    template: &ChatTemplate,
    options: DecodeOptions,
    stops: &[String],
    system: Option<&str>,
    records: RecordArgs,
) -> Result<ExitCode> {
    let tokenizer = models.tokenizer.clone();
    let writer = Writer {
        tokenizer: &tokenizer,
        stops,
        shows: records.are_for_people(),
    };
    let mut records = Records::new(records);
    let context = models
        .target
        .context_length()
        .min(options.max_length.unwrap_or(usize::MAX));
    let room = options.max_tokens.min(context / ANSWER_SHARE).max(1);
    let messages = system
        .into_iter()
        .map(|text| ChatMessage::new("system", text))
        .collect();
    let mut conversation = Conversation {
        template,
        tokenizer: &tokenizer,
        messages,
        context,
        room,
    };
    // One decoder for the whole conversation: what its caches hold of earlier turns isn't read
    // again, and turns that left the context are looked up in all the same.
    let mut decoder = decoder(models, options)?.remembering(SuffixIndex::new(HISTORY));
    phases::pause();
    if io::stdin().is_terminal() {
        note("say something; Ctrl-D ends, Ctrl-C stops an answer")?;
    }
    converses(true);
    while let Some(said) = listen()? {
        if let Some(written) = conversation.answer(&writer, &mut decoder, &said, &mut records)? {
            remark(&written)?;
            if written.ending == Ending::Interrupted && !resume() {
                records.finish()?;
                return Ok(INTERRUPTED.into());
            }
        }
    }
    records.finish()?;
    Ok(ExitCode::SUCCESS)
}

/// The next line that says something; None at the end. Meanwhile Ctrl-C ends the program.
fn listen() -> Result<Option<String>> {
    let mut stdin = io::stdin().lock();
    let typed = stdin.is_terminal();
    loop {
        if typed {
            prompt_mark("> ")?;
        }
        set_idle(true);
        let next = line(&mut stdin);
        set_idle(false);
        match next? {
            Line::Text(text) if text.trim().is_empty() => {}
            Line::Text(text) => return Ok(Some(text)),
            Line::TooLong => note("that line is too long, and was passed over")?,
            Line::NotText => note("that line isn't UTF-8 text, and was passed over")?,
            Line::End => {
                if typed {
                    prompt_mark("\n")?;
                }
                return Ok(None);
            }
        }
    }
}

fn prompt_mark(mark: &str) -> io::Result<()> {
    let mut stderr = io::stderr().lock();
    stderr.write_all(mark.as_bytes())?;
    stderr.flush()
}

/// Says so if an answer isn't whole.
fn remark(written: &Written) -> Result<()> {
    let n = written.generation.tokens.len();
    match written.ending {
        Ending::EndOfText(_) | Ending::Complete | Ending::StopString => Ok(()),
        Ending::MaxTokens => note(&format!("(cut at {n} tokens; --max-tokens sets how many)")),
        Ending::ContextFull => note(&format!("(cut at {n} tokens; the context is full)")),
        Ending::Interrupted => note("(stopped)"),
    }
}

impl Conversation<'_> {
    /// Answers what was said; None if it is too long to be.
    fn answer(
        &mut self,
        writer: &Writer<'_>,
        decoder: &mut Decoder<'_>,
        said: &str,
        records: &mut Records,
    ) -> Result<Option<Written>> {
        let before = self.messages.clone();
        self.messages.push(ChatMessage::new("user", said));
        let Some(tokens) = self.tokens()? else {
            self.messages = before;
            return Ok(None);
        };
        let written = writer.write(decoder, "", &tokens)?;
        records.text("\n")?;
        records.push(written.json(said, &tokens))?;
        if written.generation.tokens.is_empty() {
            self.messages.pop();
        } else {
            self.messages
                .push(ChatMessage::new("assistant", &written.text));
        }
        Ok(Some(written))
    }

    /// The tokens of the conversation, after the oldest turns left it if they don't fit; None if
    /// the last message alone doesn't.
    fn tokens(&mut self) -> Result<Option<Vec<u32>>> {
        let mut forgotten = 0;
        let tokens = loop {
            let text = self
                .template
                .render(&self.messages, true, SystemTime::now())?;
            let tokens = self.tokenizer.encode(&text, false)?;
            if tokens.len().saturating_add(self.room) <= self.context || !self.forget() {
                break tokens;
            }
            forgotten += 1;
        };
        if tokens.len() >= self.context {
            note(&format!(
                "(that makes {} tokens, and the model takes {}: say less)",
                tokens.len(),
                self.context
            ))?;
            return Ok(None);
        }
        if forgotten > 0 {
            let turns = if forgotten == 1 {
                "oldest turn was".to_owned()
            } else {
                format!("oldest {forgotten} turns were")
            };
            note(&format!("(the context is full: the {turns} dropped)"))?;
        }
        Ok(Some(tokens))
    }

    /// Takes the oldest turn out, its answer included. False if there is none but the last message.
    fn forget(&mut self) -> bool {
        let is_said = |message: &ChatMessage| message.role == "user";
        let Some(oldest) = self.messages.iter().position(is_said) else {
            return false;
        };
        let Some(next) = self.messages[oldest + 1..].iter().position(is_said) else {
            return false;
        };
        self.messages.drain(oldest..=oldest + next);
        true
    }
}
