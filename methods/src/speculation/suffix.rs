//! A suffix index with counts: how texts went on after the longest end of this one that stood in
//! them before (Oliaro et al., `SuffixDecoding`, arXiv 2411.04975).
//!
//! The paper's suffix tree is held as a suffix automaton (Blumer et al. 1985): a state for each set
//! of places at which the same strings end, with the number of those places. It finds matches of
//! any length, where hashed n-grams need a table for each length. A token adds at most two states
//! and three edges, 160 bytes all in all, where a tree of contexts takes its depth times as many,
//! and costs O(log n) amortised and a step for each match that ends at it. An automaton can't
//! forget: now and then it is made anew of the texts that stay.
//!
//! A draft without a model: never looks at logits, and knows nothing of costs.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

/// A guessed token is left out where it is less likely than this, all guesses before it counted.
const LEAST_PROBABILITY: f64 = 0.1;
/// Most guesses for each token of the match.
const REACH: usize = 4;

/// What followed what in some texts, and the end of the one that is being written.
///
/// Holds at most so many tokens of earlier texts as it is made for, and the text itself; proposing
/// allocates nothing but room in the list that it is handed.
#[derive(Debug, Clone)]
pub struct SuffixIndex {
    capacity: usize,
    /// Of state 0 the only string is the empty one.
    states: Vec<State>,
    /// Where a token leads, by state and token.
    edges: BTreeMap<(u32, u32), u32>,
    /// The state of the text that is being written.
    last: u32,
    /// The texts without the beginnings that were known, and where each begins.
    tokens: Vec<u32>,
    starts: Vec<usize>,
}

/// Strings that end at the same places: the longest, and its ends down to those of `link`.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// Tokens of the longest.
    len: u32,
    /// The state of the longest end that has other places too.
    link: u32,
    /// Places.
    count: u32,
    /// The latest of them.
    latest: u32,
}

/// The most frequent token after a string, its share, and the state of both together.
struct Likeliest {
    token: u32,
    share: f64,
    state: u32,
}

/// A token that may come next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guess {
    /// The token.
    pub token: u32,
    /// Tokens before it, guesses included, that stood before it in a text.
    pub matched: usize,
    /// In what share of those places it followed.
    pub share: f64,
}

impl Default for SuffixIndex {
    /// An empty index of one text alone.
    fn default() -> Self {
        Self::new(0)
    }
}

