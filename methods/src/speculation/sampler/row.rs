//! What one row of logits says, in loops without branches over lanes, which compile to vector
//! instructions.

use crate::{MethodError, Result};

const LANES: usize = 16;

/// The most likely token (of equal ones the lowest id) and its logit.
pub(crate) fn argmax(logits: &[f32], position: usize) -> Result<(u32, f32)> {
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let (mut largest, mut broken) = ([f32::NEG_INFINITY; LANES], [false; LANES]);
    for chunk in chunks {
        for lane in 0..LANES {
            largest[lane] = largest[lane].max(chunk[lane]);
            broken[lane] |= chunk[lane].is_nan();
        }
    }
    let max = largest
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, f32::max);
    if broken.contains(&true) || rest.iter().any(|x| x.is_nan()) {
        return Err(MethodError::Logits {
            position,
            found: "NaN",
        });
    }
    match logits.iter().position(|&x| x >= max) {
        Some(best) if max.is_finite() => Ok((best as u32, max)),
        _ => Err(MethodError::Logits {
            position,
            found: if max == f32::INFINITY {
                "+inf"
            } else {
                "no finite value"
            },
        }),
    }
}

/// Logits nearer than this are a tie: a pass over several tokens may round them the other way than
/// a pass over one.
pub const TIE: f32 = 1e-4;

/// Whether another token ties with the most likely one, `best`.
pub(super) fn is_tie(logits: &[f32], best: u32) -> bool {
    logits.get(best as usize).is_some_and(|max| {
        let near = logits.iter().filter(|&&logit| max - logit < TIE);
        near.count() > 1
    })
}

/// The most likely token but for `best` (of equal ones the lowest id); None if no other can be drawn.
pub(in crate::speculation) fn runner_up(logits: &[f32], best: u32) -> Option<u32> {
    let before = logits.get(..best as usize)?;
    let after = logits.get(best as usize + 1..)?;
    let of = |part: &[f32], from: u32| {
        let (id, score) = argmax(part, 0).ok()?;
        Some((from + id, score))
    };
    match (of(before, 0), of(after, best + 1)) {
        (Some(a), Some(b)) => Some(if b.1 > a.1 { b.0 } else { a.0 }),
        (a, b) => a.or(b).map(|found| found.0),
    }
}

/// The probability of the most likely token at temperature 1, before any cut.
pub(in crate::speculation) fn top_probability(logits: &[f32], position: usize) -> Result<f32> {
    let (_, max) = argmax(logits, position)?;
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += exp(chunk[lane] - max);
        }
    }
    let rest: f32 = rest.iter().map(|x| exp(x - max)).sum();
    Ok(1.0 / (sums.iter().sum::<f32>() + rest))
}

/// `e^((x - max) * inverse_temperature)` of each logit: the shares of a softmax before they are
/// divided by their sum. `max` is the largest logit.
pub(super) fn shares(logits: &[f32], max: f32, inverse_temperature: f32) -> Vec<f32> {
    logits
        .iter()
        .map(|x| exp((x - max) * inverse_temperature))
        .collect()
}

/// `e^x` for `x` up to 0, within 3e-7 of it relatively; 0 below -87, where it is less than the
/// smallest normal number.
///
/// `x = n ln 2 + r` with an integer n: a polynomial gives `e^r`, and n goes into the exponent.
#[inline]
fn exp(x: f32) -> f32 {
    const SMALLEST: f32 = -87.0;
    /// Added to a small number, it leaves the nearest integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first with so few bits that its multiples are exact.
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    /// 1 / k! for k = 6 down to 0.
    const FACTORS: [f32; 7] = [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let rounded = x.max(SMALLEST) * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x.max(SMALLEST) - n * LN_2.0) - n * LN_2.1;
    let mantissa = FACTORS.iter().fold(0.0, |sum, factor| sum * r + factor);
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x < SMALLEST { 0.0 } else { mantissa * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_likely_token_is_found_in_long_rows_and_what_cannot_be_drawn_has_no_share() {
        let mut logits = vec![f32::NEG_INFINITY; 1003];
        (logits[1001], logits[700], logits[900]) = (1.0, 2.0, 2.0);
        assert_eq!(argmax(&logits, 0).unwrap(), (700, 2.0));
        let expected = 1.0 / (2.0 + (-1f32).exp());
        assert!((top_probability(&logits, 0).unwrap() - expected).abs() < 1e-6);
        logits[5] = f32::NAN;
        assert!(argmax(&logits, 0).is_err());
    }

    #[test]
    fn ties_are_with_the_most_likely_token() {
        assert!(is_tie(&[1.0, 1.000_05, 0.0], 1) && !is_tie(&[1.0, 1.001, 0.0], 1));
        assert!(!is_tie(&[0.0, 1.0, 0.0], 1) && !is_tie(&[], 0));
    }

    #[test]
    fn the_runner_up_is_the_second_of_all() {
        assert_eq!(runner_up(&[1.0, 3.0, 2.0, 0.0], 1), Some(2));
        assert_eq!(runner_up(&[1.0, 2.0, 3.0, 2.0], 2), Some(1));
        assert_eq!(runner_up(&[1.0, 3.0, 3.0, 3.0], 1), Some(2));
        assert_eq!(runner_up(&[5.0, 3.0, 4.0], 0), Some(2));
        assert_eq!(
            runner_up(&[f32::NEG_INFINITY, 3.0, f32::NEG_INFINITY], 1),
            None
        );
        assert_eq!(runner_up(&[3.0], 0), None);
        assert_eq!(runner_up(&[3.0], 1), None);
    }

    #[test]
    fn exponentials_are_as_exact_as_their_arguments() {
        for i in 0..=870_000u32 {
            let x = -(i as f32) / 1e4;
            let exact = f64::from(x).exp();
            assert!(
                (f64::from(exp(x)) / exact - 1.0).abs() < 3e-7,
                "e^{x} = {exact}, not {}",
                exp(x)
            );
        }
        assert_eq!(
            [0.0, -87.1, f32::NEG_INFINITY].map(|x| exp(x).to_bits()),
            [1.0, 0.0, 0.0].map(f32::to_bits)
        );
    }
}
