//! Quantising a matrix in groups along its rows, group by group as it is read: codes, scales and
//! zero points are three readings of one fit.
//!
//! Scales have the matrix's element type. They are rounded to it before codes are found, so that no
//! code belongs to a scale that nobody multiplies with. No data but the weights themselves decide.
//! Nothing here keeps a quantised copy.

use std::ops::Range;

use super::Expr;
use super::read::ROWS_TILE;
use crate::op::GroupFormat;
use crate::types::DType;

/// How scale and zero point of a group are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refinement {
    /// From the extremes, so that none is clipped (round to nearest).
    None,
    /// Half-quadratic quantisation (HQQ, Badri and Shaji, 2023), started from the extremes.
    ///
    /// Alternates between the residual's proximal step for the norm with `p` = 3/4 and a
    /// least-squares step for zero point and scale. Ours: residuals are measured in steps of the
    /// scale, zero points stay whole numbers, as `MatMulNBits` wants them, and of all iterates, the
    /// start among them, the one with the smallest squared error is taken, so that no group gets
    /// worse.
    Hqq,
}

/// What a quantised matrix is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuantizedPart {
    /// Packed codes.
    Codes,
    /// Scales.
    Scales,
    /// Packed zero points.
    ZeroPoints,
}

impl GroupFormat {
    /// Elements of one part in a row of `columns` weights.
    pub(super) fn row_elements(self, part: QuantizedPart, columns: usize) -> usize {
        match part {
            QuantizedPart::Codes => self.groups(columns) * self.code_bytes(),
            QuantizedPart::Scales => self.groups(columns),
            QuantizedPart::ZeroPoints => self.zero_point_bytes(columns),
        }
    }
}

/// How a matrix is quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quantizer {
    /// Bits and groups.
    pub format: GroupFormat,
    /// Whether every zero point is the default one.
    pub symmetric: bool,
    /// How scales and zero points are found.
    pub refinement: Refinement,
}

/// Most rounds of HQQ, and the share of the squared error by which a round must lessen it for
/// another to follow.
const ROUNDS: usize = 10;
const LEAST_GAIN: f32 = 1e-3;
/// Weight of the squared against the `p`-norm term at first, and its growth (HQQ's own).
const BETA: f32 = 10.0;
const KAPPA: f32 = 1.01;

/// Scale and zero point of a group.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Fit {
    scale: f32,
    zero_point: f32,
}

impl Quantizer {
    /// Sum of squared errors, and of squares, of a group of weights once it is quantised, with a
    /// scale of type `scales`.
    pub fn squared_error(&self, weights: &[f32], scales: DType) -> (f64, f64) {
        let [square] = sums(weights, |w| [w * w]);
        let fit = self.fit(weights, scales);
        (
            f64::from(self.sums(weights, fit, f32::INFINITY).error),
            f64::from(square),
        )
    }

    fn fit(&self, weights: &[f32], scales: DType) -> Fit {
        let start = self.nearest(weights, scales);
        match self.refinement {
            Refinement::None => start,
            Refinement::Hqq => self.refined(weights, start, scales),
        }
    }

    fn nearest(&self, weights: &[f32], scales: DType) -> Fit {
        if self.symmetric {
            // The largest magnitude gets the code at the end of the longer side.
            let extreme = weights
                .iter()
                .fold(0f32, |m, &w| if w.abs() > m.abs() { w } else { m });
            let zero_point = f32::from(self.format.default_zero_point());
            return Fit {
                scale: scales.rounded(extreme / -zero_point),
                zero_point,
            };
        }
        let (low, high) = weights
            .iter()
            .fold((0f32, 0f32), |(low, high), &w| (low.min(w), high.max(w)));
        let largest = f32::from(self.format.largest_code());
        let scale = scales.rounded((high - low) / largest);
        Fit {
            scale,
            zero_point: (-low * inverse(scale)).round().min(largest),
        }
    }

    fn refined(&self, weights: &[f32], start: Fit, scales: DType) -> Fit {
        let (mut fit, mut best, mut beta) = (start, (start, f32::INFINITY), BETA);
        for _ in 0..=ROUNDS {
            let sums = self.sums(weights, fit, beta);
            let rests = sums.error >= best.1 * (1.0 - LEAST_GAIN);
            if sums.error < best.1 {
                best = (fit, sums.error);
            }
            let mut next = self.half_quadratic_step(&sums, fit, weights.len() as f32);
            next.scale = scales.rounded(next.scale);
            if rests || !next.scale.is_finite() {
                break;
            }
            (fit, beta) = (next, beta * KAPPA);
        }
        best.0
    }

