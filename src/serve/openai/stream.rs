//! Answers as they come: server-sent events, ended by `[DONE]`.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, SelectAll, select_all, unfold};
use serde_json::Value;

use super::{Answer, Form, Head, Piece, Problem, Usage};
use crate::serve::limits::Deadline;

type Pieces = BoxStream<'static, (usize, Result<Piece, Problem>)>;

/// An answer under way. Its texts end where it is dropped.
pub(super) struct Streamed<F> {
    head: Head,
    form: F,
    texts: SelectAll<Pieces>,
    usage: Usage,
    tells_usage: bool,
    deadline: Deadline,
    /// Parts that are ready; None is the end.
    ready: VecDeque<Option<String>>,
}

impl<F: Form> Streamed<F> {
    pub fn new(
        head: Head,
        form: F,
        answers: Vec<Answer>,
        (usage, tells_usage): (Usage, bool),
        deadline: Deadline,
    ) -> Self {
        let texts = answers
            .into_iter()
            .enumerate()
            .map(|(i, answer)| pieces(i, answer));
        let texts = select_all(texts);
        let mut streamed = Self {
            head,
            form,
            texts,
            usage,
            tells_usage,
            deadline,
            ready: VecDeque::new(),
        };
        for i in 0..streamed.texts.len() {
            if let Some(choice) = streamed.form.first(i) {
                streamed.push(&[choice]);
            }
        }
        streamed
    }

    fn push(&mut self, choices: &[Value]) {
        let mut part = self.head.json(self.form.objects().1, choices);
        if self.tells_usage {
            part["usage"] = Value::Null;
        }
        self.ready.push_back(Some(part.to_string()));
    }

    fn finish(&mut self) {
        if self.tells_usage {
            let mut part = self.head.json(self.form.objects().1, &[]);
            part["usage"] = self.usage.json();
            self.ready.push_back(Some(part.to_string()));
        }
        self.ready.push_back(Some("[DONE]".to_owned()));
        self.ready.push_back(None);
    }

    fn fail(&mut self, problem: &Problem) {
        self.texts.clear();
        self.ready.push_back(Some(problem.json().to_string()));
        self.ready.push_back(None);
    }

    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(part) = self.ready.pop_front() {
                return part;
            }
            match self.deadline.keep(self.texts.next()).await {
                Err(problem) | Ok(Some((_, Err(problem)))) => self.fail(&problem),
                Ok(None) => self.finish(),
                Ok(Some((i, Ok(piece)))) => {
                    self.usage.completion += piece.tokens.len();
                    if let Some(choice) = self.form.piece(i, &piece) {
                        self.push(&[choice]);
                    }
                }
            }
        }
    }
}

fn pieces(i: usize, answer: Answer) -> Pieces {
    let texts = unfold(Some(answer), move |answer| async move {
        let mut answer = answer?;
        match answer.next().await {
            Ok(None) => None,
            Ok(Some(piece)) => Some(((i, Ok(piece)), Some(answer))),
            Err(problem) => Some(((i, Err(problem)), None)),
        }
    });
    texts.boxed()
}

impl<F: Form> IntoResponse for Streamed<F> {
    fn into_response(self) -> Response {
        let events = unfold(self, |mut streamed| async {
            let part = streamed.next().await?;
            let event = Ok::<_, Infallible>(Event::default().data(part));
            Some((event, streamed))
        });
        Sse::new(events)
            .keep_alive(KeepAlive::default())
            .into_response()
    }
}
