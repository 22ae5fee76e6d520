//! The index against a search through all texts.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A text, how many of its tokens were known when it began, and how many were counted before.
#[derive(Debug)]
struct Text {
    tokens: Vec<u32>,
    known: usize,
    before: usize,
}

/// Texts that are searched through for every question.
#[derive(Debug, Default)]
struct Texts(Vec<Text>);

impl Texts {
    fn begin(&mut self, prompt: &[u32]) {
        let stood = |part: &[u32]| {
            let windows =
                |text: &Text| text.tokens.windows(part.len()).any(|window| window == part);
            self.0.iter().any(windows)
        };
        let known = (1..=prompt.len())
            .take_while(|&len| stood(&prompt[..len]))
            .count();
        let counted = |text: &Text| text.tokens.len() - text.known;
        self.0.push(Text {
            tokens: prompt.to_vec(),
            known,
            before: self.0.iter().map(counted).sum(),
        });
    }

    fn extend(&mut self, tokens: &[u32]) {
        self.0.last_mut().unwrap().tokens.extend_from_slice(tokens);
    }

    /// How `sequence` goes on after its longest end that something followed.
    fn likeliest(&self, sequence: &[u32], least: usize) -> Option<Guess> {
        (least.max(1)..=sequence.len()).rev().find_map(|matched| {
            let end = &sequence[sequence.len() - matched..];
            let mut found: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
            for text in &self.0 {
                for i in text.known.max(matched)..text.tokens.len() {
                    if text.tokens[i - matched..i] == *end {
                        let (count, latest) = found.entry(text.tokens[i]).or_default();
                        (*count, *latest) = (*count + 1, text.before + i - text.known);
                    }
                }
            }
            let all: usize = found.values().map(|counts| counts.0).sum();
            let (&token, &(count, _)) = found.iter().max_by_key(|(_, counts)| **counts)?;
            Some(Guess {
                token,
                matched,
                share: count as f64 / all as f64,
            })
        })
    }

    /// What the index should propose.
    fn propose(&self, least: usize, most: usize) -> Vec<Guess> {
        let mut sequence = self.0.last().unwrap().tokens.clone();
        let (mut guesses, mut probability): (Vec<Guess>, _) = (Vec::new(), 1.0);
        while let Some(guess) = self.likeliest(&sequence, least) {
            probability *= guess.share;
            let first = guesses.first().map_or(guess.matched, |guess| guess.matched);
            let reach = most.min(REACH * first);
            if guesses.len() == reach || probability < LEAST_PROBABILITY {
                break;
            }
            sequence.push(guess.token);
            guesses.push(guess);
        }
        guesses
    }
}

fn proposed(index: &SuffixIndex, least: usize, most: usize) -> Vec<Guess> {
    let mut guesses = Vec::new();
    index.propose(least, most, &mut guesses);
    guesses
}

fn tokens(guesses: &[Guess]) -> Vec<u32> {
    guesses.iter().map(|guess| guess.token).collect()
}

/// Texts in pieces; each begins with so many tokens of the one before.
fn some_texts() -> impl Strategy<Value = Vec<(usize, Vec<Vec<u32>>)>> {
    let text = |kinds: u32| {
        let piece = prop::collection::vec(0..kinds, 0..12);
        (0usize..40, prop::collection::vec(piece, 1..5))
    };
    (1u32..6).prop_flat_map(move |kinds| prop::collection::vec(text(kinds), 1..5))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn proposes_what_followed_the_longest_match_most_often(
        written in some_texts(), least in 0usize..4, most in 0usize..12,
    ) {
        let (mut index, mut texts) = (SuffixIndex::new(usize::MAX), Texts::default());
        let mut before = Vec::new();
        for (shared, pieces) in written {
            before.truncate(shared);
            before.extend_from_slice(&pieces[0]);
            index.begin(&before);
            texts.begin(&before);
            for piece in &pieces[1..] {
                prop_assert_eq!(proposed(&index, least, most), texts.propose(least, most));
                index.extend(piece);
                texts.extend(piece);
                before.extend_from_slice(piece);
            }
            prop_assert_eq!(proposed(&index, least, most), texts.propose(least, most));
        }
    }

    #[test]
    fn holds_no_more_than_the_text_and_what_it_is_made_for(
        written in some_texts(), capacity in 0usize..30,
    ) {
        let mut index = SuffixIndex::new(capacity);
        let mut before = Vec::new();
        for (shared, pieces) in written.iter().cycle().take(60) {
            before.truncate(*shared);
            before.extend(pieces.concat());
            index.begin(&before);
            index.extend(&pieces.concat());
            let most = capacity + before.len() + pieces.concat().len();
            prop_assert!(index.tokens.len() <= most && index.starts.len() <= most + 1);
            prop_assert!(index.states.len() <= 2 * most + 1, "{} states for {most} tokens", index.states.len());
            prop_assert!(index.edges.len() <= 3 * most, "{} edges for {most} tokens", index.edges.len());
        }
    }

    #[test]
    fn alone_it_forgets_the_text_before(written in some_texts()) {
        let mut index = SuffixIndex::default();
        for (_, pieces) in &written {
            let mut fresh = SuffixIndex::default();
            for index in [&mut index, &mut fresh] {
                index.begin(&pieces[0]);
                index.extend(&pieces[1..].concat());
            }
            prop_assert_eq!(proposed(&index, 1, 9), proposed(&fresh, 1, 9));
        }
    }
}

#[test]
fn a_period_is_continued_beyond_the_end() {
    let mut index = SuffixIndex::default();
    index.begin(&[4, 5, 6, 4, 5, 6, 4, 5, 6, 4]);
    assert_eq!(tokens(&proposed(&index, 2, 5)), [5, 6, 4, 5, 6]);
}

#[test]
fn the_oldest_texts_are_forgotten_first() {
    let mut index = SuffixIndex::new(8);
    index.begin(&[1, 2, 3, 4]);
    index.begin(&[5, 6, 7, 8, 9]);
    for (end, next) in [([1, 2], None), ([7, 8], Some(9))] {
        let mut index = index.clone();
        index.begin(&end);
        assert_eq!(tokens(&proposed(&index, 2, 1)).first().copied(), next);
    }
}

#[test]
fn instructions_before_each_prompt_count_once() {
    let mut index = SuffixIndex::new(100);
    for answer in [[7, 8, 9], [7, 8, 6], [7, 8, 6]] {
        index.begin(&[1, 2, 3]);
        index.extend(&answer);
    }
    index.begin(&[1, 2]);
    assert_eq!(
        proposed(&index, 1, 1),
        [Guess {
            token: 3,
            matched: 2,
            share: 1.0
        }]
    );
    assert_eq!(index.tokens.len(), 3 + 3 * 3);
}