impl SuffixIndex {
    /// An empty index that keeps at most `capacity` tokens of earlier texts beside the one that is
    /// being written.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            states: vec![State::default()],
            edges: BTreeMap::new(),
            last: 0,
            tokens: Vec::new(),
            starts: Vec::new(),
        }
    }

    /// Begins a text with `prompt`. What earlier texts have of its beginning isn't counted again: a
    /// conversation that goes on, or the same instructions before each prompt. Forgets the oldest
    /// texts where those before are too long.
    pub fn begin(&mut self, prompt: &[u32]) {
        self.make_room();
        self.last = 0;
        let known = prompt.iter().take_while(|&&token| {
            let known = self.next(self.last, token).is_some();
            if known {
                self.advance(token);
            }
            known
        });
        let known = known.count();
        if self.starts.last() != Some(&self.tokens.len()) {
            self.starts.push(self.tokens.len());
        }
        self.extend(&prompt[known..]);
    }

    /// The text goes on with `tokens`.
    pub fn extend(&mut self, tokens: &[u32]) {
        for &token in tokens {
            self.tokens.push(token);
            self.advance(token);
            self.count();
        }
    }

    /// Replaces `guesses` by how the text may go on, at most `most` tokens: after the longest end of
    /// it, of `least` tokens or more, that stood in a text before, the token that followed most
    /// often, of equal ones that which did so last; and after that token likewise.
    pub fn propose(&self, least: usize, most: usize, guesses: &mut Vec<Guess>) {
        guesses.clear();
        let mut end = (self.last, self.state(self.last).len as usize);
        let (mut most, mut probability) = (most, 1.0);
        while guesses.len() < most {
            let Some((matched, likeliest)) = self.longest(end, least) else {
                return;
            };
            if guesses.is_empty() {
                most = most.min(REACH * matched);
            }
            probability *= likeliest.share;
            if probability < LEAST_PROBABILITY {
                return;
            }
            guesses.push(Guess {
                token: likeliest.token,
                matched,
                share: likeliest.share,
            });
            end = (likeliest.state, matched + 1);
        }
    }

    /// The tokens of the longest end of a string after which something came, at least `least`, and
    /// what came most often. The string is one of a state and of a length.
    fn longest(
        &self,
        (mut state, mut matched): (u32, usize),
        least: usize,
    ) -> Option<(usize, Likeliest)> {
        while matched >= least.max(1) {
            if let Some(likeliest) = self.likeliest(state) {
                return Some((matched, likeliest));
            }
            state = self.state(state).link;
            matched = self.state(state).len as usize;
        }
        None
    }

    fn state(&self, state: u32) -> &State {
        &self.states[state as usize]
    }

    fn next(&self, state: u32, token: u32) -> Option<u32> {
        self.edges.get(&(state, token)).copied()
    }

    /// The states that the state's strings become by one token more.
    fn children(&self, state: u32) -> impl Iterator<Item = (u32, u32)> {
        let edges = self.edges.range((state, 0)..=(state, u32::MAX));
        edges.map(|(&(_, token), &target)| (token, target))
    }

    /// What followed the state's strings most often.
    fn likeliest(&self, state: u32) -> Option<Likeliest> {
        let all: u32 = self
            .children(state)
            .map(|(_, to)| self.state(to).count)
            .sum();
        let often = |&(_, to): &(u32, u32)| (self.state(to).count, self.state(to).latest);
        let (token, state) = self.children(state).max_by_key(often)?;
        Some(Likeliest {
            token,
            state,
            share: f64::from(self.state(state).count) / f64::from(all),
        })
    }

    /// The string of `last`, the longest of that state, becomes longer by `token`.
    fn advance(&mut self, token: u32) {
        let last = self.last;
        if self.next(last, token).is_some() {
            self.last = self.only(last, token);
            return;
        }
        let new = self.add(State {
            len: self.state(last).len + 1,
            ..State::default()
        });
        let mut from = Some(last);
        while let Some(state) = from.filter(|&state| self.next(state, token).is_none()) {
            self.edges.insert((state, token), new);
            from = self.shorter(state);
        }
        if let Some(state) = from {
            self.states[new as usize].link = self.only(state, token);
        }
        self.last = new;
    }

    /// Where `token` leads from `from`, after the strings there that don't end with those of `from`
    /// have got a state of their own.
    fn only(&mut self, from: u32, token: u32) -> u32 {
        let target = self.edges[&(from, token)];
        let len = self.state(from).len + 1;
        if self.state(target).len == len {
            return target;
        }
        let copy = self.add(State {
            len,
            ..*self.state(target)
        });
        let children: Vec<(u32, u32)> = self.children(target).collect();
        let edges = children.into_iter().map(|(token, to)| ((copy, token), to));
        self.edges.extend(edges);
        self.states[target as usize].link = copy;
        let mut from = Some(from);
        while let Some(state) = from.filter(|&state| self.next(state, token) == Some(target)) {
            self.edges.insert((state, token), copy);
            from = self.shorter(state);
        }
        copy
    }

    fn shorter(&self, state: u32) -> Option<u32> {
        (state > 0).then(|| self.state(state).link)
    }

    fn add(&mut self, state: State) -> u32 {
        self.states.push(state);
        self.states.len() as u32 - 1
    }

    /// All ends of the text have one place more.
    fn count(&mut self) {
        let mut state = self.last;
        while state > 0 {
            let found = &mut self.states[state as usize];
            found.count += 1;
            found.latest = self.tokens.len() as u32;
            state = found.link;
        }
    }

    /// Leaves the latest half of what may be kept, if there is more than that.
    fn make_room(&mut self) {
        let fits = self.tokens.len() <= self.capacity
            && self.states.len() <= self.capacity.saturating_mul(2).saturating_add(1)
            && self.edges.len() <= self.capacity.saturating_mul(3);
        if fits {
            return;
        }
        let from = self.tokens.len() - self.tokens.len().min(self.capacity / 2);
        let mut kept = Self::new(self.capacity);
        let ends = self
            .starts
            .iter()
            .copied()
            .skip(1)
            .chain([self.tokens.len()]);
        for (&start, end) in self.starts.iter().zip(ends).filter(|&(_, end)| end > from) {
            kept.last = 0;
            kept.starts.push(kept.tokens.len());
            kept.extend(&self.tokens[start.max(from)..end]);
        }
        *self = kept;
    }
}
