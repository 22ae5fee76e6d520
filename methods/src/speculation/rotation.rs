//! Which rotation the keys of a cache have, where a model rotates otherwise in a call that reaches
//! further (`LongRoPE`, dynamic NTK): what of a cache may stay for another text, how a text must be
//! read, and how many guesses a call may check.

use super::Reading;

/// What rotations depend on beside positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LengthRotation {
    /// The length trained on, in tokens: calls that end within it rotate alike.
    pub trained: usize,
    /// Whether calls that end beyond it rotate each in its own way (dynamic NTK), or all alike
    /// (`LongRoPE`).
    pub grows: bool,
}

impl LengthRotation {
    /// The same number for two lengths at which calls end that rotate alike.
    fn class(self, length: usize) -> usize {
        if self.grows {
            length.max(self.trained)
        } else {
            usize::from(length > self.trained)
        }
    }
}

/// The rotations of one cache's keys.
#[derive(Debug, Clone, Default)]
pub struct KeyRotations {
    rule: Option<LengthRotation>,
    /// Whether calls are told how long the text is that they are part of.
    told: bool,
    /// How long that is.
    expected: usize,
    /// From which token on which [class](LengthRotation::class) holds; tokens before the first are
    /// as they should be.
    changes: Vec<(usize, usize)>,
}

impl KeyRotations {
    /// Those of an empty cache. Without a `rule` lengths change nothing.
    pub fn new(rule: Option<LengthRotation>, told: bool) -> Self {
        Self {
            rule,
            told,
            ..Self::default()
        }
    }

    /// The length of the text that is read, which calls may be told.
    pub fn expected(&self) -> usize {
        self.expected
    }

    /// Sets the length of the text that is read. Returns how many of the first tokens in the cache
    /// are rotated as they would be in it, and how to read the others, `piece` at a time if that is
    /// left open.
    pub fn expect(&mut self, length: usize, piece: usize) -> (usize, Reading) {
        self.expected = length;
        let Some(rule) = self.rule else {
            return (usize::MAX, Reading::Pieces(piece));
        };
        let class = rule.class(length);
        let other = self.changes.iter().find(|&&(_, found)| found != class);
        let reading = if self.told || length <= rule.trained {
            Reading::Pieces(piece)
        } else {
            Reading::Whole
        };
        (other.map_or(usize::MAX, |&(from, _)| from), reading)
    }

    /// Notes a call of the tokens `from..to`.
    pub fn read(&mut self, from: usize, to: usize) {
        if let Some(rule) = self.rule {
            let class = rule.class(self.reach(to));
            if self.changes.last().is_none_or(|&(_, last)| last != class) {
                self.changes.push((from, class));
            }
        }
    }

    /// Notes that tokens from `len` on are forgotten.
    pub fn rollback(&mut self, len: usize) {
        self.changes.retain(|&(from, _)| from < len);
    }

    /// Notes that the first `len` tokens are another model's, which are as they should be.
    pub fn adopt(&mut self, len: usize) {
        self.changes.retain(|&(from, _)| from >= len);
    }

    /// How many of `most` guesses a call may read after the token `end`, the last that is decided,
    /// such that it rotates as it would without them.
    pub fn guesses(&self, end: usize, most: usize) -> usize {
        let Some(rule) = self.rule else {
            return most;
        };
        let reach = self.reach(end);
        if reach <= rule.trained {
            most.min(rule.trained - end)
        } else if rule.grows {
            0
        } else {
            most
        }
    }

    /// How far a call reaches that ends at `to`.
    fn reach(&self, to: usize) -> usize {
        if self.told { to.max(self.expected) } else { to }
    }
}
