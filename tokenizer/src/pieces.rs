//! The merges of `SentencePiece`'s BPE, which has scores of pieces instead.

use std::cmp::Ordering;

use dlc_errors::printable::shown;
use serde_json::{Value as Json, json};

/// The longest piece that is read, in bytes. Those of models have some 50: making merges takes the
/// square of it.
const LONGEST_PIECE: usize = 512;
/// Most merges, and the bytes of all: those of 260 000 pieces are some 600 000.
const MOST_MERGES: usize = 1 << 21;
const MOST_MERGED_BYTES: usize = 64 << 20;

/// Every way to make a piece of two others, the best piece first, as transformers orders them
/// (`generate_merges` in `convert_slow_tokenizer.py`). `id` tells the id of a piece that others are
/// made of.
///
/// # Errors
/// What is too long or too much, and no vocabulary's.
pub fn merges<'p>(
    pieces: impl IntoIterator<Item = (&'p str, f64)>,
    id: impl Fn(&str) -> Option<u32>,
) -> Result<Vec<Json>, String> {
    let mut merges: Vec<(f64, usize, usize, &str, &str)> = Vec::new();
    let mut bytes = 0;
    for (text, score) in pieces {
        if text.len() > LONGEST_PIECE {
            return Err(format!(
                "the piece `{}` is longer than the {LONGEST_PIECE} bytes that dlc reads",
                shown(text)
            ));
        }
        let splits = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let mut ways: Vec<_> = splits
            .filter_map(|(left, right)| Some(((id(left)?, id(right)?), left, right)))
            .collect();
        ways.sort_by_key(|(ids, ..)| *ids);
        bytes += ways.len() * text.len();
        if merges.len() + ways.len() > MOST_MERGES || bytes > MOST_MERGED_BYTES {
            return Err(format!(
                "there are more ways to make pieces of pieces than the {MOST_MERGES} that dlc reads"
            ));
        }
        let characters = text.chars().count();
        merges.extend(ways.into_iter().map(|(_, left, right)| {
            let of_left = left.chars().count();
            (score, of_left, characters - of_left, left, right)
        }));
    }
    merges.sort_by(|a, b| {
        let by_score = b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal);
        by_score.then((b.1, b.2).cmp(&(a.1, a.2)))
    });
    let pairs = merges.into_iter();
    Ok(pairs
        .map(|(.., left, right)| json!([left, right]))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_piece_comes_first_and_of_its_ways_the_one_with_the_longest_start() {
        let pieces = [
            ("a", 0.0),
            ("b", 0.0),
            ("ab", -2.0),
            ("ba", -1.0),
            ("aba", -3.0),
        ];
        let id = |text: &str| {
            (0..)
                .zip(pieces)
                .find(|(_, p)| p.0 == text)
                .map(|(id, _)| id)
        };
        let found = merges(pieces, id).unwrap();
        let expected = json!([["b", "a"], ["a", "b"], ["ab", "a"], ["a", "ba"]]);
        assert_eq!(Json::from(found), expected);
    }

    #[test]
    fn pieces_that_no_model_has_are_refused() {
        let long = "a".repeat(LONGEST_PIECE + 1);
        assert!(merges([(long.as_str(), 0.0)], |_| None).is_err());
        let all: Vec<String> = (1..=LONGEST_PIECE).map(|n| "a".repeat(n)).collect();
        let many = (0..64).flat_map(|_| all.iter().map(|piece| (piece.as_str(), 0.0)));
        assert!(merges(many, |text| Some(text.len() as u32)).is_err());
    }
}
