//! What a tree of drafts could gain, against a count by hand over the greedy text.

use super::*;

const TOKENS: usize = 2000;
const PROMPT: [u32; 3] = [1, 2, 3];

/// How a draft's choices at one place of the text compare with it.
#[derive(Clone, Copy, PartialEq)]
enum Guess {
    Right,
    /// Only the second choice is.
    Second,
    Wrong,
}

/// Rounds that proposals of `length` tokens take to the end of the text, and those of them in which
/// the second choice was right. As a tree, a round that has it right decides one token more.
fn rounds(guesses: &[Guess], length: usize, tree: bool) -> (usize, usize) {
    let (mut at, mut rounds, mut hits) = (0, 0, 0);
    while at < guesses.len() {
        let proposed = &guesses[at..guesses.len().min(at + length.min(guesses.len() - at - 1))];
        let accepted = proposed
            .iter()
            .take_while(|&&guess| guess == Guess::Right)
            .count();
        let hit = proposed.get(accepted) == Some(&Guess::Second);
        at += accepted + 1 + usize::from(hit && tree);
        rounds += 1;
        hits += usize::from(hit);
    }
    (rounds, hits)
}

#[test]
fn the_gain_of_a_tree_is_bounded_by_the_rejections_at_which_the_second_choice_was_right() {
    for (share, length) in [(0.0, 1), (0.5, 1), (0.5, 3), (0.8, 2), (0.8, 4), (0.95, 8)] {
        let (mut target, draft) = (
            Fake {
                context: 4096,
                ..Fake::new(4)
            },
            Fake {
                context: 4096,
                ..Fake::new(5)
            }
            .like(4, share),
        );
        let options = DecodeOptions {
            max_tokens: TOKENS,
            draft_length: DraftLength::Fixed(length),
            costs: costs(0.3),
            ..DecodeOptions::default()
        };
        let Generation { tokens, stats, .. } = run(
            &mut target,
            Some(&mut draft.clone()),
            &PROMPT,
            options.clone(),
        );
        let text = [&PROMPT[..], &tokens].concat();
        let guess = |at: usize| {
            let (scores, token) = (draft.scores(&text[..at]), text[at] as usize);
            let ahead = |id: &usize| {
                scores[token]
                    .total_cmp(&scores[*id])
                    .then(id.cmp(&token))
                    .is_lt()
            };
            match (0..scores.len()).filter(ahead).count() {
                0 => Guess::Right,
                1 => Guess::Second,
                _ => Guess::Wrong,
            }
        };
        let guesses: Vec<Guess> = (PROMPT.len()..text.len()).map(guess).collect();
        assert_eq!(
            (stats.rounds, stats.draft.runner_up),
            rounds(&guesses, length, false),
            "{share} {length}"
        );
        let fewer = stats.rounds as f64 / rounds(&guesses, length, true).0 as f64;
        let widening = stats.cost / stats.tree_cost;
        let (expected, most) = (
            stats.tree_gain_expected() / widening,
            stats.tree_gain_at_most() / widening,
        );
        assert!(
            fewer > 1.0 && fewer <= most,
            "{share} {length}: {fewer} times fewer rounds, {most} at most"
        );
        assert!(
            (fewer / expected - 1.0).abs() < 0.05,
            "{share} {length}: {fewer} times fewer rounds, {expected} expected"
        );
    }
}

#[test]
fn a_tree_costs_a_wider_pass_in_the_rounds_of_the_draft() {
    let options = DecodeOptions {
        max_tokens: 41,
        draft_length: DraftLength::Fixed(2),
        costs: costs(0.3),
        ..DecodeOptions::default()
    };
    let stats = run(&mut Fake::new(1), Some(&mut Fake::new(1)), &[0], options).stats;
    let pass = |k| costs(0.3).pass(k);
    // 13 rounds of three tokens, and two more tokens, of which one is proposed.
    assert_eq!(
        (stats.rounds, stats.drafted(), stats.draft.runner_up),
        (14, 27, 0)
    );
    let expected = 13.0 * (pass(5) - pass(3)) + pass(3) - pass(2);
    assert!(
        (stats.tree_cost - stats.cost - expected).abs() < 1e-9,
        "{stats:?}"
    );
    assert!((stats.tree_gain_at_most() - stats.cost / stats.tree_cost).abs() < 1e-12);
    assert!((Stats::default().tree_gain_at_most() - 1.0).abs() < 1e-12);
}
