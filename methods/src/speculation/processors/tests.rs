//! The processors against transformers' own arithmetic (`generation/logits_process.py`, 5.24),
//! written again row by row as it stands there.

use proptest::prelude::*;

use super::*;

const VOCAB: usize = 7;
const INF: f32 = f32::INFINITY;

/// What transformers' processors do, one function each, in its words: `ids` is the row of
/// `input_ids`, `scores` that of the scores.
mod reference {
    use super::{INF, VOCAB};

    pub fn sequence_bias(ids: &[u32], scores: &mut [f32], biases: &[(Vec<u32>, f32)]) {
        let mut bias = [0.0f32; VOCAB];
        for (sequence, value) in biases.iter().filter(|b| b.0.len() == 1) {
            bias[sequence[0] as usize] = *value;
        }
        for (sequence, value) in biases.iter().filter(|b| b.0.len() > 1) {
            let prefix = &sequence[..sequence.len() - 1];
            if prefix.len() <= ids.len() && ids[ids.len() - prefix.len()..] == *prefix {
                bias[sequence[sequence.len() - 1] as usize] += *value;
            }
        }
        for (score, bias) in scores.iter_mut().zip(bias) {
            *score += bias;
        }
    }

    pub fn repetition_penalty(ids: &[u32], scores: &mut [f32], penalty: f32) {
        let before = scores.to_vec();
        for &id in ids {
            let score = before[id as usize];
            scores[id as usize] = if score < 0.0 {
                score * penalty
            } else {
                score / penalty
            };
        }
    }

    /// `_get_ngrams` of `source` and `_calc_banned_ngram_tokens`.
    pub fn no_repeat_ngram(source: &[u32], ids: &[u32], scores: &mut [f32], n: usize) {
        if ids.len() + 1 < n {
            return;
        }
        let prefix = &ids[ids.len() + 1 - n..];
        for start in 0..(source.len() + 1).saturating_sub(n) {
            let gram = &source[start..start + n];
            if gram[..n - 1] == *prefix {
                scores[gram[n - 1] as usize] = -INF;
            }
        }
    }

    pub fn bad_words(ids: &[u32], scores: &mut [f32], words: &[Vec<u32>], eos: &[u32]) {
        let words: Vec<(Vec<u32>, f32)> = words
            .iter()
            .filter(|word| eos.iter().all(|i| word[..] != [*i]))
            .map(|word| (word.clone(), -INF))
            .collect();
        sequence_bias(ids, scores, &words);
    }

    pub fn mask(scores: &mut [f32], tokens: &[u32]) {
        for (id, score) in scores.iter_mut().enumerate() {
            if tokens.contains(&(id as u32)) {
                *score = -INF;
            }
        }
    }

    pub fn force(scores: &mut [f32], tokens: &[u32]) {
        for (id, score) in scores.iter_mut().enumerate() {
            *score = if tokens.contains(&(id as u32)) {
                0.0
            } else {
                -INF
            };
        }
    }

    pub fn exponential_decay(
        ids: &[u32],
        scores: &mut [f32],
        (start, factor): (usize, f64),
        eos: &[u32],
        prompt: usize,
    ) {
        let regulation_start = start + prompt;
        if ids.len() > regulation_start {
            let index = (ids.len() - regulation_start) as f64;
            let before = scores.to_vec();
            for &eos in eos {
                let score = before[eos as usize];
                let penalty = score.abs() * (factor.powf(index) - 1.0) as f32;
                scores[eos as usize] = score + if score.is_finite() { penalty } else { 0.0 };
            }
        }
    }

    pub fn remove_invalid(scores: &mut [f32]) {
        for score in scores {
            if score.is_nan() {
                *score = 0.0;
            } else if *score == INF {
                *score = f32::MAX;
            } else if *score == -INF {
                *score = f32::MIN;
            }
        }
    }
}

