//! What an encoder's numbers mean: probabilities of classes or words, and vectors of sentences.

use dlc_ir::{Pooling, Sentence, Similarity};

use super::Rows;

/// A class or word by its number, and its probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Index in the row.
    pub index: usize,
    /// Probability, 0 to 1.
    pub probability: f32,
}

/// The `top` most likely entries of a row of logits, the likeliest first; earlier ones first among
/// equals. Where exactly one entry is true, probabilities are a softmax; where each may be true by
/// itself (`several`), a sigmoid.
pub fn choices(logits: &[f32], top: usize, several: bool) -> Vec<Choice> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f32 = logits.iter().map(|x| (x - max).exp()).sum();
    let probability = |x: f32| {
        if several {
            1.0 / (1.0 + (-x).exp())
        } else {
            (x - max).exp() / total
        }
    };
    let mut choices: Vec<Choice> = logits
        .iter()
        .enumerate()
        .map(|(index, &x)| Choice {
            index,
            probability: probability(x),
        })
        .collect();
    choices.sort_by(|a, b| {
        logits[b.index]
            .total_cmp(&logits[a.index])
            .then(a.index.cmp(&b.index))
    });
    choices.truncate(top);
    choices
}

/// The vector of a text, as Sentence Transformers makes it: rows pooled, scaled, cut. The first
/// `prompt` rows are the prompt's.
pub fn sentence_vector(rows: &Rows, sentence: &Sentence, prompt: usize) -> Vec<f32> {
    let first = if sentence.exclude_prompt { prompt } else { 0 };
    let mut vector: Vec<f64> = sentence
        .pooling
        .iter()
        .flat_map(|pooling| pooled(rows, first, pooling))
        .collect();
    if sentence.normalize {
        let norm = vector
            .iter()
            .map(|x| x * x)
            .sum::<f64>()
            .sqrt()
            .max(f64::MIN_POSITIVE);
        for x in &mut vector {
            *x /= norm;
        }
    }
    vector.truncate(sentence.truncate_dim.unwrap_or(usize::MAX));
    vector.into_iter().map(|x| x as f32).collect()
}

/// The rows from `first` on as one; of none, zeros.
fn pooled(rows: &Rows, first: usize, pooling: &Pooling) -> Vec<f64> {
    let own = || rows.each().enumerate().skip(first);
    let zeros = || vec![0.0; rows.width];
    let wide = |row: &[f32]| row.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let sum = |weight: &dyn Fn(usize) -> f64| {
        own().fold((zeros(), 0.0), |(mut sum, total), (i, row)| {
            sum.iter_mut()
                .zip(row)
                .for_each(|(s, x)| *s += weight(i) * f64::from(*x));
            (sum, total + weight(i))
        })
    };
    let divided = |(sum, total): (Vec<f64>, f64), by: fn(f64) -> f64| {
        sum.into_iter().map(|x| x / by(total.max(1e-9))).collect()
    };
    match pooling {
        Pooling::Cls => own().next().map_or_else(zeros, |(_, row)| wide(row)),
        Pooling::LastToken => own().last().map_or_else(zeros, |(_, row)| wide(row)),
        Pooling::Max => own()
            .map(|(_, row)| wide(row))
            .reduce(|a, b| a.iter().zip(b).map(|(x, y)| x.max(y)).collect())
            .unwrap_or_else(zeros),
        Pooling::MeanSqrtLenTokens => divided(sum(&|_| 1.0), f64::sqrt),
        Pooling::WeightedMean => divided(sum(&|i| (i + 1) as f64), |total| total),
        Pooling::Mean | Pooling::Other(_) => divided(sum(&|_| 1.0), |total| total),
    }
}

