//! One round of decoding: proposals that are looked up or from the draft, judged by one pass of the
//! target.
//!
//! How many there are depends on the prefix, on earlier rounds and on earlier texts alone, never on
//! a token drawn in this one.

use std::time::Instant;

use super::super::sampler::{runner_up, top_probability};
use super::super::{Distribution, Logits, TokenModel};
use super::length::{MOST, Plan};
use super::{Decoder, SourceStats, Stats, is_set};
use crate::{MethodError, Result};

/// What is known of a guessed token, which stands in the sequence meanwhile.
#[derive(Debug)]
pub(super) struct Proposal {
    /// What it was drawn from; None if it was certain.
    q: Option<Distribution>,
    /// The draft's probability of its most likely token.
    confidence: f32,
    /// The second choice of a draft that isn't sampled.
    runner_up: Option<u32>,
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
    /// Drafts, verifies, and appends the 1 to `limit` tokens that were decided to the sequence. The
    /// caches then hold more than is decided.
    pub(super) fn round(&mut self, limit: usize, stats: &mut Stats) -> Result<()> {
        let started = Instant::now();
        let (held, decided) = (self.target.len(), self.sequence.len());
        let most = self.target.guesses(decided - held, limit - 1);
        let source = self.propose(most)?;
        stats.draft_time += started.elapsed();

        let started = Instant::now();
        let proposed = self.proposals.len();
        let logits = self.target.extend(&self.sequence[held..], proposed + 1)?;
        let (mut tested, mut instead) = (0, None);
        for (i, proposal) in self.proposals.iter().enumerate() {
            let (text, guess) = (&self.sequence[..decided + i], self.sequence[decided + i]);
            let row = self
                .options
                .process(logits.row(i), self.prompt, text, &mut self.memory)
                .ok_or_else(|| nothing_left(text))?;
            let position = text.len() - 1;
            instead = self
                .sampler
                .judge(row, position, guess, proposal.q.as_ref())?;
            let accepted = instead.is_none();
            match source {
                Source::Lookup => self.planner.learn_lookup(&self.guesses[i], accepted),
                Source::Draft { .. } => self.planner.learn_draft(proposal.confidence, accepted),
            }
            tested += 1;
            if !accepted {
                break;
            }
        }
        let rejected = instead.is_some();
        let token = if let Some(token) = instead {
            token
        } else {
            let text = &self.sequence;
            let row = self
                .options
                .process(logits.row(proposed), self.prompt, text, &mut self.memory)
                .ok_or_else(|| nothing_left(text))?;
            self.sampler.propose(row, text.len() - 1)?.0
        };
        stats.verify_time += started.elapsed();
        let accepted = tested - usize::from(rejected);
        let missed = self.proposals.get(accepted);
        let judged = SourceStats {
            rounds: usize::from(proposed > 0),
            drafted: proposed,
            tested,
            accepted,
            runner_up: usize::from(missed.is_some_and(|guess| guess.runner_up == Some(token))),
        };
        self.sequence.truncate(decided + accepted);
        self.sequence.push(token);
        self.count(source, judged, stats);
        Ok(())
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

    /// Appends up to `most` proposals to the sequence: looked up or of the draft, whichever should
    /// yield more, looked up if they are equal.
    fn propose(&mut self, most: usize) -> Result<Source> {
        self.proposals.clear();
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
            for guess in &self.guesses[..tokens] {
                self.sequence.push(guess.token);
                self.proposals.push(Proposal {
                    q: None,
                    confidence: 1.0,
                    runner_up: None,
                });
            }
            return Ok(Source::Lookup);
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
        let steps = self.draft(plan, tried, room)?;
        Ok(Source::Draft { pending, steps })
    }

    /// Lets the draft propose, and returns how many steps it made. On trial it goes on to the end of
    /// the plan.
    fn draft(&mut self, plan: Plan, tried: bool, room: usize) -> Result<usize> {
        let Self {
            target,
            draft,
            planner,
            options,
            sequence,
            proposals,
            sampler,
            prompt,
            memory,
            ..
        } = self;
        let Some(draft) = draft.as_deref_mut().filter(|_| plan.tokens > 0) else {
            return Ok(0);
        };
        let (mut steps, mut reach) = (0, 1.0);
        let adapts = planner.is_adaptive() && !tried;
        let most = if adapts { MOST.min(room) } else { plan.tokens };
        let asked = planner.is_adaptive() || options.draft_confidence > 0.0;
        draft.adopt(target.len())?;
        while proposals.len() < most && !is_set(options.cancel.as_deref()) {
            // At first the draft lacks the last decided token, and those before it that it didn't
            // propose itself.
            let unread = &sequence[draft.len()..];
            let Some(logits) = read(draft, unread, options.prefill_chunk)? else {
                break;
            };
            steps += 1;
            // A draft that knows no token that may stand here has nothing to propose.
            let Some(row) = options.process(logits.row(0), *prompt, sequence, memory) else {
                break;
            };
            let position = sequence.len() - 1;
            let confidence = if asked {
                top_probability(row, position)?
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
            let (token, q) = sampler.propose(row, position)?;
            let runner_up = if q.is_none() {
                runner_up(row, token)
            } else {
                None
            };
            sequence.push(token);
            proposals.push(Proposal {
                q,
                confidence,
                runner_up,
            });
            if !further {
                break;
            }
        }
        Ok(steps)
    }
}

fn nothing_left(text: &[u32]) -> MethodError {
    let position = text.len().saturating_sub(1);
    MethodError::Input(format!(
        "the rules for choosing tokens leave none at position {position}: every one is suppressed, banned or a repetition; relax them"
    ))
}

/// Reads `tokens`, some at a time, and returns the logits after the last; None without tokens.
fn read<'m>(
    model: &'m mut dyn TokenModel,
    tokens: &[u32],
    chunk: usize,
) -> Result<Option<Logits<'m>>> {
    let mut chunks = tokens.chunks(chunk.max(1));
    let Some(last) = chunks.next_back() else {
        return Ok(None);
    };
    for chunk in chunks {
        model.extend(chunk, 0)?;
    }
    model.extend(last, 1).map(Some)
}
