//! A text as it comes: tokens become text, which ends before stop strings.

use std::sync::Arc;

use dlc_runtime::methods::speculation::{StopReason, TokenLogprobs};
use dlc_runtime::{StopStrings, TextStream, TextTokenizer};

use super::engine::{Event, Events};
use super::problem::Problem;

/// Why a text ended, in OpenAI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finish {
    Stop,
    Length,
}

impl Finish {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// What a text gained.
#[derive(Debug, Default)]
pub(super) struct Piece {
    /// Certain text; it may be empty while characters or stop strings are incomplete.
    pub text: String,
    pub tokens: Vec<(u32, Option<TokenLogprobs>)>,
    /// Set in the last piece.
    pub finish: Option<Finish>,
}

/// A text under way, as it is read.
#[derive(Debug)]
pub(super) struct Answer {
    events: Events,
    /// None once the text is at its end.
    stream: Option<TextStream<Arc<TextTokenizer>>>,
    stops: StopStrings,
}

impl Answer {
    pub fn new(events: Events, tokenizer: &Arc<TextTokenizer>, stops: &[String]) -> Self {
        Self {
            events,
            stream: Some(TextStream::new(Arc::clone(tokenizer))),
            stops: StopStrings::new(stops),
        }
    }

    /// What the text gains next; None at its end.
    pub async fn next(&mut self) -> Result<Option<Piece>, Problem> {
        if self.stream.is_none() {
            return Ok(None);
        }
        match self.events.next().await {
            Some(Event::Tokens(tokens, said)) => self.take(&tokens, said).map(Some),
            Some(Event::Ended(generation)) => {
                let finish = match generation.stop {
                    StopReason::StopToken(_) | StopReason::Complete => Finish::Stop,
                    _ => Finish::Length,
                };
                self.finish(Piece::default(), finish).map(Some)
            }
            Some(Event::Failed(problem)) => Err(problem),
            None => Err(Problem::failed("the model's thread has ended")),
        }
    }

    fn take(&mut self, tokens: &[u32], said: Vec<TokenLogprobs>) -> Result<Piece, Problem> {
        let mut piece = Piece::default();
        let mut said = said.into_iter();
        for &token in tokens {
            let Some(stream) = &mut self.stream else {
                break;
            };
            let text = stream.push(&[token]).map_err(|error| Problem::of(&error))?;
            piece.text += &self.stops.push(&text);
            piece.tokens.push((token, said.next()));
            if self.stops.found() {
                self.end();
                piece.finish = Some(Finish::Stop);
            }
        }
        Ok(piece)
    }

    /// The last piece, with what was held back.
    fn finish(&mut self, mut piece: Piece, finish: Finish) -> Result<Piece, Problem> {
        piece.finish = Some(finish);
        if let Some(stream) = self.stream.take() {
            let rest = stream.finish().map_err(|error| Problem::of(&error))?;
            piece.text += &self.stops.push(&rest);
        }
        if self.stops.found() {
            piece.finish = Some(Finish::Stop);
        } else {
            piece.text += &std::mem::take(&mut self.stops).finish();
        }
        Ok(piece)
    }

    /// The model needn't go on.
    fn end(&mut self) {
        self.stream = None;
        self.events.enough();
    }
}
