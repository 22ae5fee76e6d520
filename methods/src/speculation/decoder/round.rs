//! One round of decoding: proposals that are looked up or from the draft, judged by one pass of the
//! target.
//!
//! How many there are depends on the prefix, on earlier rounds and on earlier texts alone, never on
//! a token drawn in this one.

use std::time::Instant;

use super::super::sampler::{runner_up, top_probability};
use super::super::{Distribution, Logits, TokenModel};
use super::length::{MOST, Plan};
use super::{Continuation, Models, SourceStats, StopReason};
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

impl Proposal {
    fn certain() -> Self {
        Self {
            q: None,
            confidence: 1.0,
            runner_up: None,
        }
    }
}

/// Where a round's proposals came from.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// What the index proposed.
    Lookup,
    /// What the grammar leaves no choice of.
    Forced,
    /// Nothing is guessed.
    Nothing,
    /// The draft, after it read so many tokens and made so many steps.
    Draft { pending: usize, steps: usize },
}

impl Continuation {
    /// Writes one or more tokens with the models, which hold all of the text but its last token
    /// afterwards, or fewer. Says why the text ended, if it did.
    ///
    /// # Errors
    /// [`MethodError::Logits`] for NaN and infinities; [`MethodError::Input`] where the rules leave
    /// no token; and what the models say. What the models hold is then unknown.
    pub fn advance(&mut self, models: &mut Models<'_>) -> Result<Option<StopReason>> {
        let limit = match self.room(models.target.context_length()) {
            Ok(limit) => limit,
            Err(stop) => return Ok(Some(stop)),
        };
        let before = self.sequence.len();
        self.round(models, limit)?;
        let stop = self.settle(before)?;
        self.remember(before);
        models.rollback(self.sequence.len().saturating_sub(1));
        Ok(stop)
    }

    /// The token to read for the next one, where nothing is guessed; or why the text is at its end.
    ///
    /// # Errors
    /// Why a model with this context writes no further token.
    pub fn next_input(&self, context: usize) -> Result<u32, StopReason> {
        self.room(context)?;
        self.sequence.last().copied().ok_or(StopReason::ContextFull)
    }

    /// Writes one token by the target's logits after the text so far. Says whether it ended the
    /// text.
    ///
    /// # Errors
    /// As [`Self::advance`].
    pub fn take(&mut self, row: &[f32]) -> Result<Option<StopReason>> {
        let before = self.sequence.len();
        self.proposals.clear();
        self.decide(&Logits::new(row.len(), row), Source::Nothing)?;
        let stop = self.settle(before)?;
        self.remember(before);
        Ok(stop)
    }

    /// Drafts, verifies, and appends the 1 to `limit` tokens that were decided to the sequence. The
    /// caches then hold more than is decided.
    fn round(&mut self, models: &mut Models<'_>, limit: usize) -> Result<()> {
        let started = Instant::now();
        let (held, decided) = (models.target.len(), self.sequence.len());
        let most = models.target.guesses(decided - held, limit - 1);
        let source = self.propose(models, most)?;
        self.stats.draft_time += started.elapsed();

        let started = Instant::now();
        let unread = &self.sequence[held..];
        let logits = models.target.extend(unread, self.proposals.len() + 1)?;
        self.decide(&logits, source)?;
        self.stats.verify_time += started.elapsed();
        Ok(())
    }

    /// Judges the proposals at the end of the sequence by the target's logits after what is decided
    /// and after each of them, and puts the target's own token where the first one is rejected, or
    /// after all.
    fn decide(&mut self, logits: &Logits<'_>, source: Source) -> Result<()> {
        let proposed = self.proposals.len();
        let decided = self.sequence.len() - proposed;
        let (mut tested, mut instead) = (0, None);
        for i in 0..proposed {
            let guess = self.sequence[decided + i];
            instead = self.judge(logits.row(i), decided + i, i)?;
            let accepted = instead.is_none();
            match source {
                Source::Lookup => self.planner.learn_lookup(&self.guesses[i], accepted),
                Source::Forced | Source::Nothing => {}
                Source::Draft { .. } => {
                    let confidence = self.proposals[i].confidence;
                    self.planner.learn_draft(confidence, accepted);
                }
            }
            tested += 1;
            if !accepted {
                break;
            }
            self.note(logits.row(i), guess);
        }
        let accepted = tested - usize::from(instead.is_some());
        let token = if let Some(token) = instead {
            token
        } else {
            let text = &self.sequence;
            let row = self
                .options
                .process_within(
                    logits.row(proposed),
                    self.prompt,
                    text,
                    self.constraint.as_deref_mut(),
                    &mut self.memory,
                )?
                .ok_or_else(|| nothing_left(text))?;
            let token = self.sampler.propose(row, text.len() - 1)?.0;
            self.stats.ties += usize::from(self.sampler.is_tie(row, token));
            token
        };
        self.note(logits.row(accepted), token);
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
        self.count(source, judged);
        Ok(())
    }