/// How alike two vectors are, the larger the more.
pub fn similarity(kind: Similarity, a: &[f32], b: &[f32]) -> f32 {
    let sum = |of: fn(f64, f64) -> f64| {
        a.iter()
            .zip(b)
            .map(|(&x, &y)| of(f64::from(x), f64::from(y)))
            .sum::<f64>()
    };
    let similarity = match kind {
        Similarity::Cosine => {
            let length = |v: &[f32]| v.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            sum(|x, y| x * y) / (length(a) * length(b)).max(f64::MIN_POSITIVE)
        }
        Similarity::Dot => sum(|x, y| x * y),
        Similarity::Euclidean => -sum(|x, y| (x - y).powi(2)).sqrt(),
        Similarity::Manhattan => -sum(|x, y| (x - y).abs()),
    };
    similarity as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first_and_add_up_to_one() {
        let all = choices(&[1.0, 3.0, 3.0, -1e4], 4, false);
        assert_eq!(
            all.iter().map(|c| c.index).collect::<Vec<_>>(),
            [1, 2, 0, 3]
        );
        assert!((all.iter().map(|c| c.probability).sum::<f32>() - 1.0).abs() < 1e-6);
        assert_eq!(choices(&[1.0, 3.0], 1, false).len(), 1);
    }

    #[test]
    fn classes_that_do_not_exclude_each_other_have_probabilities_of_their_own() {
        let all = choices(&[0.0, 2.0], 2, true);
        assert!(
            (all[0].probability - 0.880_797).abs() < 1e-5
                && (all[1].probability - 0.5).abs() < 1e-6
        );
    }

    /// What `pooling` makes of these rows, as it is.
    fn raw(rows: &[[f32; 2]], pooling: &[Pooling]) -> Vec<f32> {
        let sentence = Sentence {
            pooling: pooling.to_vec(),
            normalize: false,
            ..Sentence::default()
        };
        sentence_vector(
            &Rows {
                width: 2,
                data: rows.concat(),
            },
            &sentence,
            0,
        )
    }

    #[test]
    fn each_pooling_is_that_of_sentence_transformers() {
        let rows = [[3.0, 0.0], [3.0, 8.0], [-3.0, 1.0], [1.0, 3.0]];
        for (pooling, expected) in [
            (Pooling::Cls, [3.0, 0.0]),
            (Pooling::LastToken, [1.0, 3.0]),
            (Pooling::Max, [3.0, 8.0]),
            (Pooling::Mean, [1.0, 3.0]),
            (Pooling::MeanSqrtLenTokens, [2.0, 6.0]),
            (Pooling::WeightedMean, [0.4, 3.1]),
        ] {
            assert_eq!(
                raw(&rows, std::slice::from_ref(&pooling)),
                expected,
                "{pooling:?}"
            );
            assert_eq!(raw(&[], &[pooling]), [0.0, 0.0]);
        }
        assert_eq!(
            raw(&rows, &[Pooling::Cls, Pooling::Mean]),
            [3.0, 0.0, 1.0, 3.0]
        );
    }

    #[test]
    fn vectors_are_scaled_cut_and_made_without_the_prompt_as_asked() {
        let rows = Rows {
            width: 2,
            data: vec![9.0, 9.0, 3.0, 0.0, 3.0, 8.0],
        };
        let sentence = Sentence {
            exclude_prompt: true,
            ..Sentence::default()
        };
        assert_eq!(sentence_vector(&rows, &sentence, 1), [0.6, 0.8]);
        assert_eq!(
            sentence_vector(
                &rows,
                &Sentence {
                    pooling: vec![Pooling::WeightedMean],
                    normalize: false,
                    ..sentence.clone()
                },
                1
            ),
            [3.0, 4.8]
        );
        assert_eq!(
            sentence_vector(
                &rows,
                &Sentence {
                    truncate_dim: Some(1),
                    ..sentence
                },
                1
            ),
            [0.6]
        );
        assert_eq!(
            sentence_vector(
                &Rows {
                    width: 2,
                    data: vec![0.0, 0.0]
                },
                &Sentence::default(),
                0
            ),
            [0.0, 0.0]
        );
    }

    #[test]
    fn the_more_alike_the_larger() {
        let (a, b) = ([3.0, 4.0], [3.0, 0.0]);
        for (kind, expected) in [
            (Similarity::Cosine, 0.6),
            (Similarity::Dot, 9.0),
            (Similarity::Euclidean, -4.0),
            (Similarity::Manhattan, -4.0),
        ] {
            assert!(
                (similarity(kind, &a, &b) - expected).abs() < 1e-6,
                "{kind:?}"
            );
            assert!(similarity(kind, &a, &a) > expected || kind == Similarity::Dot);
        }
        assert!(similarity(Similarity::Cosine, &[0.0], &[0.0]).abs() < 1e-6);
    }
}