    /// What a round needs to know of a group.
    fn sums(&self, weights: &[f32], fit: Fit, beta: f32) -> Sums {
        let inverse = inverse(fit.scale);
        let [steps, squares, explained, products, error] = sums(weights, |weight| {
            let scaled = weight * inverse;
            let step = self.code(scaled, fit.zero_point) - fit.zero_point;
            let explained = explained(scaled, step, beta);
            [
                step,
                step * step,
                explained,
                step * explained,
                (step * fit.scale - weight).powi(2),
            ]
        });
        Sums {
            steps,
            squares,
            explained,
            products,
            error,
        }
    }

    /// With the codes held, the zero point and then the scale that fit the weights less their
    /// sparse residual best.
    fn half_quadratic_step(&self, sums: &Sums, fit: Fit, count: f32) -> Fit {
        let mut shift = 0.0;
        if !self.symmetric {
            let wanted = fit.zero_point + (sums.steps - sums.explained) / count;
            shift = wanted
                .round()
                .clamp(0.0, f32::from(self.format.largest_code()))
                - fit.zero_point;
        }
        let product = sums.products - shift * sums.explained;
        let square = sums.squares - 2.0 * shift * sums.steps + count * shift * shift;
        Fit {
            scale: if square > 0.0 {
                fit.scale * (product / square)
            } else {
                fit.scale
            },
            zero_point: fit.zero_point + shift,
        }
    }

    /// The code of a weight that was divided by its scale: the nearest one, of two the even.
    fn code(&self, scaled: f32, zero_point: f32) -> f32 {
        // Numbers from 2^23 on have no fractions, so adding one rounds without a call that would
        // keep the loop from vectorising.
        const WHOLE: f32 = 12_582_912.0;
        (scaled + zero_point).clamp(0.0, f32::from(self.format.largest_code())) + WHOLE - WHOLE
    }

    /// Number of elements of one part of a matrix of `weights` entries in rows of `columns`.
    pub(super) fn elements(&self, part: QuantizedPart, weights: usize, columns: usize) -> usize {
        weights / columns * self.format.row_elements(part, columns)
    }

    /// Groups that share an element of a part, or elements that share a group: groups of an
    /// element, elements of a group.
    fn grain(&self, part: QuantizedPart) -> (usize, usize) {
        match part {
            QuantizedPart::Codes => (1, self.format.code_bytes()),
            QuantizedPart::Scales => (1, 1),
            QuantizedPart::ZeroPoints => (self.format.codes_in_byte(), 1),
        }
    }

    /// One part of one group, as elements: its packed codes, its scale or its zero point.
    fn group_elements(
        &self,
        part: QuantizedPart,
        (weights, scales): (&[f32], DType),
        out: &mut [f32],
    ) {
        let fit = self.fit(weights, scales);
        match part {
            QuantizedPart::Scales => out.fill(fit.scale),
            QuantizedPart::ZeroPoints => out.fill(fit.zero_point),
            QuantizedPart::Codes => {
                let inverse = inverse(fit.scale);
                let mut codes = vec![fit.zero_point as u8; self.format.group_size];
                codes
                    .iter_mut()
                    .zip(weights)
                    .for_each(|(code, &w)| *code = self.code(w * inverse, fit.zero_point) as u8);
                let mut bytes = vec![0; out.len()];
                self.format.pack(&codes, &mut bytes);
                out.iter_mut()
                    .zip(bytes)
                    .for_each(|(o, b)| *o = f32::from(b));
            }
        }
    }
}

/// Sums over a group under one fit: steps (codes less zero point), their squares, what the sparse
/// residual leaves of the weights in steps, their products with the steps, and squared errors.
struct Sums {
    steps: f32,
    squares: f32,
    explained: f32,
    products: f32,
    error: f32,
}

/// Sums over a group, in lanes that the compiler can make vectors of.
fn sums<const N: usize>(weights: &[f32], terms: impl Fn(f32) -> [f32; N]) -> [f32; N] {
    const LANES: usize = 8;
    let mut lanes = [[0f32; LANES]; N];
    let (chunks, rest) = weights.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &weight) in chunk.iter().enumerate() {
            let terms = terms(weight);
            (0..N).for_each(|n| lanes[n][lane] += terms[n]);
        }
    }
    for (lane, &weight) in rest.iter().enumerate() {
        let terms = terms(weight);
        (0..N).for_each(|n| lanes[n][lane] += terms[n]);
    }
    lanes.map(|lanes| lanes.iter().sum())
}

/// The weight in steps less the part of its residual that the `p`-norm (`p` = 3/4) makes sparse:
/// `r` shrinks to `max(0, |r| - |r|^(p-1) / beta)`.
fn explained(weight: f32, step: f32, beta: f32) -> f32 {
    let residual = weight - step;
    let magnitude = residual.abs();
    // |r|^(-1/4) by square roots, which are exact on every machine.
    let sparse = (magnitude - 1.0 / (beta * magnitude.sqrt().sqrt())).max(0.0);
    weight - sparse.copysign(residual)
}

