//! What requests may ask for, and how long they may take.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::models::TextModel;
use super::problem::Problem;

/// Bounds of every request.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Tokens of a text, prompt apart.
    pub max_tokens: usize,
    /// Pixels of a picture whose size is asked for.
    pub max_pixels: usize,
    /// Bytes of a request.
    pub max_request_bytes: usize,
    /// Time for a whole answer.
    pub timeout: Duration,
}

impl Limits {
    /// How many tokens a text after a prompt of so many may have.
    pub(super) fn length(
        &self,
        model: &TextModel,
        prompt: usize,
        asked: Option<usize>,
    ) -> Result<usize, Problem> {
        let room = model.info.context.saturating_sub(prompt);
        if room == 0 {
            let message = format!(
                "the prompt has {prompt} tokens, the model's context {}: shorten the prompt",
                model.info.context
            );
            return Err(Problem::request(message));
        }
        match asked {
            Some(asked) if asked > self.max_tokens => Err(Problem::field(
                "max_tokens",
                format!(
                    "{asked} tokens are more than this server writes, {} (--max-tokens)",
                    self.max_tokens
                ),
            )),
            Some(asked) => Ok(asked.min(room)),
            None => {
                let own = model.info.config.max_new_tokens.unwrap_or(usize::MAX);
                Ok(own.min(self.max_tokens).min(room))
            }
        }
    }

    /// When an answer that begins now must be whole.
    pub(super) fn deadline(&self) -> Deadline {
        Deadline {
            end: Instant::now() + self.timeout,
            seconds: self.timeout.as_secs(),
        }
    }
}

/// The end of the time for an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    end: Instant,
    seconds: u64,
}

impl Deadline {
    /// What `work` brings, if it does in time.
    pub async fn keep<T>(self, work: impl Future<Output = T>) -> Result<T, Problem> {
        let done = timeout_at(self.end, work).await;
        done.map_err(|_| Problem::timeout(self.seconds))
    }
}