    /// Judges proposal number `i`, which stands at `place`: the token that takes its place, or None
    /// where it may stay.
    fn judge(&mut self, logits: &[f32], place: usize, i: usize) -> Result<Option<u32>> {
        let (text, guess) = (&self.sequence[..place], self.sequence[place]);
        let row = self
            .options
            .process_within(
                logits,
                self.prompt,
                text,
                self.constraint.as_deref_mut(),
                &mut self.memory,
            )?
            .ok_or_else(|| nothing_left(text))?;
        let q = self.proposals[i].q.as_ref();
        let instead = self.sampler.judge(row, text.len() - 1, guess, q)?;
        let token = instead.unwrap_or(guess);
        self.stats.ties += usize::from(self.sampler.is_tie(row, token));
        Ok(instead)
    }

    /// Takes what the text goes on with after `before` tokens into the index.
    fn remember(&mut self, before: usize) {
        if self.options.lookup.is_some() {
            let started = Instant::now();
            self.index.extend(&self.sequence[before..]);
            self.stats.draft_time += started.elapsed();
        }
    }

    fn count(&mut self, source: Source, judged: SourceStats) {
        let stats = &mut self.stats;
        stats.rounds += 1;
        let (counts, pending, steps, leaves) = match source {
            Source::Lookup => (Some(&mut stats.lookup), 0, 0, 0),
            Source::Forced => (Some(&mut stats.forced), 0, 0, 0),
            Source::Nothing => (None, 0, 0, 0),
            Source::Draft { pending, steps } => {
                (Some(&mut stats.draft), pending, steps, judged.drafted)
            }
        };
        if let Some(counts) = counts {
            counts.add(&judged);
        }
        let cost = self.planner.count(pending, steps, judged.drafted);
        stats.cost += cost;
        stats.tree_cost += cost + self.planner.widening(judged.drafted, leaves);
    }

    /// Appends up to `most` proposals to the sequence: looked up or of the draft, whichever should
    /// yield more, looked up if they are equal.
    fn propose(&mut self, models: &mut Models<'_>, most: usize) -> Result<Source> {
        self.proposals.clear();
        self.guesses.clear();
        if self.force(most)? {
            return Ok(Source::Forced);
        }
        if let Some(least) = self.options.lookup {
            self.index.propose(least, most, &mut self.guesses);
        }
        let lookup = self.planner.lookup_plan(&self.guesses);
        let held = models.target.len();
        let (pending, room) = models.draft.as_deref().map_or((0, 0), |draft| {
            let room = draft
                .context_length()
                .saturating_sub(self.sequence.len() - 1);
            (
                self.sequence.len() - draft.len_after_adopting(held),
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
                self.proposals.push(Proposal::certain());
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
        let steps = self.draft(models, plan, tried, room)?;
        Ok(Source::Draft { pending, steps })
    }

    /// Appends up to `most` tokens that the grammar leaves no choice of; false if there are none.
    fn force(&mut self, most: usize) -> Result<bool> {
        let Some(constraint) = &mut self.constraint else {
            return Ok(false);
        };
        let mut forced = Vec::new();
        constraint.forced(&self.sequence[self.prompt..], &mut forced)?;
        for token in forced.into_iter().take(most.min(MOST)) {
            self.sequence.push(token);
            self.proposals.push(Proposal::certain());
        }
        Ok(!self.proposals.is_empty())
    }

    /// Lets the draft propose, and returns how many steps it made. On trial it goes on to the end of
    /// the plan.
    fn draft(
        &mut self,
        models: &mut Models<'_>,
        plan: Plan,
        tried: bool,
        room: usize,
    ) -> Result<usize> {
        let Self {
            planner,
            options,
            sequence,
            proposals,
            sampler,
            prompt,
            memory,
            constraint,
            ..
        } = self;
        let held = models.target.len();
        let draft = models.draft.as_deref_mut();
        let Some(draft) = draft.filter(|_| plan.tokens > 0) else {
            return Ok(0);
        };
        let (mut steps, mut reach) = (0, 1.0);
        let adapts = planner.is_adaptive() && !tried;
        let most = if adapts { MOST.min(room) } else { plan.tokens };
        let asked = planner.is_adaptive() || options.draft_confidence > 0.0;
        draft.adopt(held)?;
        while proposals.len() < most && !options.is_cancelled() {
            // At first the draft lacks the last decided token, and those before it that it didn't
            // propose itself.
            let unread = &sequence[draft.len()..];
            let Some(logits) = read(draft, unread, options.prefill_chunk)? else {
                break;
            };
            steps += 1;
            // A draft that knows no token that may stand here has nothing to propose.
            let constraint = constraint.as_deref_mut();
            let row =
                options.process_within(logits.row(0), *prompt, sequence, constraint, memory)?;
            let Some(row) = row else {
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
