//! The batch against scripted fakes: what a text says doesn't depend on its company.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::speculation::decoder::tests::fake::Fake;
use crate::speculation::{Decoder, SamplingOptions};

/// Several fakes of one seed, as slots.
struct FakeBatch {
    slots: Vec<Fake>,
    batches: bool,
    writes_as_it_reads: bool,
    /// Passes over several slots until the model fails.
    fails_after: usize,
}

impl FakeBatch {
    fn new(slots: usize, batches: bool) -> Self {
        Self {
            slots: vec![Fake::new(1); slots],
            batches,
            writes_as_it_reads: true,
            fails_after: usize::MAX,
        }
    }
}

impl BatchModel for FakeBatch {
    fn slots(&self) -> usize {
        self.slots.len()
    }

    fn slot(&mut self, slot: usize) -> &mut dyn TokenModel {
        &mut self.slots[slot]
    }

    fn batches(&self) -> bool {
        self.batches
    }

    fn writes_as_it_reads(&self) -> bool {
        self.writes_as_it_reads
    }

    fn step(&mut self, tokens: &mut [(usize, u32)]) -> Result<Logits<'_>> {
        if self.fails_after == 0 {
            return Err(MethodError::Bug("the pass failed".into()));
        }
        self.fails_after -= 1;
        let mut data = Vec::new();
        tokens.reverse();
        for &mut (slot, token) in tokens {
            data.extend_from_slice(self.slots[slot].extend(&[token], 1)?.row(0));
        }
        Ok(Logits::new(self.slots[0].vocab, data))
    }

    fn copy(&mut self, from: usize, to: usize, len: usize) -> Result<()> {
        let tokens = self.slots[from].cache[..len].to_vec();
        self.slots[to].rollback(0);
        self.slots[to].extend(&tokens, 0)?;
        self.slots[to].passes.clear();
        Ok(())
    }

    fn save(&mut self, slot: usize, len: usize) -> Result<Option<Vec<Vec<u8>>>> {
        let tokens = self.slots[slot].cache[..len].iter();
        Ok(Some(vec![tokens.flat_map(|t| t.to_le_bytes()).collect()]))
    }

    fn restore(&mut self, slot: usize, len: usize, cache: &[Vec<u8>]) -> Result<()> {
        let (words, _) = cache[0].as_chunks::<4>();
        let tokens: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        assert_eq!(tokens.len(), len);
        self.slots[slot].rollback(0);
        self.slots[slot].extend(&tokens, 0)?;
        self.slots[slot].passes.clear();
        Ok(())
    }
}

fn batch(model: FakeBatch, draft: bool) -> Batch {
    let draft = draft.then(|| Box::new(Fake::new(2).like(1, 0.9)) as Box<dyn TokenModel + Send>);
    let options = BatchOptions {
        piece: 2,
        costs: CostTable::default(),
    };
    Batch::new(Box::new(model), draft, options).unwrap()
}

fn options(max_tokens: usize) -> DecodeOptions {
    DecodeOptions {
        max_tokens,
        prefill_chunk: 4,
        lookup: Some(1),
        stop_tokens: vec![5],
        logprobs: Some(1),
        ..DecodeOptions::default()
    }
}

fn alone(prompt: &[u32], options: DecodeOptions) -> Generation {
    let mut target = Fake::new(1);
    let mut decoder = Decoder::new(&mut target, None, options).unwrap();
    let go_on = &mut |_: &[u32]| std::ops::ControlFlow::Continue(());
    decoder.generate(prompt, go_on).unwrap()
}

#[derive(Default)]
struct Told {
    tokens: BTreeMap<TextId, Vec<u32>>,
    ended: BTreeMap<TextId, Generation>,
    failed: Vec<TextId>,
}

