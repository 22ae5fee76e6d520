//! The loss of a language model.

use crate::array::Array;
use crate::error::EvalError;

/// Mean next-token cross-entropy in nats, and its gradient with respect to `logits`, in closed
/// form: `(softmax - onehot) / n`.
///
/// `logits` is `[1, n, vocab]`, the row `i` of which predicts `targets[i]`; `n` is at least 1.
/// Exponentials are taken in `f32` after the row's maximum is subtracted, sums in `f64`.
///
/// # Errors
/// [`EvalError::Loss`] if `logits` has another type or shape, or a target is not in the vocabulary.
pub fn cross_entropy(logits: &Array, targets: &[u32]) -> Result<(f32, Array), EvalError> {
    let fail = |problem: String| EvalError::Loss { problem };
    let (vocab, data) = match (logits.shape(), logits.as_f32()) {
        ([1, n, vocab], Some(data)) if *n == targets.len() && *n > 0 => (*vocab, data),
        (shape, _) => {
            return Err(fail(format!(
                "logits are {}{shape:?}, targets {}",
                logits.kind(),
                targets.len()
            )));
        }
    };
    if let Some(target) = targets.iter().find(|t| **t as usize >= vocab) {
        return Err(fail(format!("target {target} is not among {vocab} tokens")));
    }
    let share = 1.0 / targets.len() as f64;
    let mut loss = 0f64;
    let mut gradient = vec![0f32; data.len()];
    for ((row, out), &target) in data
        .chunks_exact(vocab)
        .zip(gradient.chunks_exact_mut(vocab))
        .zip(targets)
    {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0f64;
        for (o, x) in out.iter_mut().zip(row) {
            *o = (x - max).exp();
            sum += f64::from(*o);
        }
        let factor = (share / sum) as f32;
        for o in out.iter_mut() {
            *o *= factor;
        }
        out[target as usize] -= share as f32;
        loss += sum.ln() - f64::from(row[target as usize] - max);
    }
    Ok(((loss * share) as f32, Array::f32(logits.shape(), gradient)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_cost_the_logarithm_of_the_vocabulary() {
        let logits = Array::f32([1, 2, 4], vec![1000.0; 8]).expect("fits");
        let (loss, gradient) = cross_entropy(&logits, &[0, 3]).expect("fits");
        assert!((loss - 4f32.ln()).abs() < 1e-6);
        assert_eq!(
            gradient.as_f32().expect("numbers"),
            [-0.375, 0.125, 0.125, 0.125, 0.125, 0.125, 0.125, -0.375]
        );
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let data = vec![0.3, -1.2, 2.0, 0.7, 1.5, -0.4];
        let at = |data: &[f32]| {
            cross_entropy(
                &Array::f32([1, 2, 3], data.to_vec()).expect("fits"),
                &[2, 0],
            )
            .expect("fits")
        };
        let (_, gradient) = at(&data);
        for (i, g) in gradient.as_f32().expect("numbers").iter().enumerate() {
            let moved = |step: f32| {
                let mut data = data.clone();
                data[i] += step;
                f64::from(at(&data).0)
            };
            let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!(
                (slope - f64::from(*g)).abs() < 1e-4,
                "entry {i}: {g}, not {slope}"
            );
        }
    }

    #[test]
    fn rejects_what_does_not_fit() {
        let logits = Array::f32([1, 2, 3], vec![0.0; 6]).expect("fits");
        for (targets, problem) in [
            (vec![0], "targets 1"),
            (vec![0, 3], "target 3 is not among 3"),
            (vec![], "targets 0"),
        ] {
            let error = cross_entropy(&logits, &targets)
                .expect_err("doesn't fit")
                .to_string();
            assert!(error.contains(problem), "{error}");
        }
        assert!(cross_entropy(&Array::i64([1, 1, 3], vec![0; 3]).expect("fits"), &[0]).is_err());
        assert!(cross_entropy(&Array::f32([1, 1, 0], vec![]).expect("fits"), &[0]).is_err());
    }
}
