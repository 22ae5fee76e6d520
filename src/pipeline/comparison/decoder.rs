//! Decoders: what each expects next at every position of a text.

use std::collections::BTreeMap;

use dlc_eval::Array;
use dlc_methods::MethodError;
use dlc_methods::divergence::{Divergence, Position};
use dlc_methods::speculation::{Logits, TokenModel};
use dlc_passes::Progress;
use dlc_runtime::{DecoderOptions, DecoderSession, RuntimeError, SharedWeights};
use rayon::prelude::*;

use super::{Comparison, Outcome, Reading, Runner, Side, step, tokens};
use crate::pipeline::error::PipelineError;
use crate::pipeline::feeds::Feeds;

/// Positions whose logits are in memory at a time.
const POSITIONS: usize = 128;

pub(super) fn compare(
    reference: &Side<'_>,
    other: &Side<'_>,
    reading: &Reading,
    progress: &dyn Progress,
) -> Result<Comparison, PipelineError> {
    let pieces = tokens::pieces(reference, other, reading)?;
    progress.phase("loading the models");
    let (mut a, mut b) = (Reader::open(reference)?, Reader::open(other)?);
    progress.phase("reading text");
    let total = pieces.iter().map(Vec::len).sum();
    let (mut divergence, mut done) = (Divergence::default(), 0);
    for piece in &pieces {
        a.restart();
        b.restart();
        for from in (0..piece.len()).step_by(POSITIONS) {
            step(progress, "tokens", done, total)?;
            let read = &piece[from..piece.len().min(from + POSITIONS)];
            let rows = [a.read(read)?, b.read(read)?];
            divergence.extend(positions(&rows, piece, from)?);
            done += read.len();
        }
    }
    Ok(Comparison {
        inputs: total,
        outcome: Outcome::Distributions(divergence),
    })
}

/// What the rows of both say of the positions of `piece` from `from` on.
fn positions(
    [a, b]: &[Logits<'_>; 2],
    piece: &[u32],
    from: usize,
) -> Result<Vec<Position>, PipelineError> {
    let position = |i: usize| {
        let next = piece.get(from + i + 1).copied();
        Position::of(a.row(i), b.row(i), next, from + i)
    };
    let found: Result<Vec<_>, MethodError> = (0..a.rows().max(b.rows()))
        .into_par_iter()
        .map(position)
        .collect();
    Ok(found.map_err(RuntimeError::from)?)
}

/// A decoder, and the text that it has read so far.
enum Reader<'m> {
    Session(Box<DecoderSession>),
    Evaluator {
        side: &'m Side<'m>,
        /// What was fed last, and what came of it.
        last: Option<(Feeds, BTreeMap<String, Array>)>,
    },
}

impl<'m> Reader<'m> {
    fn open(side: &'m Side<'m>) -> Result<Self, PipelineError> {
        let Some(Runner {
            bundle,
            backend,
            session,
        }) = side.bundle
        else {
            return Ok(Self::Evaluator { side, last: None });
        };
        let weights = SharedWeights::open(bundle, backend)?;
        let options = DecoderOptions {
            session: session.clone(),
            ..DecoderOptions::default()
        };
        let name = &side.graph.name;
        let session = DecoderSession::open(backend, bundle, name, weights.as_ref(), &options)?;
        Ok(Self::Session(Box::new(session)))
    }

    /// Forgets what it has read.
    fn restart(&mut self) {
        match self {
            Self::Session(session) => session.rollback(0),
            Self::Evaluator { last, .. } => *last = None,
        }
    }

    /// Reads on, and says what is expected after each of `tokens`.
    fn read(&mut self, tokens: &[u32]) -> Result<Logits<'_>, PipelineError> {
        match self {
            Self::Session(session) => Ok(session
                .extend(tokens, tokens.len())
                .map_err(RuntimeError::from)?),
            Self::Evaluator { side, last } => {
                let ids: Vec<i64> = tokens.iter().map(|t| i64::from(*t)).collect();
                let feeds = match &*last {
                    Some((before, made)) => before.continued(side.graph, made, &ids),
                    None => Feeds::prefix(side.graph, 1, ids.len(), &ids),
                };
                let arrays = feeds.arrays(side.graph)?;
                let mut made = dlc_eval::run(side.graph, &side.module.weights, &arrays)?;
                let logits = made.remove("logits").and_then(Array::into_f32);
                *last = Some((feeds, made));
                let width = side.module.model.vocab_size;
                Ok(Logits::new(width, logits.unwrap_or_default()))
            }
        }
    }
}
