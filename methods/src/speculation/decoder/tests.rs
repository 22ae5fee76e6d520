//! The loop against scripted fakes whose logits are a hash of the whole prefix: one wrong cache
//! entry changes every later token.

mod distribution;
pub(in crate::speculation) mod fake;
mod lookups;
mod tree;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use self::fake::Fake;
use super::length::{DRAFT_ACCEPTANCE, MOST, Planner};
use super::*;
use crate::speculation::processors::{Place, RowMemory};
use crate::speculation::{
    Constraint, CostTable, Grammar, LengthRotation, Logits, LogitsProcessors, Sampler,
    SamplingOptions,
};

fn run(
    target: &mut Fake,
    draft: Option<&mut Fake>,
    prompt: &[u32],
    options: DecodeOptions,
) -> Generation {
    let draft = draft.map(|draft| draft as &mut dyn TokenModel);
    let mut seen = Vec::new();
    let mut on_tokens = |tokens: &[u32]| {
        seen.extend_from_slice(tokens);
        ControlFlow::Continue(())
    };
    let generation = Decoder::new(target, draft, options)
        .unwrap()
        .generate(prompt, &mut on_tokens)
        .unwrap();
    assert_eq!(
        seen, generation.tokens,
        "the callback sees what is returned"
    );
    generation
}

/// A draft's step of this cost, and passes that cost a little more for each token.
fn costs(draft: f64) -> CostTable {
    CostTable {
        draft,
        ..CostTable::default()
    }
}

/// The scores after `sequence` as a token is chosen by them.
fn processed(target: &Fake, sequence: &[u32], prompt: usize, options: &DecodeOptions) -> Vec<f32> {
    let scores = target.scores_after(sequence, prompt);
    let place = Place {
        text: sequence,
        prompt,
        most: prompt + options.max_tokens,
    };
    let mut memory = RowMemory::default();
    options
        .processors
        .process(&scores, place, None, &mut memory)
        .unwrap()
        .to_vec()
}

