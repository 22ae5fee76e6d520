//! What an encoder's numbers mean: probabilities of classes or words, and vectors of sentences.

use dlc_ir::Pooling;

/// A class or word by its number, and its probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Index in the row.
    pub index: usize,
    /// Probability, 0 to 1.
    pub probability: f32,
}

/// The `top` most likely entries of a row of logits, the likeliest first; earlier ones first among equals. Where exactly one entry is true,
/// probabilities are a softmax; where each may be true by itself (`several`), a sigmoid.
pub fn choices(logits: &[f32], top: usize, several: bool) -> Vec<Choice> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f32 = logits.iter().map(|x| (x - max).exp()).sum();
    let probability = |x: f32| if several { 1.0 / (1.0 + (-x).exp()) } else { (x - max).exp() / total };
    let mut choices: Vec<Choice> = logits.iter().enumerate().map(|(index, &x)| Choice { index, probability: probability(x) }).collect();
    choices.sort_by(|a, b| logits[b.index].total_cmp(&logits[a.index]).then(a.index.cmp(&b.index)));
    choices.truncate(top);
    choices
}

/// The vector of a sentence, of length 1: the first row or, of another pooling than that, the mean of the rows.
pub fn sentence_vector<'r>(rows: impl Iterator<Item = &'r [f32]>, pooling: &Pooling) -> Vec<f32> {
    let mut sum: Vec<f64> = Vec::new();
    for row in rows.take(if *pooling == Pooling::Cls { 1 } else { usize::MAX }) {
        sum.resize(row.len(), 0.0);
        sum.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(*x));
    }
    let norm = sum.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    sum.iter().map(|x| (x / norm) as f32).collect()
}

/// The cosine of two vectors of length 1.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first_and_add_up_to_one() {
        let all = choices(&[1.0, 3.0, 3.0, -1e4], 4, false);
        assert_eq!(all.iter().map(|c| c.index).collect::<Vec<_>>(), [1, 2, 0, 3]);
        assert!((all.iter().map(|c| c.probability).sum::<f32>() - 1.0).abs() < 1e-6);
        assert_eq!(choices(&[1.0, 3.0], 1, false).len(), 1);
    }

    #[test]
    fn classes_that_do_not_exclude_each_other_have_probabilities_of_their_own() {
        let all = choices(&[0.0, 2.0], 2, true);
        assert!((all[0].probability - 0.880_797).abs() < 1e-5 && (all[1].probability - 0.5).abs() < 1e-6);
    }

    #[test]
    fn sentence_vectors_have_length_one_and_ignore_scale() {
        let a = sentence_vector([&[3.0, 0.0][..], &[3.0, 8.0]].into_iter(), &Pooling::Mean);
        assert_eq!(sentence_vector([&[3.0, 0.0][..], &[3.0, 8.0]].into_iter(), &Pooling::Cls), [1.0, 0.0]);
        assert_eq!(a, [0.6, 0.8]);
        assert!((cosine(&a, &a) - 1.0).abs() < 1e-6);
        assert_eq!(sentence_vector([&[0.0, 0.0][..]].into_iter(), &Pooling::Mean), [0.0, 0.0]);
    }
}
