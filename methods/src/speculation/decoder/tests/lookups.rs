//! The loop with what is looked up in the text and in earlier ones.

use super::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn greedy_output_is_the_targets_whatever_was_written_before(
        seed in any::<u64>(),
        length in prop_oneof![(1usize..=8).prop_map(DraftLength::Fixed), Just(DraftLength::Adaptive)],
        lookup in 1usize..4,
        history in prop_oneof![Just(0usize), 1usize..200],
        prompts in prop::collection::vec(prop::collection::vec(0u32..6, 1..12), 1..6),
    ) {
        let options = DecodeOptions { max_tokens: 20, draft_length: length, lookup: Some(lookup), ..DecodeOptions::default() };
        let (mut target, fresh) = (Fake::new(seed), Fake::new(seed));
        let mut history = SuffixIndex::new(history);
        for prompt in prompts {
            let mut decoder = Decoder::new(&mut target, None, options.clone()).unwrap().remembering(history);
            for _ in 0..2 {
                let found = decoder.generate(&prompt, &mut |_| ControlFlow::Continue(())).unwrap();
                prop_assert_eq!(&found.tokens, &reference(&fresh, &prompt, &options).0);
            }
            history = decoder.into_history();
        }
    }
}

#[test]
fn a_text_that_repeats_itself_is_copied_without_a_draft() {
    /// Writes the same eight tokens over and over.
    struct Parrot(usize);
    impl TokenModel for Parrot {
        fn vocab_size(&self) -> usize {
            8
        }
        fn context_length(&self) -> usize {
            1000
        }
        fn len(&self) -> usize {
            self.0
        }
        fn extend(&mut self, tokens: &[u32], want: usize) -> Result<Logits<'_>> {
            self.0 += tokens.len();
            let rows = tokens[tokens.len() - want..].iter();
            Ok(Logits::new(
                8,
                rows.flat_map(|token| {
                    (0..8).map(move |id| f32::from(u8::from(id == (token + 3) % 8)))
                })
                .collect::<Vec<_>>(),
            ))
        }
        fn rollback(&mut self, len: usize) {
            self.0 = self.0.min(len);
        }
    }
    let options = DecodeOptions {
        max_tokens: 200,
        lookup: Some(2),
        ..DecodeOptions::default()
    };
    let mut target = Parrot(0);
    let stats = Decoder::new(&mut target, None, options)
        .unwrap()
        .generate(&[0], &mut |_| ControlFlow::Continue(()))
        .unwrap()
        .stats;
    assert!(
        stats.lookup.accepted == stats.lookup.tested && stats.rounds < 30,
        "{stats:?}"
    );
}

#[test]
fn a_text_that_was_written_before_is_copied() {
    let options = DecodeOptions {
        max_tokens: 50,
        lookup: Some(2),
        ..DecodeOptions::default()
    };
    let rounds = |history| {
        let mut target = Fake::new(4);
        let mut decoder = Decoder::new(&mut target, None, options.clone())
            .unwrap()
            .remembering(SuffixIndex::new(history));
        let mut write = || decoder.generate(&[3, 1, 4], &mut |_| ControlFlow::Continue(()));
        [write(), write()].map(|generation| generation.unwrap().stats.rounds)
    };
    let [[_, cold], [first, warm]] = [0, 100].map(rounds);
    assert!(
        2 * warm < cold && cold.abs_diff(first) < 5,
        "{warm} of {cold}"
    );
}

#[test]
fn a_draft_is_handed_the_targets_cache_when_it_proposes_and_before_that_for_the_prompt() {
    let options = DecodeOptions {
        max_tokens: 50,
        draft_length: DraftLength::Fixed(2),
        lookup: Some(2),
        ..DecodeOptions::default()
    };
    let mut draft = Fake::new(2);
    let stats = run(
        &mut Fake::new(1),
        Some(&mut draft),
        &[3, 1, 4, 3, 1],
        options,
    )
    .stats;
    assert!(
        stats.lookup.rounds > 5 && stats.draft.rounds > 5,
        "{stats:?}"
    );
    assert_eq!(draft.adoptions, 1 + stats.draft.rounds);
}
