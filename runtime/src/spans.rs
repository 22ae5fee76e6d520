//! Answers that stand in a text: where they begin and end by an encoder's numbers.

use std::collections::HashMap;
use std::ops::Range;

use super::{Rows, TokenizedPair};

/// Most tokens of an answer, as in transformers' pipeline.
const LONGEST: usize = 15;

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Its bytes in the text.
    pub place: Range<usize>,
    /// Its probability: those of all places where the same words stand, summed up.
    pub probability: f64,
}

/// The `top` likeliest answers in `text`, the likeliest first, by rows of two numbers for each
/// token of `pair`: how much an answer begins and ends there. As the pipeline `question-answering`
/// of transformers 4 has them: a softmax of each over the text and the first token, which stands
/// for no answer, and the product of both.
pub fn answers(rows: &Rows, pair: &TokenizedPair, text: &str, top: usize) -> Vec<Answer> {
    let inside = |i: usize| pair.places.get(i).is_some_and(Option::is_some);
    let [starts, ends] = [0, 1].map(|side| {
        let numbers: Vec<f32> = rows
            .each()
            .map(|row| row.get(side).copied().unwrap_or(f32::NEG_INFINITY))
            .collect();
        shares(&numbers, |i| i == 0 || inside(i))
    });
    let n = starts.len().min(ends.len());
    let mut spans: Vec<(usize, usize, f64)> = (0..n)
        .filter(|start| inside(*start))
        .flat_map(|start| (start..n.min(start + LONGEST)).map(move |end| (start, end)))
        .filter(|(_, end)| inside(*end))
        .map(|(start, end)| (start, end, starts[start] * ends[end]))
        .collect();
    spans.sort_by(|a, b| b.2.total_cmp(&a.2));
    // Several of them may be the same words.
    spans.truncate(top.saturating_mul(2).saturating_add(10));
    let (mut found, mut known): (Vec<Answer>, HashMap<String, usize>) = (vec![], HashMap::new());
    for (start, end, probability) in spans {
        let (Some(first), Some(last)) = (&pair.places[start], &pair.places[end]) else {
            continue;
        };
        let place = first.start..last.end;
        let words = text.get(place.clone()).unwrap_or_default().to_lowercase();
        let at = *known.entry(words).or_insert(found.len());
        match found.get_mut(at) {
            Some(answer) => answer.probability += probability,
            None => found.push(Answer { place, probability }),
        }
    }
    found.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    found.truncate(top);
    found
}

/// The softmax over those entries that `count`; 0 for the others.
fn shares(numbers: &[f32], count: impl Fn(usize) -> bool) -> Vec<f64> {
    let counted = |i: usize, x: f32| count(i).then_some(f64::from(x));
    let most = numbers
        .iter()
        .enumerate()
        .filter_map(|(i, &x)| counted(i, x))
        .fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = numbers
        .iter()
        .enumerate()
        .map(|(i, &x)| counted(i, x).map_or(0.0, |x| (x - most).exp()))
        .collect();
    let total: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / total).collect()
}
