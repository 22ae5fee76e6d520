//! The decoding loop over models that allocate nothing: neither does it, but for what lookups search in.

use std::hint::black_box;

use dlc_methods::MethodError;
use dlc_methods::speculation::{
    DecodeOptions, DraftLength, Logits, LogitsProcessors, SamplingOptions, TokenModel,
};
use libtest_mimic::{Failed, Trial};

use crate::counting::{allocations, allocations_of_index, rounds};

const VOCAB: usize = 16;
const MOST: usize = 64;

/// Counts upwards, and leaves a number out now and then if it is a target.
struct Counter {
    len: usize,
    skips: bool,
    rows: Vec<f32>,
}

impl Counter {
    fn new(skips: bool) -> Self {
        Self {
            len: 0,
            skips,
            rows: Vec::with_capacity(MOST * VOCAB),
        }
    }
}

impl TokenModel for Counter {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn context_length(&self) -> usize {
        4096
    }

    fn len(&self) -> usize {
        self.len
    }

    fn extend(&mut self, tokens: &[u32], want: usize) -> Result<Logits<'_>, MethodError> {
        self.rows.clear();
        for (i, &token) in tokens.iter().enumerate().skip(tokens.len() - want) {
            let skipped = usize::from(self.skips && (self.len + i).is_multiple_of(5));
            let next = (token as usize + 1 + skipped) % VOCAB;
            let score = |id: usize| -((id + VOCAB - next) as f32 % VOCAB as f32);
            self.rows.extend((0..VOCAB).map(score));
        }
        self.len += tokens.len();
        Ok(Logits::new(VOCAB, self.rows.as_slice()))
    }

    fn rollback(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

/// Options of greedy texts, and whether there is a draft.
fn kinds() -> Vec<(&'static str, DecodeOptions, bool)> {
    let plain = DecodeOptions {
        max_tokens: 200,
        draft_length: DraftLength::Fixed(3),
        ..DecodeOptions::default()
    };
    let lookup = DecodeOptions {
        lookup: Some(2),
        ..plain.clone()
    };
    let adaptive = DecodeOptions {
        draft_length: DraftLength::Adaptive,
        ..lookup.clone()
    };
    let processed = DecodeOptions {
        processors: LogitsProcessors {
            ends: vec![0],
            repetition_penalty: 1.1,
            encoder_repetition_penalty: 1.1,
            no_repeat_ngram_size: 24,
            bad_words_ids: vec![vec![3, 4]],
            min_new_tokens: Some(300),
            exponential_decay_length_penalty: Some((3, 1.01)),
            suppress_tokens: vec![7],
            ..LogitsProcessors::default()
        },
        ..lookup.clone()
    };
    vec![
        ("plain", plain.clone(), false),
        ("with_a_draft", plain, true),
        ("with_lookups", lookup.clone(), false),
        ("with_both", lookup, true),
        ("with_both_adaptively", adaptive, true),
        ("with_both_and_processors", processed, true),
    ]
}

pub fn trials() -> Vec<Trial> {
    let greedy = kinds().into_iter().map(|(kind, options, drafted)| {
        let title = format!("looping::greedy_decoding_{kind}_allocates_nothing_but_the_index");
        Trial::test(title, move || {
            let (mut target, mut draft) = (Counter::new(true), Counter::new(false));
            let prompt = [1, 2, 3];
            let draft = drafted.then_some(&mut draft as &mut dyn TokenModel);
            let found = rounds(&mut target, draft, &prompt, &options);
            let proposed = (
                found.stats.draft.drafted > 0,
                found.stats.lookup.drafted > 0,
            );
            assert_eq!(proposed, (drafted, options.lookup.is_some()), "{found:?}");
            assert!(!drafted || found.stats.draft.runner_up > 0, "{found:?}");
            let all: usize = found.allocations.iter().sum();
            let of_index = options
                .lookup
                .map_or(0, |_| allocations_of_index(&prompt, &found.text));
            assert_eq!(all, of_index, "{found:?}");
            Ok(())
        })
    });
    let others = [
        Trial::test("looping::what_is_allocated_is_counted", counts),
        Trial::test("looping::drawing_allocates_rows_and_their_cuts", draws),
    ];
    greedy.chain(others).collect()
}

#[expect(clippy::unnecessary_wraps, reason = "the type of a trial")]
fn counts() -> Result<(), Failed> {
    let before = allocations();
    let mut grown = black_box(vec![0u8; 100]);
    grown.reserve_exact(1000);
    black_box(Box::new(0u8));
    assert_eq!(allocations() - before, 3);
    Ok(())
}

/// A distribution is a list of shares and one of tokens; cuts make more.
#[expect(clippy::unnecessary_wraps, reason = "the type of a trial")]
fn draws() -> Result<(), Failed> {
    let options = DecodeOptions {
        max_tokens: 200,
        sampling: SamplingOptions {
            temperature: 0.7,
            ..SamplingOptions::default()
        },
        ..DecodeOptions::default()
    };
    let found = rounds(&mut Counter::new(true), None, &[1, 2, 3], &options);
    assert!(found.allocations.iter().all(|&n| n == 2), "{found:?}");
    Ok(())
}