/// `_get_logits_processor` and `_prepare_generated_length`, for one row.
fn transformers(p: &LogitsProcessors, logits: &[f32], place: Place<'_>) -> Vec<f32> {
    let Place {
        text: ids,
        prompt,
        most,
    } = place;
    let mut scores = logits.to_vec();
    if !p.sequence_bias.is_empty() {
        reference::sequence_bias(ids, &mut scores, &p.sequence_bias);
    }
    reference::repetition_penalty(
        &ids[..prompt],
        &mut scores,
        1.0 / p.encoder_repetition_penalty,
    );
    reference::repetition_penalty(ids, &mut scores, p.repetition_penalty);
    if p.no_repeat_ngram_size > 0 {
        reference::no_repeat_ngram(ids, ids, &mut scores, p.no_repeat_ngram_size);
    }
    if p.encoder_no_repeat_ngram_size > 0 {
        reference::no_repeat_ngram(
            &ids[..prompt],
            ids,
            &mut scores,
            p.encoder_no_repeat_ngram_size,
        );
    }
    reference::bad_words(ids, &mut scores, &p.bad_words_ids, &p.ends);
    let min_length = p.min_new_tokens.map_or(p.min_length, |n| n + prompt);
    if ids.len() < min_length {
        reference::mask(&mut scores, &p.ends);
    }
    if let Some(bos) = p.forced_bos_token_id.filter(|_| ids.len() == 1) {
        reference::force(&mut scores, &[bos]);
    }
    if !p.forced_eos_token_id.is_empty() && ids.len() == most - 1 {
        reference::force(&mut scores, &p.forced_eos_token_id);
    }
    if p.remove_invalid_values {
        reference::remove_invalid(&mut scores);
    }
    if let Some(decay) = p.exponential_decay_length_penalty {
        reference::exponential_decay(ids, &mut scores, decay, &p.ends, prompt);
    }
    reference::mask(&mut scores, &p.suppress_tokens);
    let begin = if prompt > 1 || p.forced_bos_token_id.is_none() {
        prompt
    } else {
        prompt + 1
    };
    if ids.len() == begin {
        reference::mask(&mut scores, &p.begin_suppress_tokens);
    }
    scores
}

fn token() -> std::ops::Range<u32> {
    0..VOCAB as u32
}

fn tokens(most: usize) -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(token(), 0..=most)
}

