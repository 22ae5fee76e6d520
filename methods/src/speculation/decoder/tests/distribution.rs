//! Sampled output against plain sampling: the joint distribution of successive tokens, by
//! chi-square.

use super::*;

const VOCAB: usize = 5;
/// Successive tokens whose joint distribution is looked at: some of one round, some of two or
/// three.
const TOKENS: usize = 3;
const SAMPLES: usize = 100_000;
const PROMPT: [u32; 5] = [3, 1, 4, 3, 1];

/// Probabilities of all continuations of `prefix` by `count` tokens when each is sampled plainly,
/// by ascending ids.
fn plain_joint(
    target: &Fake,
    sampler: &Sampler,
    options: &DecodeOptions,
    prefix: &[u32],
    count: usize,
) -> Vec<f64> {
    if count == 0 {
        return vec![1.0];
    }
    let next = sampler
        .distribution(&processed(target, prefix, PROMPT.len(), options), 0)
        .unwrap();
    let after = |token: u32| {
        plain_joint(
            target,
            sampler,
            options,
            &[prefix, &[token]].concat(),
            count - 1,
        )
    };
    (0..VOCAB as u32)
        .flat_map(|token| {
            after(token)
                .into_iter()
                .map(|p| p * next.probability(token))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Whether `found` may be drawn from `expected`, both counts by cell: the probability of a larger
/// chi-square is above 1e-4.
fn check_fit(found: &[usize], expected: &[f64], what: &str) {
    let cells = || {
        found
            .iter()
            .map(|&n| n as f64)
            .zip(expected.iter().copied())
    };
    assert!(
        cells().all(|(n, e)| e > 0.0 || n == 0.0),
        "a token outside the cut was drawn: {what}"
    );
    let cells: Vec<(f64, f64)> = cells().filter(|cell| cell.1 >= 5.0).collect();
    let chi2: f64 = cells.iter().map(|(n, e)| (n - e).powi(2) / e).sum();
    // Wilson and Hilferty's approximation of the 1 - 1e-4 quantile.
    let df = cells.len() as f64 - 1.0;
    let limit = df * (1.0 - 2.0 / (9.0 * df) + 3.72 * (2.0 / (9.0 * df)).sqrt()).powi(3);
    assert!(
        chi2 < limit,
        "chi-square {chi2:.1} over {limit:.1} with {df} degrees of freedom: {what}"
    );
}

/// Decodes many short texts, with lookups in `history` tokens of earlier ones, and compares their
/// first tokens with plain sampling.
fn check_joint(
    sampling: &SamplingOptions,
    drafting: &DecodeOptions,
    draft: Option<&mut Fake>,
    history: usize,
) -> Stats {
    let mut target = Fake {
        vocab: VOCAB,
        ..Fake::new(11)
    };
    let plain = Sampler::new(sampling.clone()).unwrap();
    let options = DecodeOptions {
        max_tokens: TOKENS + 2,
        sampling: sampling.clone(),
        ..drafting.clone()
    };
    let expected: Vec<f64> = plain_joint(&target, &plain, &options, &PROMPT, TOKENS)
        .into_iter()
        .map(|p| p * SAMPLES as f64)
        .collect();
    let what = format!("{sampling:?} {drafting:?} {draft:?}");
    let mut decoder = Decoder::new(
        &mut target,
        draft.map(|draft| draft as &mut dyn TokenModel),
        options,
    )
    .unwrap()
    .remembering(SuffixIndex::new(history));
    let mut found = vec![0; expected.len()];
    let mut stats = Stats::default();
    for _ in 0..SAMPLES {
        let generation = decoder
            .generate(&PROMPT, &mut |_| ControlFlow::Continue(()))
            .unwrap();
        found[generation.tokens[..TOKENS]
            .iter()
            .fold(0, |cell, &token| cell * VOCAB + token as usize)] += 1;
        stats.add(&generation.stats);
    }
    check_fit(&found, &expected, &what);
    stats
}

/// The same, where proposals of the draft, and of lookups if there are any, are accepted and
/// rejected often enough to test something.
fn check_speculative(
    sampling: &SamplingOptions,
    drafting: &DecodeOptions,
    draft: &mut Fake,
    history: usize,
) {
    let stats = check_joint(sampling, drafting, Some(draft), history);
    let tested =
        |counts: SourceStats| counts.accepted > 500 && counts.tested - counts.accepted > 500;
    assert!(
        tested(stats.draft) && (drafting.lookup.is_none() || tested(stats.lookup)),
        "{stats:?} tests nothing: {drafting:?}"
    );
    assert!(
        drafting.draft_length != DraftLength::Adaptive
            || stats.rounds > stats.draft.rounds + stats.lookup.rounds,
        "{stats:?}"
    );
}

fn sampled(temperature: f32, top_k: usize, top_p: f32) -> SamplingOptions {
    SamplingOptions {
        temperature,
        top_k,
        top_p,
        seed: 5,
        ..SamplingOptions::default()
    }
}

#[test]
fn plain_sampling_passes_its_own_test() {
    check_joint(&sampled(0.8, 0, 1.0), &DecodeOptions::default(), None, 0);
}

#[test]
fn sampled_output_has_the_targets_distribution_for_a_draft_unlike_it() {
    for (sampling, length, share) in [
        (sampled(1.0, 0, 1.0), 3, 0.0),
        (sampled(0.7, 0, 1.0), 1, 0.5),
        (sampled(1.3, 3, 1.0), 2, 0.0),
        (sampled(1.0, 0, 0.8), 3, 0.3),
        (sampled(0.9, 4, 0.9), 4, 0.6),
    ] {
        let drafting = DecodeOptions {
            draft_length: DraftLength::Fixed(length),
            ..DecodeOptions::default()
        };
        check_speculative(
            &sampling,
            &drafting,
            &mut Fake {
                vocab: VOCAB,
                ..Fake::new(99)
            }
            .like(11, share),
            0,
        );
    }
}

#[test]
fn sampled_output_has_the_targets_distribution_with_lookups_adaptive_lengths_and_a_draft_that_lacks_words()
 {
    for (sampling, lookup, draft_length, cost, blind, history) in [
        (
            sampled(0.8, 0, 1.0),
            Some(2),
            DraftLength::Adaptive,
            0.9,
            0b0_0010,
            0,
        ),
        (
            sampled(0.8, 0, 1.0),
            Some(1),
            DraftLength::Adaptive,
            0.9,
            0b1_0001,
            0,
        ),
        (
            sampled(0.8, 0, 1.0),
            Some(1),
            DraftLength::Adaptive,
            0.6,
            0b0_0010,
            0,
        ),
        (
            sampled(0.8, 0, 1.0),
            None,
            DraftLength::Adaptive,
            0.01,
            0b0_1010,
            0,
        ),
        (
            sampled(0.8, 0, 1.0),
            Some(1),
            DraftLength::Fixed(3),
            0.01,
            0b0_1110,
            0,
        ),
        (
            sampled(0.8, 4, 0.9),
            Some(1),
            DraftLength::Adaptive,
            0.7,
            0b0_1000,
            0,
        ),
        (
            sampled(0.8, 0, 1.0),
            Some(4),
            DraftLength::Fixed(3),
            0.01,
            0b0_1110,
            200,
        ),
    ] {
        let drafting = DecodeOptions {
            draft_length,
            lookup,
            costs: costs(cost),
            ..DecodeOptions::default()
        };
        check_speculative(
            &sampling,
            &drafting,
            &mut Fake {
                vocab: VOCAB,
                blind,
                ..Fake::new(99)
            }
            .like(11, 0.7),
            history,
        );
    }
}

#[test]
fn sampled_output_has_the_targets_distribution_with_processors_and_every_cut() {
    let processors = LogitsProcessors {
        repetition_penalty: 1.6,
        sequence_bias: vec![(vec![1, 2], 1.5), (vec![0], -0.5)],
        bad_words_ids: vec![vec![3, 3], vec![2, 1]],
        no_repeat_ngram_size: 3,
        min_new_tokens: Some(1),
        ends: vec![4],
        begin_suppress_tokens: vec![0],
        exponential_decay_length_penalty: Some((0, 1.3)),
        ..LogitsProcessors::default()
    };
    let cuts = SamplingOptions {
        min_p: 0.05,
        typical_p: 0.95,
        epsilon_cutoff: 0.02,
        eta_cutoff: 0.02,
        top_h: Some(0.99),
        ..sampled(1.1, 4, 0.95)
    };
    for (sampling, lookup) in [
        (sampled(0.9, 0, 1.0), None),
        (sampled(1.0, 0, 1.0), Some(1)),
        (cuts, None),
    ] {
        let drafting = DecodeOptions {
            draft_length: DraftLength::Fixed(3),
            lookup,
            processors: processors.clone(),
            ..DecodeOptions::default()
        };
        check_speculative(
            &sampling,
            &drafting,
            &mut Fake {
                vocab: VOCAB,
                ..Fake::new(99)
            }
            .like(11, 0.6),
            0,
        );
    }
}