fn inverse(scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// Elements `from ..` of one part of `input`, a matrix of `columns` columns.
pub(super) fn quantized(
    input: &Expr,
    columns: usize,
    (quantizer, part): (&Quantizer, QuantizedPart),
    from: usize,
    out: &mut [f32],
) {
    let width = quantizer.format.row_elements(part, columns);
    let mut at = 0;
    while at < out.len() {
        let (row, column) = ((from + at) / width, (from + at) % width);
        let end = out.len().min(at + width - column);
        row_part(
            input,
            (row * columns, columns),
            (quantizer, part),
            column,
            &mut out[at..end],
        );
        at = end;
    }
}

/// As [`quantized`], within the row of `columns` weights that starts at `start`.
fn row_part(
    input: &Expr,
    (start, columns): (usize, usize),
    (quantizer, part): (&Quantizer, QuantizedPart),
    column: usize,
    out: &mut [f32],
) {
    let (groups, elements) = quantizer.grain(part);
    let group = quantizer.format.group_size;
    let count = quantizer.format.groups(columns);
    let needed =
        column / elements * groups..((column + out.len()).div_ceil(elements) * groups).min(count);
    let batch = (ROWS_TILE / group).max(1);
    for first in needed.clone().step_by(batch) {
        let read = first * group..((first + batch).min(needed.end) * group).min(columns);
        let mut weights = vec![0.0; read.len()];
        input.read_f32(start + read.start, &mut weights);
        for (index, weights) in (first..).zip(weights.chunks(group)) {
            let mut made = vec![0.0; elements];
            quantizer.group_elements(part, (weights, input.dtype()), &mut made);
            place(&made, index, (quantizer, groups), column, out);
        }
    }
}

/// Puts what the group at `index` gives where it belongs, if the range that starts at `column` has
/// it.
fn place(
    made: &[f32],
    index: usize,
    (quantizer, groups): (&Quantizer, usize),
    column: usize,
    out: &mut [f32],
) {
    let Range { start, end } =
        index / groups * made.len()..index / groups * made.len() + made.len();
    for (element, made) in (start..end).zip(made) {
        let Some(entry) = element.checked_sub(column).and_then(|i| out.get_mut(i)) else {
            continue;
        };
        // Several groups share a byte of zero points, the first one in its lowest bits.
        let (first, shift) = (
            index.is_multiple_of(groups),
            quantizer.format.bits * (index % groups),
        );
        *entry = if first {
            *made
        } else {
            *entry + made * (1u32 << shift) as f32
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum of squared errors of codes under a scale.
    fn error(quantizer: &Quantizer, weights: &[f32], codes_of: Fit, fit: Fit) -> f64 {
        let entry = |w: f32| {
            let code = quantizer.code(w * inverse(codes_of.scale), codes_of.zero_point);
            (code - fit.zero_point) * fit.scale
        };
        let squares = weights.iter().map(|w| f64::from(entry(*w) - w).powi(2));
        squares.sum()
    }

    #[test]
    fn codes_are_those_of_the_scale_once_it_is_rounded() {
        let mut nearer = 0;
        for spread in [1.0, 3e-3, 2e-6, 900.0] {
            let weights: Vec<f32> = (0..32)
                .map(|i| ((i * i) as f32 * 0.37).sin() * spread)
                .collect();
            for (bits, refinement) in [4, 8]
                .into_iter()
                .flat_map(|bits| [(bits, Refinement::None), (bits, Refinement::Hqq)])
            {
                for symmetric in [true, false] {
                    let format = GroupFormat {
                        bits,
                        group_size: 32,
                    };
                    let quantizer = Quantizer {
                        format,
                        symmetric,
                        refinement,
                    };
                    let fit = quantizer.fit(&weights, DType::F16);
                    let stored = DType::F16.rounded(fit.scale);
                    assert_eq!(fit.scale.to_bits(), stored.to_bits());
                    assert!((0.0..=f32::from(format.largest_code())).contains(&fit.zero_point));
                    let found = error(&quantizer, &weights, fit, fit);
                    let (said, _) = quantizer.squared_error(&weights, DType::F16);
                    assert!((said - found).abs() <= 1e-4 * found, "{said} {found}");
                    // The codes of the scale that wasn't rounded, which no code improves on there.
                    let whole = Fit {
                        scale: fit.scale * 1.0003,
                        ..fit
                    };
                    let other = error(&quantizer, &weights, whole, fit);
                    assert!(found <= other * 1.000_001, "{quantizer:?}: {found} {other}");
                    nearer += usize::from(found < other);
                }
            }
        }
        assert!(nearer > 0, "no code depends on how the scale is rounded");
    }
}