/// Processors of which each does something half of the time.
pub(in crate::speculation) fn processors() -> impl Strategy<Value = LogitsProcessors> {
    let penalty = || prop_oneof![Just(1.0f32), 0.5f32..2.0];
    let sequence = || prop::collection::vec(token(), 1..4);
    let first = (
        prop_oneof![
            Just(vec![]),
            prop::collection::btree_map(sequence(), -2.0f32..2.0, 0..4)
                .prop_map(|map| map.into_iter().collect())
        ],
        penalty(),
        penalty(),
        0usize..5,
        prop_oneof![Just(0usize), 1usize..4],
        prop_oneof![Just(vec![]), prop::collection::vec(sequence(), 0..4)],
        0usize..12,
    );
    let second = (
        prop::option::of(0usize..6),
        prop::option::of(token()),
        prop_oneof![Just(vec![]), tokens(2)],
        any::<bool>(),
        prop::option::of((0usize..6, 0.5f64..2.0)),
        prop_oneof![Just(vec![]), tokens(2)],
        prop_oneof![Just(vec![]), tokens(3)],
        tokens(2),
    );
    (first, second).prop_map(|(first, second)| LogitsProcessors {
        sequence_bias: first.0,
        encoder_repetition_penalty: first.1,
        repetition_penalty: first.2,
        no_repeat_ngram_size: first.3,
        encoder_no_repeat_ngram_size: first.4,
        bad_words_ids: first.5,
        min_length: first.6,
        min_new_tokens: second.0,
        forced_bos_token_id: second.1,
        forced_eos_token_id: second.2,
        remove_invalid_values: second.3,
        exponential_decay_length_penalty: second.4,
        suppress_tokens: second.5,
        begin_suppress_tokens: second.6,
        ends: second.7,
        ..LogitsProcessors::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_are_those_of_transformers(
        p in processors(),
        logits in prop::collection::vec(prop_oneof![8 => -8.0f32..8.0, 1 => Just(-INF), 1 => Just(0.0)], VOCAB),
        text in prop::collection::vec(token(), 1..16),
        prompt in 1usize..16,
        further in 1usize..5,
    ) {
        let prompt = prompt.min(text.len());
        let place = Place { text: &text, prompt, most: text.len() + further };
        let mut memory = RowMemory::default();
        // What another row left there changes nothing.
        p.process(&[1.0; VOCAB + 1], Place { text: &[0, 1], prompt: 1, most: 2 }, None, &mut memory).unwrap();
        let (found, expected) = (p.process(&logits, place, None, &mut memory).unwrap(), transformers(&p, &logits, place));
        let near = |a: &f32, b: &f32| a.to_bits() == b.to_bits() || (a - b).abs() <= 1e-5 * b.abs() || a.is_nan() && b.is_nan();
        prop_assert!(found.iter().zip(&expected).all(|(a, b)| near(a, b)), "{:?} is not {:?}", found, expected);
    }
}

fn processed(p: &LogitsProcessors, logits: &[f32], place: Place<'_>) -> Vec<f32> {
    p.process(logits, place, None, &mut RowMemory::default())
        .unwrap()
        .to_vec()
}

fn place(text: &[u32], prompt: usize) -> Place<'_> {
    Place {
        text,
        prompt,
        most: 100,
    }
}

#[test]
fn the_penalty_counts_each_token_of_prompt_and_text_once() {
    let p = LogitsProcessors {
        repetition_penalty: 2.0,
        ..LogitsProcessors::default()
    };
    assert_eq!(
        processed(&p, &[4.0, -4.0, 1.0, 3.0], place(&[0, 0, 1, 3], 3)),
        [2.0, -8.0, 1.0, 1.5]
    );
}

#[test]
fn a_row_that_nothing_changes_is_not_copied() {
    let (p, logits) = (LogitsProcessors::default(), [4.0, -4.0]);
    let mut memory = RowMemory::default();
    let found = p
        .process(&logits, place(&[0, 1], 1), None, &mut memory)
        .unwrap();
    assert!(std::ptr::eq(found, &raw const logits[..]));
}

#[test]
fn a_text_is_not_ended_before_its_least_length() {
    let ends = vec![0];
    let of_all = LogitsProcessors {
        min_length: 4,
        ends: ends.clone(),
        ..LogitsProcessors::default()
    };
    let of_new = LogitsProcessors {
        min_new_tokens: Some(1),
        min_length: 9,
        ends,
        ..LogitsProcessors::default()
    };
    let ended =
        |p: &LogitsProcessors, text: &[u32]| processed(p, &[1.0, 0.0], place(text, 3))[0] > -INF;
    assert_eq!(
        (ended(&of_all, &[1; 3]), ended(&of_all, &[1; 4])),
        (false, true)
    );
    assert_eq!(
        (ended(&of_new, &[1; 3]), ended(&of_new, &[1; 4])),
        (false, true)
    );
}

#[test]
fn logits_that_overflow_stay_numbers_and_invalid_ones_are_replaced_on_demand() {
    let decay = Some((0, 1e6));
    let p = LogitsProcessors {
        exponential_decay_length_penalty: decay,
        ends: vec![0],
        remove_invalid_values: true,
        ..LogitsProcessors::default()
    };
    assert_eq!(
        processed(&p, &[3.0, f32::NAN, INF, -INF], place(&[1; 90], 1)),
        [f32::MAX, 0.0, f32::MAX, f32::MIN]
    );
}

#[test]
fn presence_counts_once_and_frequency_each_time_and_the_prompt_never() {
    let p = LogitsProcessors {
        presence_penalty: 1.0,
        frequency_penalty: 0.25,
        ..LogitsProcessors::default()
    };
    assert_eq!(
        processed(&p, &[4.0, -4.0, 1.0, 3.0], place(&[0, 3, 1, 3, 1, 1], 2)),
        [4.0, -5.75, 1.0, 1.75]
    );
}
