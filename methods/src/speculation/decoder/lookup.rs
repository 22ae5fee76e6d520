//! Prompt lookup: what followed the last tokens where they stood before in prompt and output
//! (Saxena, *Prompt Lookup Decoding*, 2023).
//!
//! A draft without a model. The index grows with the text and takes back what is forgotten; it
//! holds a constant number of bytes for each token. Never looks at logits.

use std::collections::HashMap;

/// Earlier places that are compared for one question.
const CANDIDATES: usize = 16;
/// Tokens that a match is followed backwards.
const LONGEST: usize = 32;

/// Where the n-grams of a growing sequence stand.
#[derive(Debug)]
pub(super) struct NgramIndex {
    n: usize,
    /// The latest n-gram of each hash, as its number in `grams`.
    latest: HashMap<u64, usize>,
    /// By position: hash, and the number of the n-gram before it with the same hash.
    grams: Vec<(u64, Option<usize>)>,
}

/// An earlier place at which the last tokens stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Match {
    /// Index of the token that followed there.
    pub next: usize,
    /// Tokens that agree before it, n or more.
    pub length: usize,
}

impl NgramIndex {
    /// An empty index of n-grams of `n` tokens, at least 1.
    pub fn new(n: usize) -> Self {
        Self {
            n: n.max(1),
            latest: HashMap::new(),
            grams: Vec::new(),
        }
    }

    /// Forgets n-grams that reach beyond the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        while self.grams.len() + self.n > len.max(self.n) {
            match self.grams.pop() {
                Some((hash, Some(earlier))) => self.latest.insert(hash, earlier),
                Some((hash, None)) => self.latest.remove(&hash),
                None => return,
            };
        }
    }

    /// Takes in what `sequence` has beyond the tokens that are known. Its last token ends no n-gram
    /// yet: nothing has followed it.
    pub fn extend(&mut self, sequence: &[u32]) {
        for gram in sequence[..sequence.len().saturating_sub(1)]
            .windows(self.n)
            .skip(self.grams.len())
        {
            let hash = hash(gram);
            let earlier = self.latest.insert(hash, self.grams.len());
            self.grams.push((hash, earlier));
        }
    }

    /// Where the end of `sequence` stood before: the longest match among the latest few, of equal
    /// ones the latest.
    pub fn find(&self, sequence: &[u32]) -> Option<Match> {
        let start = sequence.len().checked_sub(self.n)?;
        let mut place = self.latest.get(&hash(&sequence[start..])).copied();
        let mut best: Option<Match> = None;
        for _ in 0..CANDIDATES {
            let Some(gram) = place else { break };
            let next = gram + self.n;
            let pairs = sequence[..next].iter().rev().zip(sequence.iter().rev());
            let length = pairs.take(LONGEST).take_while(|(a, b)| a == b).count();
            if length >= self.n
                && next < sequence.len()
                && best.is_none_or(|best| length > best.length)
            {
                best = Some(Match { next, length });
            }
            place = self.grams[gram].1;
        }
        best
    }
}

/// The `count` tokens from `next` on, repeated as the text would go on if it went on so.
pub(super) fn continuation(
    sequence: &[u32],
    next: usize,
    count: usize,
) -> impl Iterator<Item = u32> {
    let period = sequence.len() - next;
    (0..count).map(move |i| sequence[next + i % period])
}

fn hash(gram: &[u32]) -> u64 {
    gram.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &token| {
        (hash ^ u64::from(token))
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(23)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(n: usize, sequence: &[u32]) -> Option<Match> {
        let mut index = NgramIndex::new(n);
        index.extend(sequence);
        index.find(sequence)
    }

    #[test]
    fn the_longest_match_wins_and_then_the_latest() {
        assert_eq!(
            found(2, &[7, 1, 2, 5, 9, 1, 2, 6, 7, 1, 2]),
            Some(Match { next: 3, length: 3 })
        );
        assert_eq!(
            found(2, &[8, 1, 2, 5, 9, 1, 2, 6, 7, 1, 2]),
            Some(Match { next: 7, length: 2 })
        );
        assert_eq!(found(3, &[1, 2, 5, 9, 1, 2]), None);
        assert_eq!(found(2, &[1]), None);
    }

    #[test]
    fn a_period_is_continued_beyond_the_end() {
        let sequence = [4, 5, 6, 4, 5, 6, 4];
        let place = found(2, &sequence).unwrap();
        assert_eq!(
            continuation(&sequence, place.next, 5).collect::<Vec<_>>(),
            [5, 6, 4, 5, 6]
        );
    }

    proptest! {
        #[test]
        fn an_index_that_forgot_is_like_one_that_never_knew(
            first in prop::collection::vec(0u32..4, 0..60), second in prop::collection::vec(0u32..4, 0..60), n in 1usize..5,
        ) {
            let mut index = NgramIndex::new(n);
            index.extend(&first);
            let common = first.iter().zip(&second).take_while(|(a, b)| a == b).count();
            index.truncate(common);
            index.extend(&second);
            prop_assert_eq!(index.find(&second), found(n, &second));
            let naive = |place: Match| second[place.next - n..place.next] == second[second.len() - n..];
            prop_assert!(index.find(&second).is_none_or(naive));
            let stood = second.len() >= n && second[..second.len() - 1].windows(n).any(|gram| *gram == second[second.len() - n..]);
            prop_assert_eq!(index.find(&second).is_some(), stood);
        }
    }
}
