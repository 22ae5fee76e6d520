//! Pictures at other sizes.

use std::f64::consts::PI;

/// How far Lanczos' kernel reaches.
const REACH: f64 = 3.0;

/// The cut `(from, size)` of a plane of `whole` rows and columns, with `to` rows and columns: a
/// windowed sinc (Duchon, *Lanczos Filtering in One and Two Dimensions*, 1979), as wide as the
/// pixels that are made where these are the larger ones.
pub(super) fn resample(
    plane: &[f32],
    whole: [usize; 2],
    (from, size): ([usize; 2], [usize; 2]),
    to: [usize; 2],
) -> Vec<f32> {
    let across = weights(size[1], to[1]);
    let columns = plane.chunks_exact(whole[1]).skip(from[0]).take(size[0]);
    let narrow: Vec<f32> = columns
        .flat_map(|row| across.iter().map(|w| w.sum(|at| row[from[1] + at])))
        .collect();
    let down = weights(size[0], to[0]);
    let rows = down.iter().flat_map(|w| {
        let narrow = &narrow;
        (0..to[1]).map(move |x| w.sum(|at| narrow[at * to[1] + x]))
    });
    rows.collect()
}

/// What one entry is the sum of.
struct Weights {
    first: usize,
    weights: Vec<f64>,
}

impl Weights {
    fn sum(&self, entry: impl Fn(usize) -> f32) -> f32 {
        let entries = (self.first..).zip(&self.weights);
        entries
            .map(|(at, weight)| weight * f64::from(entry(at)))
            .sum::<f64>() as f32
    }
}

fn weights(from: usize, to: usize) -> Vec<Weights> {
    let scale = from as f64 / to as f64;
    let wide = scale.max(1.0);
    let of = |entry: usize| {
        let centre = (entry as f64 + 0.5) * scale;
        let first = (centre - REACH * wide).floor().max(0.0) as usize;
        let end = ((centre + REACH * wide).ceil() as usize).min(from);
        let weights: Vec<f64> = (first..end)
            .map(|at| lanczos((at as f64 + 0.5 - centre) / wide))
            .collect();
        let sum: f64 = weights.iter().sum();
        Weights {
            first,
            weights: weights.iter().map(|weight| weight / sum).collect(),
        }
    };
    (0..to).map(of).collect()
}

fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| {
        if x == 0.0 {
            1.0
        } else {
            (PI * x).sin() / (PI * x)
        }
    };
    if x.abs() < REACH {
        sinc(x) * sinc(x / REACH)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plane_of_one_level_keeps_it_and_its_own_size_changes_nothing() {
        let whole = |size: [usize; 2]| ([0, 0], size);
        for to in [[1, 1], [3, 8], [40, 2]] {
            let flat = resample(&[0.25; 35], [5, 7], whole([5, 7]), to);
            assert_eq!(flat.len(), to[0] * to[1]);
            assert!(flat.iter().all(|x| (x - 0.25).abs() < 1e-6), "{flat:?}");
        }
        let plane: Vec<f32> = (0..35).map(|n| (n * n % 11) as f32).collect();
        let same = resample(&plane, [5, 7], whole([5, 7]), [5, 7]);
        let apart = same.iter().zip(&plane).map(|(a, b)| (a - b).abs());
        assert!(apart.fold(0f32, f32::max) < 1e-5);
    }

    /// Pillow's `resize` with its filter `LANCZOS` of a float image.
    #[test]
    fn halves_and_doubles_as_pillow_does() {
        let row: Vec<f32> = vec![0.0, 1.0, 4.0, 9.0, 16.0, 25.0, 36.0, 49.0];
        let resized = |to: usize| resample(&row, [1, 8], ([0, 0], [1, 8]), [1, to]);
        let near = |found: Vec<f32>, expected: &[f32]| {
            let apart = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
            assert!(apart.fold(0f32, f32::max) < 1e-4, "{found:?}");
        };
        near(resized(4), &HALF);
        near(resized(16), &DOUBLE);
    }

    const HALF: [f32; 4] = [0.37395, 5.88640, 20.59559, 42.28945];
    const DOUBLE: [f32; 16] = [
        -0.01624, 0.05931, 0.59464, 1.52893, 3.14764, 4.97340, 7.67139, 10.43381, 14.21099,
        17.89421, 22.75059, 27.08222, 32.33673, 40.13618, 47.06494, 50.27896,
    ];
}
