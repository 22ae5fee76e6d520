//! Scale and zero point of a group by search, where some columns matter more than others: the mean
//! square of what a column is multiplied with weighs its error (the "importance matrix" of
//! llama.cpp).

use dlc_ir::{DType, GroupFormat};

use super::held::GroupFit;

/// Which groups there may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub format: GroupFormat,
    /// Whether every zero point is the default one.
    pub symmetric: bool,
    /// The type that scales are rounded to.
    pub scales: DType,
}

/// Scales that are tried, as shares of the one that clips nothing: from a little above half to it.
const SCALES: usize = 20;
const SMALLEST: f32 = 0.525;
/// Zero points that are tried on either side of the one that clips nothing, in 8 bits. Of 4 bits
/// all are.
const AROUND: i32 = 2;

/// The scale and zero point with the smallest `sum_j h_j (w_j - scale (q_j - zero_point))^2` of
/// those tried. For the codes of each try, the scale is the one that least squares gives; that of
/// the best is rounded.
pub(super) fn fit(layout: Layout, weights: &[f32], importance: &[f32]) -> GroupFit {
    let Layout {
        format,
        symmetric,
        scales,
    } = layout;
    let (low, high) = weights
        .iter()
        .fold((0f32, 0f32), |(low, high), &w| (low.min(w), high.max(w)));
    let largest = f32::from(format.largest_code());
    let middle = format.default_zero_point();
    let none = GroupFit {
        scale: 0.0,
        zero_point: middle,
    };
    if low >= high {
        return none;
    }
    let all_zero = weights.iter().zip(importance).map(|(w, h)| h * w * w);
    let mut best = (none, all_zero.sum::<f32>());
    let mut try_all = |widest: f32, zero_points: std::ops::RangeInclusive<u8>| {
        for step in 0..SCALES {
            let share = SMALLEST + (1.0 - SMALLEST) * step as f32 / (SCALES - 1) as f32;
            for zero_point in zero_points.clone() {
                let start = GroupFit {
                    scale: widest * share,
                    zero_point,
                };
                let Sums {
                    rests,
                    rests_by_steps,
                    steps,
                } = sums(weights, importance, start, largest);
                let error = rests - rests_by_steps * rests_by_steps / steps;
                if error < best.1 {
                    let scale = start.scale + rests_by_steps / steps;
                    best = (GroupFit { scale, zero_point }, error);
                }
            }
        }
    };
    if symmetric {
        // Either end may get the code that only one side has.
        let reach = low.abs().max(high) / f32::from(middle);
        try_all(reach, middle..=middle);
        try_all(-reach, middle..=middle);
    } else {
        let widest = (high - low) / largest;
        let zero_points = if format.bits == 4 {
            0..=format.largest_code()
        } else {
            let near = (-low / widest).round() as i32;
            let clamp = |z: i32| z.clamp(0, i32::from(format.largest_code())) as u8;
            clamp(near - AROUND)..=clamp(near + AROUND)
        };
        try_all(widest, zero_points);
    }
    GroupFit {
        scale: scales.rounded(best.0.scale),
        ..best.0
    }
}

/// Weighted sums over a group, with the codes of a fit. What the fit leaves of each weight is
/// summed, rather than the weights: of 8 bits it is so small that a difference of sums of weights
/// would be rounding.
struct Sums {
    /// Of the squares of what is left.
    rests: f32,
    /// Of what is left, times the code's steps from the zero point.
    rests_by_steps: f32,
    /// Of the squares of the steps.
    steps: f32,
}