/// Greedy decoding as one would write it without a cache.
fn reference(target: &Fake, prompt: &[u32], options: &DecodeOptions) -> (Vec<u32>, StopReason) {
    let mut sequence = prompt.to_vec();
    loop {
        if sequence.len() - prompt.len() == options.max_tokens {
            return (sequence.split_off(prompt.len()), StopReason::MaxTokens);
        }
        if sequence.len() == target.context {
            return (sequence.split_off(prompt.len()), StopReason::ContextFull);
        }
        let scores = processed(target, &sequence, prompt.len(), options);
        let best = (0..scores.len())
            .rev()
            .max_by(|&a, &b| scores[a].total_cmp(&scores[b]))
            .unwrap() as u32;
        if options.stop_tokens.contains(&best) {
            return (
                sequence.split_off(prompt.len()),
                StopReason::StopToken(best),
            );
        }
        sequence.push(best);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn greedy_output_is_the_targets_for_any_draft(
        seeds in any::<(u64, u64)>(),
        share in prop_oneof![Just(0.0f32), 0.0f32..1.0, Just(1.0)],
        length in prop_oneof![(1usize..=8).prop_map(DraftLength::Fixed), Just(DraftLength::Adaptive)],
        lookup in prop_oneof![Just(None), (1usize..4).prop_map(Some)],
        cost in 0.01f64..1.2,
        blind in prop_oneof![Just(0u32), 0u32..64],
        prompt in prop::collection::vec(0u32..6, 1..20),
        max_tokens in 0usize..60,
        prefill_chunk in 1usize..9,
        draft_context in 2usize..80,
        draft_confidence in prop_oneof![Just(0.0f32), 0.0f32..1.0],
        stops in any::<bool>(),
    ) {
        let stop_tokens = if stops { vec![5] } else { Vec::new() };
        let options = DecodeOptions {
            max_tokens, draft_length: length, lookup, costs: costs(cost), prefill_chunk, stop_tokens, draft_confidence, ..DecodeOptions::default()
        };
        let mut target = Fake::new(seeds.0);
        let mut draft = Fake { context: draft_context, blind: blind & 0b1_1111, ..Fake::new(seeds.1).like(seeds.0, share) };
        let expected = reference(&target, &prompt, &options);
        let plain = run(&mut target, None, &prompt, DecodeOptions { lookup: None, ..options.clone() });
        prop_assert_eq!((&plain.tokens, plain.stop), (&expected.0, expected.1));
        let looked_up = run(&mut target, None, &prompt, options.clone());
        prop_assert_eq!((&looked_up.tokens, looked_up.stop), (&expected.0, expected.1));
        let speculative = run(&mut target, Some(&mut draft), &prompt, options);
        prop_assert_eq!((&speculative.tokens, speculative.stop), (&expected.0, expected.1));
        let stats = speculative.stats;
        prop_assert!(stats.accepted() <= stats.tested() && stats.tested() <= stats.drafted());
        prop_assert!(lookup.is_some() || stats.lookup.drafted == 0);
    }

    #[test]
    fn greedy_output_is_the_targets_for_any_draft_with_processors_on(
        seeds in any::<(u64, u64)>(),
        share in prop_oneof![Just(0.0f32), 0.0f32..1.0, Just(1.0)],
        length in prop_oneof![(1usize..=8).prop_map(DraftLength::Fixed), Just(DraftLength::Adaptive)],
        lookup in prop_oneof![Just(None), (1usize..4).prop_map(Some)],
        blind in prop_oneof![Just(0u32), 0u32..32],
        prompt in prop::collection::vec(0u32..6, 1..12),
        max_tokens in 1usize..40,
        processors in some_processors(),
    ) {
        let stop_tokens = processors.ends.clone();
        let options = DecodeOptions { max_tokens, draft_length: length, lookup, costs: costs(0.2), stop_tokens, processors, ..DecodeOptions::default() };
        let mut target = Fake { sharpness: 4.0, ..Fake::new(seeds.0) };
        let mut draft = Fake { blind, sharpness: 4.0, ..Fake::new(seeds.1).like(seeds.0, share) };
        let expected = reference(&target, &prompt, &options);
        let plain = run(&mut target, None, &prompt, DecodeOptions { lookup: None, ..options.clone() });
        prop_assert_eq!((&plain.tokens, plain.stop), (&expected.0, expected.1));
        let speculative = run(&mut target, Some(&mut draft), &prompt, options.clone());
        prop_assert_eq!((&speculative.tokens, speculative.stop), (&expected.0, expected.1));
        // A draft whose rows are processed like the target's is as good as the target if it is the
        // target.
        if share >= 1.0 && blind == 0 {
            let alone = run(&mut target, Some(&mut draft), &prompt, DecodeOptions { lookup: None, ..options }).stats.draft;
            prop_assert_eq!(alone.accepted, alone.tested);
        }
    }

    #[test]
    fn rotations_by_length_are_those_of_one_prompt_and_single_tokens(
        seeds in any::<(u64, u64)>(),
        rule in (1usize..30, any::<bool>()).prop_map(|(trained, grows)| LengthRotation { trained, grows }),
        told in any::<bool>(),
        share in prop_oneof![Just(0.0f32), 0.0f32..1.0, Just(1.0)],
        length in prop_oneof![(1usize..=8).prop_map(DraftLength::Fixed), Just(DraftLength::Adaptive)],
        lookup in prop_oneof![Just(None), (1usize..4).prop_map(Some)],
        prefill_chunk in 1usize..9,
        max_tokens in 1usize..10,
        turns in prop::collection::vec(prop::collection::vec(0u32..6, 1..8), 1..4),
    ) {
        let options = DecodeOptions { max_tokens, draft_length: length, lookup, prefill_chunk, costs: costs(0.1), ..DecodeOptions::default() };
        let fresh = Fake::new(seeds.0).rotating(rule, told);
        let (mut target, mut draft) = (fresh.clone(), Fake::new(seeds.1).like(seeds.0, share).rotating(rule, told));
        let mut decoder = Decoder::new(&mut target, Some(&mut draft), options.clone()).unwrap();
        let mut prompt = Vec::new();
        for turn in turns {
            prompt.extend(turn);
            let found = decoder.generate(&prompt, &mut |_| ControlFlow::Continue(())).unwrap();
            prop_assert_eq!(&found.tokens, &reference(&fresh, &prompt, &options).0);
            prompt.extend(found.tokens);
        }
    }

    #[test]
    fn later_turns_read_only_what_is_new(seed in any::<u64>(), gamma in 0usize..6, turns in prop::collection::vec(prop::collection::vec(0u32..6, 1..6), 1..5)) {
        let options = DecodeOptions { max_tokens: 5, draft_length: DraftLength::Fixed(gamma), ..DecodeOptions::default() };
        let (mut target, mut draft, fresh) = (Fake::new(seed), Fake::new(!seed).like(seed, 0.8), Fake::new(seed));
        let mut decoder = Decoder::new(&mut target, Some(&mut draft), options.clone()).unwrap();
        let mut prompt = Vec::new();
        let most = turns.len() * (1 + 5 * (gamma + 1));
        for turn in turns {
            prompt.extend(turn);
            let found = decoder.generate(&prompt, &mut |_| ControlFlow::Continue(())).unwrap();
            prop_assert_eq!(&found.tokens, &reference(&fresh, &prompt, &options).0);
            prompt.extend(found.tokens);
        }
        let fed: usize = target.passes.iter().sum();
        prop_assert!(fed <= prompt.len() + most, "{} tokens were fed for {}", fed, prompt.len());
    }
}

/// Processors that leave some token to choose in a vocabulary of 6.
fn some_processors() -> impl Strategy<Value = LogitsProcessors> {
    let word = || prop::collection::vec(0u32..6, 2..4);
    let weights = (
        prop_oneof![Just(1.0f32), 0.5f32..3.0],
        prop_oneof![Just(1.0f32), 0.5f32..3.0],
        prop::collection::vec((word(), -3.0f32..3.0), 0..3),
    );
    let bans = (
        prop_oneof![Just(0usize), Just(6)],
        prop::collection::vec(word(), 0..3),
        prop::collection::vec(0u32..3, 0..2),
        prop::collection::vec(0u32..3, 0..2),
    );
    let ends = (
        prop_oneof![Just(vec![]), Just(vec![5]), Just(vec![4, 5])],
        0usize..12,
        prop::option::of(0usize..12),
        prop::option::of((0usize..9, 0.9f64..1.5)),
    );
    let forced = (
        prop::option::of(0u32..6),
        prop_oneof![Just(vec![]), Just(vec![5])],
    );
    (weights, bans, ends, forced).prop_map(|(weights, bans, ends, forced)| LogitsProcessors {
        repetition_penalty: weights.0,
        encoder_repetition_penalty: weights.1,
        sequence_bias: weights.2,
        no_repeat_ngram_size: bans.0,
        // What begins with 3 stays possible.
        bad_words_ids: bans
            .1
            .into_iter()
            .filter(|word| word[word.len() - 1] != 3)
            .collect(),
        suppress_tokens: bans.2,
        begin_suppress_tokens: bans.3,
        ends: ends.0,
        min_length: ends.1,
        min_new_tokens: ends.2,
        exponential_decay_length_penalty: ends.3,
        forced_bos_token_id: forced.0.filter(|&token| token == 3),
        forced_eos_token_id: forced.1,
        ..LogitsProcessors::default()
    })
}

/// Stats of a long greedy text.
fn adaptive(mut draft: Fake, cost: f64) -> Stats {
    let mut target = Fake {
        context: 4096,
        ..Fake::new(4)
    };
    draft.context = 4096;
    let options = DecodeOptions {
        max_tokens: 1000,
        costs: costs(cost),
        ..DecodeOptions::default()
    };
    run(&mut target, Some(&mut draft), &[1, 2, 3], options).stats
}

#[test]
fn a_hopeless_draft_costs_almost_nothing() {
    for cost in [0.1, 0.3, 0.5, 0.9] {
        let stats = adaptive(
            Fake {
                sharpness: 8.0,
                ..Fake::new(5)
            },
            cost,
        );
        assert!(
            stats.draft.rounds * 8 < stats.rounds,
            "c = {cost}: {stats:?}"
        );
        assert!(
            stats.predicted_speedup() > 0.95,
            "c = {cost}: {}",
            stats.predicted_speedup()
        );
    }
}

#[test]
fn a_perfect_draft_is_used_in_full() {
    let stats = adaptive(
        Fake {
            sharpness: 40.0,
            ..Fake::new(4)
        },
        0.1,
    );
    assert!(stats.tokens_per_round() > 12.0, "{stats:?}");
    assert_eq!(stats.draft.accepted, stats.draft.tested);
}

#[test]
fn a_draft_as_dear_as_the_target_is_left_alone() {
    assert_eq!(adaptive(Fake::new(4), 1.0).draft.rounds, 0);
}

#[test]
fn a_draft_equal_to_the_target_is_always_accepted() {
    let options = DecodeOptions {
        max_tokens: 40,
        draft_length: DraftLength::Fixed(3),
        sampling: SamplingOptions {
            temperature: 1.0,
            ..SamplingOptions::default()
        },
        ..DecodeOptions::default()
    };
    let (mut target, mut draft) = (Fake::new(4), Fake::new(4));
    let stats = run(&mut target, Some(&mut draft), &[1, 2, 3], options).stats;
    assert_eq!((stats.rounds, stats.accepted()), (10, 30));
    assert!(
        (stats.acceptance() - 1.0).abs() < 1e-12 && (stats.tokens_per_round() - 4.0).abs() < 1e-12
    );
}

#[test]
fn a_hesitant_draft_stops_early() {
    let options = DecodeOptions {
        max_tokens: 20,
        draft_length: DraftLength::Fixed(8),
        draft_confidence: 1.0,
        ..DecodeOptions::default()
    };
    let stats = run(&mut Fake::new(1), Some(&mut Fake::new(2)), &[0], options).stats;
    assert_eq!((stats.drafted(), stats.rounds), (0, 20));
}

#[test]
fn the_prompt_is_read_in_chunks() {
    let mut target = Fake::new(1);
    run(
        &mut target,
        None,
        &[0; 11],
        DecodeOptions {
            max_tokens: 1,
            prefill_chunk: 4,
            ..DecodeOptions::default()
        },
    );
    assert_eq!(target.passes, [4, 4, 2, 1]);
}

#[test]
fn the_callback_and_the_flag_end_the_text() {
    let (mut target, mut draft) = (Fake::new(1), Fake::new(1));
    let cancel = Arc::new(AtomicBool::new(false));
    let options = DecodeOptions {
        draft_length: DraftLength::Fixed(2),
        cancel: Some(Arc::clone(&cancel)),
        ..DecodeOptions::default()
    };
    let mut decoder = Decoder::new(&mut target, Some(&mut draft), options).unwrap();
    let broken = decoder
        .generate(&[1], &mut |_| ControlFlow::Break(()))
        .unwrap();
    assert_eq!((broken.stop, broken.tokens.len()), (StopReason::Caller, 3));
    let cancelled = decoder.generate(&[1], &mut |_| {
        cancel.store(true, Ordering::Relaxed);
        ControlFlow::Continue(())
    });
    let cancelled = cancelled.unwrap();
    assert_eq!(
        (cancelled.stop, cancelled.tokens),
        (StopReason::Interrupted, broken.tokens)
    );
    assert_eq!(
        decoder
            .generate(&[1, 2, 3], &mut |_| ControlFlow::Continue(()))
            .unwrap()
            .stop,
        StopReason::Interrupted
    );
    cancel.store(false, Ordering::Relaxed);
    let options = DecodeOptions::default();
    let after = decoder
        .generate(&[1, 2, 3, 4], &mut |_| ControlFlow::Continue(()))
        .unwrap();
    assert_eq!(
        after.tokens,
        reference(&Fake::new(1), &[1, 2, 3, 4], &options).0
    );
}

#[test]
fn processors_that_leave_no_token_are_an_error_of_the_rules_and_not_of_the_model() {
    let processors = LogitsProcessors {
        suppress_tokens: (0..6).collect(),
        ..LogitsProcessors::default()
    };
    let options = DecodeOptions {
        processors,
        ..DecodeOptions::default()
    };
    let mut target = Fake::new(1);
    let error = Decoder::new(&mut target, None, options)
        .unwrap()
        .generate(&[1, 2], &mut |_| ControlFlow::Continue(()))
        .unwrap_err()
        .to_string();
    assert!(error.contains("leave none at position 1"), "{error}");
}

#[test]
fn a_text_ends_at_the_length_of_prompt_and_text_together() {
    let options = |max_length| DecodeOptions {
        max_tokens: usize::MAX,
        max_length: Some(max_length),
        ..DecodeOptions::default()
    };
    let found = run(
        &mut Fake::new(1),
        Some(&mut Fake::new(1)),
        &[1, 2, 3],
        options(9),
    );
    assert_eq!((found.tokens.len(), found.stop), (6, StopReason::MaxTokens));
    let mut target = Fake::new(1);
    let error = Decoder::new(&mut target, None, options(3))
        .unwrap()
        .generate(&[1, 2, 3], &mut |_| ControlFlow::Continue(()))
        .unwrap_err();
    assert!(
        error.to_string().contains("3 tokens") && error.to_string().contains("max_length"),
        "{error}"
    );
}

#[test]
fn refuses_what_cannot_be_decoded() {
    let mut other = Fake {
        vocab: 7,
        ..Fake::new(2)
    };
    let error = Decoder::new(
        &mut Fake::new(1),
        Some(&mut other),
        DecodeOptions::default(),
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains('7') && error.contains('6'), "{error}");
    let mut target = Fake::new(1);
    let mut decoder = Decoder::new(&mut target, None, DecodeOptions::default()).unwrap();
    for prompt in [&[][..], &[6], &[0; 64]] {
        assert!(
            decoder
                .generate(prompt, &mut |_| ControlFlow::Continue(()))
                .is_err(),
            "{prompt:?}"
        );
    }
}

#[test]
fn what_is_known_of_a_draft_decides_how_many_tokens_it_proposes_at_first() {
    let first = |acceptance| {
        Planner::new(DraftLength::Adaptive, acceptance, costs(0.4))
            .draft_plan(1, MOST)
            .tokens
    };
    let lengths = [0.3, DRAFT_ACCEPTANCE, 0.97].map(first);
    assert!(
        lengths[0] < lengths[1] && lengths[1] < lengths[2],
        "{lengths:?}"
    );
    let doubtful = DecodeOptions {
        draft_acceptance: 1.5,
        ..DecodeOptions::default()
    };
    assert!(
        Decoder::new(&mut Fake::new(1), None, doubtful)
            .unwrap_err()
            .to_string()
            .contains("draft acceptance 1.5")
    );
}

/// Leaves two classes of tokens out of three, every third place one token, and ends after 17.
#[derive(Debug)]
struct Classes;

impl Classes {
    fn allows(text: &[u32], token: u32) -> bool {
        let sum: u32 = text.iter().sum();
        if text.len() >= 17 {
            token == 5
        } else if text.len() % 3 == 2 {
            token == sum % 5
        } else {
            token != 5 && !(sum + token).is_multiple_of(3)
        }
    }
}

impl Grammar for Classes {
    fn start(&self) -> Box<dyn Constraint> {
        Box::new(Self)
    }
}

impl Constraint for Classes {
    fn mask(&mut self, text: &[u32], logits: &mut [f32]) -> crate::Result<()> {
        for (token, logit) in (0..).zip(logits) {
            if !Self::allows(text, token) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    fn forced(&mut self, text: &[u32], tokens: &mut Vec<u32>) -> crate::Result<()> {
        tokens.extend((text.len() % 3 == 2).then(|| text.iter().sum::<u32>() % 5));
        Ok(())
    }

    fn is_complete(&mut self, text: &[u32]) -> crate::Result<bool> {
        Ok(text.len() >= 17)
    }
}

#[test]
fn a_grammar_rules_target_and_draft_alike() {
    for seed in 0..40 {
        let options = |lookup| DecodeOptions {
            max_tokens: 30,
            draft_length: DraftLength::Fixed(3),
            grammar: Some(Arc::new(Classes)),
            stop_tokens: vec![5],
            lookup,
            ..DecodeOptions::default()
        };
        let plain = run(&mut Fake::new(seed), None, &[1, 2], options(None));
        assert_eq!((plain.tokens.len(), plain.stop), (17, StopReason::Complete));
        for (i, token) in plain.tokens.iter().enumerate() {
            assert!(Classes::allows(&plain.tokens[..i], *token));
        }
        let (mut target, mut draft) = (Fake::new(seed), Fake::new(seed + 1).like(seed, 0.9));
        let found = run(&mut target, Some(&mut draft), &[1, 2], options(Some(1)));
        assert_eq!(found.tokens, plain.tokens);
        let forced = found.stats.forced;
        assert_eq!(forced.tested, forced.accepted);
    }
}