impl Told {
    fn turn(&mut self, batch: &mut Batch) {
        batch.turn(&mut |id, progress| match progress {
            Progress::Tokens(tokens, said) => {
                assert_eq!(tokens.len(), said.len());
                self.tokens.entry(id).or_default().extend(tokens);
            }
            Progress::Ended(generation) => {
                self.ended.insert(id, *generation);
            }
            Progress::Failed(_) => self.failed.push(id),
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn greedy_texts_are_what_they_are_alone(
        texts in prop::collection::vec((prop::collection::vec(0u32..5, 1..12), 0usize..14, 0usize..4), 1..8),
        (slots, batches, draft) in (1usize..5, any::<bool>(), any::<bool>()),
    ) {
        let mut batch = batch(FakeBatch::new(slots, batches), draft);
        let (mut told, mut asked) = (Told::default(), BTreeMap::new());
        for (prompt, most, turns) in texts {
            while !batch.has_room() {
                told.turn(&mut batch);
            }
            let id = batch.begin(&prompt, options(most)).unwrap();
            asked.insert(id, (prompt, most));
            (0..turns).for_each(|_| told.turn(&mut batch));
        }
        while batch.active() > 0 {
            told.turn(&mut batch);
        }
        for (id, (prompt, most)) in asked {
            let expected = alone(&prompt, options(most));
            let found = &told.ended[&id];
            prop_assert_eq!(&found.tokens, &expected.tokens);
            prop_assert_eq!((found.stop, found.logprobs.len()), (expected.stop, expected.tokens.len()));
            prop_assert_eq!(&told.tokens.get(&id).cloned().unwrap_or_default(), &found.tokens);
        }
    }
}

#[test]
fn sampled_texts_in_company_are_drawn_as_plain_ones() {
    let sampled = |seed| DecodeOptions {
        sampling: SamplingOptions {
            temperature: 1.0,
            seed,
            ..SamplingOptions::default()
        },
        lookup: None,
        ..options(20)
    };
    let mut batch = batch(FakeBatch::new(2, true), false);
    let ids: Vec<TextId> = [(vec![1, 2], 7), (vec![3], 8)]
        .into_iter()
        .map(|(prompt, seed)| batch.begin(&prompt, sampled(seed)).unwrap())
        .collect();
    let mut told = Told::default();
    while batch.active() > 0 {
        told.turn(&mut batch);
    }
    assert_eq!(
        told.ended[&ids[0]].tokens,
        alone(&[1, 2], sampled(7)).tokens
    );
    assert_eq!(told.ended[&ids[1]].tokens, alone(&[3], sampled(8)).tokens);
}

#[test]
fn what_a_slot_holds_of_a_prompt_is_not_read_again() {
    let mut batch = batch(FakeBatch::new(3, true), false);
    let mut told = Told::default();
    let system: Vec<u32> = (0..20).map(|i| i % 5).collect();
    let ask = |batch: &mut Batch, told: &mut Told, end: &[u32]| {
        let before = batch.stats();
        batch.begin(&[&system, end].concat(), options(3)).unwrap();
        while batch.active() > 0 {
            told.turn(batch);
        }
        let after = batch.stats();
        (after.reused - before.reused, after.read - before.read)
    };
    assert_eq!(ask(&mut batch, &mut told, &[1, 1]), (0, 21));
    let first_answer = told.ended.values().next().unwrap().tokens.clone();
    // The answer belongs to the conversation.
    let next = [&[1, 1], first_answer.as_slice(), &[2; 12]].concat();
    let held = 22 + first_answer.len() - 1;
    assert_eq!(ask(&mut batch, &mut told, &next), (held, 12));
    assert_eq!(ask(&mut batch, &mut told, &[4, 4]), (20, 1));
    // The conversation's slot was not taken for it.
    assert_eq!(ask(&mut batch, &mut told, &next).1, 0);
}

#[test]
fn what_was_written_is_read_again_where_it_would_be_read_otherwise() {
    let model = FakeBatch {
        writes_as_it_reads: false,
        ..FakeBatch::new(2, true)
    };
    let mut batch = batch(model, false);
    let mut told = Told::default();
    let prompt: Vec<u32> = (0..40).map(|i| i % 5).collect();
    let first = batch.begin(&prompt, options(9)).unwrap();
    // The next one begins with what is being written.
    let mut next = prompt.clone();
    while told
        .tokens
        .get(&first)
        .is_none_or(|written| written.len() < 3)
    {
        told.turn(&mut batch);
    }
    next.extend(&told.tokens[&first]);
    next.push(1);
    batch.begin(&next, options(3)).unwrap();
    assert_eq!(batch.stats().reused, prompt.len() - 1);
    while batch.active() > 0 {
        told.turn(&mut batch);
    }
    let before = batch.stats().reused;
    batch.begin(&next, options(3)).unwrap();
    assert_eq!(batch.stats().reused - before, next.len() - 1);
    assert_eq!(batch.prefixes().unwrap()[0].tokens, prompt[..39]);
}

#[test]
fn another_batch_takes_over_what_slots_hold() {
    let mut told = Told::default();
    let mut run = |batch: &mut Batch, prompt: &[u32]| {
        let before = batch.stats();
        let id = batch.begin(prompt, options(6)).unwrap();
        while batch.active() > 0 {
            told.turn(batch);
        }
        let after = batch.stats();
        let tokens = told.ended[&id].tokens.clone();
        (tokens, after.reused - before.reused)
    };
    let prompts = [1, 4, 2].map(|first| [vec![first], vec![3; 23]].concat());
    let mut first = batch(FakeBatch::new(3, true), false);
    let texts = prompts.each_ref().map(|prompt| run(&mut first, prompt).0);
    let kept = first.prefixes().unwrap();
    let beginnings = kept.iter().map(|prefix| prefix.tokens[0]);
    assert_eq!(beginnings.collect::<Vec<_>>(), [1, 4, 2]);
    let mut second = batch(FakeBatch::new(2, true), true);
    let restored = kept.iter().map(|prefix| second.restore(prefix).unwrap());
    assert_eq!(restored.collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(run(&mut second, &prompts[1]), (texts[1].clone(), 23));
    assert_eq!(run(&mut second, &prompts[0]), (texts[0].clone(), 23));
    let strange = Prefix {
        tokens: vec![1_000_000],
        cache: vec![],
    };
    let mut empty = batch(FakeBatch::new(1, true), false);
    assert!(matches!(
        empty.restore(&strange),
        Err(MethodError::Input(_))
    ));
}

#[test]
fn a_beginning_is_copied_from_a_text_under_way() {
    let mut batch = batch(FakeBatch::new(2, true), false);
    let mut told = Told::default();
    let prompt: Vec<u32> = (0..30).map(|i| i % 5).collect();
    let first = batch.begin(&prompt, options(4)).unwrap();
    (0..3).for_each(|_| told.turn(&mut batch));
    let second = batch.begin(&prompt, options(4)).unwrap();
    assert_eq!(batch.stats().reused, 12);
    while batch.active() > 0 {
        told.turn(&mut batch);
    }
    assert_eq!(told.ended[&first].tokens, told.ended[&second].tokens);
}

#[test]
fn a_text_that_is_cancelled_leaves_its_slot_to_the_next() {
    let mut batch = batch(FakeBatch::new(1, true), true);
    let mut told = Told::default();
    let first = batch.begin(&[1, 2, 3], options(30)).unwrap();
    told.turn(&mut batch);
    assert!(!batch.has_room());
    assert_eq!(batch.cancel(first).unwrap().stop, StopReason::Caller);
    assert!(batch.cancel(first).is_none());
    let second = batch.begin(&[1, 2, 4], options(5)).unwrap();
    while batch.active() > 0 {
        told.turn(&mut batch);
    }
    assert_eq!(
        told.ended[&second].tokens,
        alone(&[1, 2, 4], options(5)).tokens
    );
}

#[test]
fn texts_whose_pass_fails_end_and_later_ones_do_not() {
    let model = FakeBatch {
        fails_after: 1,
        ..FakeBatch::new(2, true)
    };
    let mut batch = batch(model, false);
    let mut told = Told::default();
    let endless = DecodeOptions {
        stop_tokens: vec![],
        ..options(20)
    };
    let ids = [[1u32], [2]].map(|prompt| batch.begin(&prompt, endless.clone()).unwrap());
    (0..3).for_each(|_| told.turn(&mut batch));
    assert_eq!((told.failed, batch.active()), (ids.to_vec(), 0));
    let mut told = Told::default();
    let third = batch.begin(&[1], options(5)).unwrap();
    while batch.active() > 0 {
        told.turn(&mut batch);
    }
    assert_eq!(told.ended[&third].tokens, alone(&[1], options(5)).tokens);
}

#[test]
fn prompts_that_no_model_can_continue_are_refused_at_once() {
    let mut batch = batch(FakeBatch::new(1, true), false);
    for prompt in [vec![], vec![0; 64], vec![6]] {
        let error = batch.begin(&prompt, options(1)).unwrap_err();
        assert!(matches!(error, MethodError::Input(_)), "{error}");
    }
    assert!(batch.has_room());
    batch.begin(&[1], options(1)).unwrap();
    assert!(matches!(
        batch.begin(&[1], options(1)),
        Err(MethodError::Bug(_))
    ));
}