fn sums(weights: &[f32], importance: &[f32], fit: GroupFit, largest: f32) -> Sums {
    const LANES: usize = 8;
    /// Adding it to a small number rounds to a whole one, without a call that would keep the loop
    /// from becoming vector instructions.
    const WHOLE: f32 = 12_582_912.0;
    let (inverse, zero) = (1.0 / fit.scale, f32::from(fit.zero_point));
    let mut lanes = [[0f32; LANES]; 3];
    let mut add = |lane: usize, w: f32, h: f32| {
        let step = (w * inverse + zero).clamp(0.0, largest) + WHOLE - WHOLE - zero;
        let rest = w - fit.scale * step;
        lanes[0][lane] += h * rest * rest;
        lanes[1][lane] += h * rest * step;
        lanes[2][lane] += h * step * step;
    };
    let ((ws, w_rest), (hs, h_rest)) = (
        weights.as_chunks::<LANES>(),
        importance.as_chunks::<LANES>(),
    );
    for (w, h) in ws.iter().zip(hs) {
        (0..LANES).for_each(|lane| add(lane, w[lane], h[lane]));
    }
    for (lane, (w, h)) in w_rest.iter().zip(h_rest).enumerate() {
        add(lane, *w, *h);
    }
    let [rests, rests_by_steps, steps] = lanes.map(|lanes| lanes.iter().sum());
    Sums {
        rests,
        rests_by_steps,
        steps,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout(bits: usize, group_size: usize, symmetric: bool) -> Layout {
        Layout {
            format: GroupFormat { bits, group_size },
            symmetric,
            scales: DType::F32,
        }
    }

    fn error(format: GroupFormat, fit: GroupFit, weights: &[f32], importance: &[f32]) -> f32 {
        let entry = |w: f32| fit.entry(fit.code(w, format.largest_code()));
        let terms = weights.iter().zip(importance);
        terms.map(|(&w, &h)| h * (w - entry(w)).powi(2)).sum()
    }

    #[test]
    fn columns_that_matter_are_met_and_others_clipped() {
        let layout = layout(4, 32, false);
        let mut weights: Vec<f32> = (0..32).map(|i| (i as f32 * 0.7).sin()).collect();
        weights[5] = 6.0;
        let mut importance = vec![1.0; 32];
        importance[5] = 1e-6;
        let found = fit(layout, &weights, &importance);
        let extremes = GroupFit {
            scale: 7.0 / 15.0,
            zero_point: 2,
        };
        let error = |fit| error(layout.format, fit, &weights, &importance);
        let [mine, theirs] = [found, extremes].map(error);
        assert!(mine < 0.5 * theirs, "{mine} {theirs}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_group_gets_worse_than_by_its_extremes(
            weights in prop::collection::vec(-3f32..3.0, 1..65),
            bits in prop_oneof![Just(4usize), Just(8)],
            symmetric in any::<bool>(),
        ) {
            let layout = layout(bits, 64, symmetric);
            let format = layout.format;
            let importance = vec![1.0; weights.len()];
            let found = fit(layout, &weights, &importance);
            let low = weights.iter().copied().fold(0.0, f32::min);
            let high = weights.iter().copied().fold(0.0, f32::max);
            let middle = format.default_zero_point();
            let largest = f32::from(format.largest_code());
            let extremes = if symmetric {
                GroupFit { scale: high.max(-low) / f32::from(middle), zero_point: middle }
            } else {
                let scale = (high - low) / largest;
                GroupFit { scale, zero_point: (-low / scale).round().clamp(0.0, largest) as u8 }
            };
            let [mine, theirs] = [found, extremes].map(|fit| error(format, fit, &weights, &importance));
            prop_assert!(mine <= theirs * 1.001 + 1e-9, "{mine} {theirs}");
            let half = Layout { scales: DType::F16, ..layout };
            let rounded = fit(half, &weights, &importance);
            prop_assert_eq!(rounded.scale.to_bits(), DType::F16.rounded(found.scale).to_bits());
            prop_assert_eq!(rounded.zero_point, found.zero_point);
        }

        #[test]
        fn groups_of_one_number_are_exact(value in -2f32..2.0, symmetric in any::<bool>()) {
            let found = fit(layout(4, 32, symmetric), &[value; 32], &[1.0; 32]);
            prop_assert!((found.entry(found.code(value, 15)) - value).abs() <= 1e-6);
        }
    }
}
