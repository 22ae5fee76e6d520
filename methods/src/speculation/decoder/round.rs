//! One round of decoding: proposals that are looked up or from the draft, judged by one pass of the
//! target.
//!
//! How many there are depends on the prefix, on earlier rounds and on earlier texts alone, never on
//! a token drawn in this one.

use std::borrow::Cow;
use std::time::Instant;

use super::super::sampler::{is_runner_up, top_probability};
use super::super::{Distribution, Logits, TokenModel};
use super::length::{MOST, Plan};
use super::{Decoder, History, SourceStats, Stats, is_set};
use crate::{MethodError, Result};

/// A guessed token.
#[derive(Debug)]
struct Proposal {
    token: u32,
    /// What it was drawn from; None if it was certain.
    q: Option<Distribution>,
    /// The draft's probability of its most likely token.
    confidence: f32,
    /// What a draft that isn't sampled said of all tokens.
    logits: Option<Logits>,
}

/// Where a round's proposals came from.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// What the index proposed.
    Lookup,
    /// The draft, after it read so many tokens and made so many steps.
    Draft { pending: usize, steps: usize },
}

impl Decoder<'_> {
    /// Drafts, verifies, and returns the 1 to `limit` tokens that were decided. The caches then
    /// hold more than is decided.
    pub(super) fn round(&mut self, limit: usize, stats: &mut Stats) -> Result<Vec<u32>> {
        let started = Instant::now();
        let pending = self.sequence.len() - self.target.len();
        let (source, proposals) = self.propose(self.target.guesses(pending, limit - 1))?;
        stats.draft_time += started.elapsed();

        let started = Instant::now();
        let position = self.sequence.len() - 1;
        let mut tokens = self.sequence[self.target.len()..].to_vec();
        tokens.extend(proposals.iter().map(|proposal| proposal.token));
        let logits = self.target.extend(&tokens, proposals.len() + 1)?;

        let mut history = History::new(&self.options, self.prompt, &self.sequence);
        let mut decided = Vec::with_capacity(proposals.len() + 1);
        let (mut rejected, mut runner_up) = (false, false);
        for (i, proposal) in proposals.iter().enumerate() {
            let row = history
                .process(logits.row(i))
                .ok_or_else(|| nothing_left(position + i))?;
            let instead =
                self.sampler
                    .judge(&row, position + i, proposal.token, proposal.q.as_ref())?;
            history.push(proposal.token);
            rejected = instead.is_some();
            match source {
                Source::Lookup => self.planner.learn_lookup(&self.guesses[i], !rejected),
                Source::Draft { .. } => self.planner.learn_draft(proposal.confidence, !rejected),
            }
            decided.push(instead.unwrap_or(proposal.token));
            if let Some(token) = instead {
                runner_up = proposal
                    .logits
                    .as_ref()
                    .is_some_and(|logits| is_runner_up(logits.row(0), token));
                break;
            }
        }
        let tested = decided.len();
        if !rejected {
            let position = position + proposals.len();
            let row = history
                .process(logits.row(proposals.len()))
                .ok_or_else(|| nothing_left(position))?;
            decided.push(self.sampler.propose(&row, position)?.0);
        }
        stats.verify_time += started.elapsed();
        let judged = SourceStats {
            rounds: usize::from(!proposals.is_empty()),
            drafted: proposals.len(),
            tested,
            accepted: tested - usize::from(rejected),
            runner_up: usize::from(runner_up),
        };
        self.count(source, judged, stats);
        Ok(decided)
    }

    fn count(&mut self, source: Source, judged: SourceStats, stats: &mut Stats) {
        stats.rounds += 1;
        let (counts, pending, steps, leaves) = match source {
            Source::Lookup => (&mut stats.lookup, 0, 0, 0),
            Source::Draft { pending, steps } => (&mut stats.draft, pending, steps, judged.drafted),
        };
        counts.add(&judged);
        let cost = self.planner.count(pending, steps, judged.drafted);
        stats.cost += cost;
        stats.tree_cost += cost + self.planner.widening(judged.drafted, leaves);
    }

    /// Up to `most` proposals: looked up or of the draft, whichever should yield more, looked up if
    /// they are equal.
    fn propose(&mut self, most: usize) -> Result<(Source, Vec<Proposal>)> {
        self.guesses.clear();
        if let Some(least) = self.options.lookup {
            self.index.propose(least, most, &mut self.guesses);
        }
        let lookup = self.planner.lookup_plan(&self.guesses);
        let (pending, room) = self.draft.as_deref().map_or((0, 0), |draft| {
            let room = draft
                .context_length()
                .saturating_sub(self.sequence.len() - 1);
            (
                self.sequence.len() - draft.len_after_adopting(self.target.len()),
                room.min(most),
            )
        });
        let drafting = self.planner.draft_plan(pending, room);
        let tokens = match lookup.tokens {
            0 if drafting.tokens == 0 && !self.guesses.is_empty() => self.planner.try_lookup(),
            tokens if lookup.pace >= drafting.pace => tokens,
            _ => 0,
        };
        if tokens > 0 {
            let certain = self.guesses[..tokens].iter().map(|guess| Proposal {
                token: guess.token,
                q: None,
                confidence: 1.0,
                logits: None,
            });
            return Ok((Source::Lookup, certain.collect()));
        }
        let (plan, tried) = match drafting.tokens {
            0 => (
                Plan {
                    tokens: self.planner.try_draft(pending, room),
                    pace: 0.0,
                },
                true,
            ),
            _ => (drafting, false),
        };
        self.draft(plan, tried, pending, room)
    }

    /// Lets the draft propose. On trial it goes on to the end of the plan.
    fn draft(
        &mut self,
        plan: Plan,
        tried: bool,
        pending: usize,
        room: usize,
    ) -> Result<(Source, Vec<Proposal>)> {
        let Self {
            target,
            draft,
            planner,
            options,
            sequence,
            sampler,
            prompt,
            ..
        } = self;
        let (mut proposals, mut steps, mut reach) = (Vec::new(), 0, 1.0);
        let Some(draft) = draft.as_deref_mut().filter(|_| plan.tokens > 0) else {
            return Ok((
                Source::Draft {
                    pending: 0,
                    steps: 0,
                },
                proposals,
            ));
        };
        let adapts = planner.is_adaptive() && !tried;
        let most = if adapts { MOST.min(room) } else { plan.tokens };
        let asked = planner.is_adaptive() || options.draft_confidence > 0.0;
        draft.adopt(target.len())?;
        // At first the draft lacks the last decided token, and those before it that it didn't
        // propose itself.
        let mut unread = sequence[draft.len()..].to_vec();
        let mut history = History::new(options, *prompt, sequence);
        while proposals.len() < most && !is_set(options.cancel.as_deref()) {
            let Some(logits) = read(draft, &unread, options.prefill_chunk)? else {
                break;
            };
            let position = draft.len() - 1;
            steps += 1;
            // A draft that knows no token that may stand here has nothing to propose.
            let Some(row) = history.process(logits.row(0)) else {
                break;
            };
            let confidence = if asked {
                top_probability(&row, position)?
            } else {
                1.0
            };
            let (worthwhile, further) = if adapts {
                planner.go_on(plan, proposals.len(), confidence, &mut reach)
            } else {
                (true, true)
            };
            if !worthwhile || confidence < options.draft_confidence {
                break;
            }
            let (token, q) = sampler.propose(&row, position)?;
            let row = if let Cow::Owned(row) = row {
                Some(row)
            } else {
                None
            };
            let logits = q
                .is_none()
                .then(|| row.map_or(logits, |row| Logits::new(row.len(), row)));
            history.push(token);
            proposals.push(Proposal {
                token,
                q,
                confidence,
                logits,
            });
            if !further {
                break;
            }
            unread = vec![token];
        }
        Ok((Source::Draft { pending, steps }, proposals))
    }
}

fn nothing_left(position: usize) -> MethodError {
    MethodError::Input(format!(
        "the rules for choosing tokens leave none at position {position}: every one is suppressed, banned or a repetition; relax them"
    ))
}

/// Reads `tokens`, some at a time, and returns the logits after the last; None without tokens.
fn read(model: &mut dyn TokenModel, tokens: &[u32], chunk: usize) -> Result<Option<Logits>> {
    let chunks = tokens.chunks(chunk.max(1));
    let last = chunks.len().saturating_sub(1);
    let mut logits = None;
    for (i, chunk) in chunks.enumerate() {
        logits = Some(model.extend(chunk, usize::from(i == last))?);
    }
    Ok(logits)
}
