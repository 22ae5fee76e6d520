//! How far an image is from the full sampler's, and the way back to the image: mean square, or
//! structural similarity.
//!
//! SSIM: *Image Quality Assessment: From Error Visibility to Structural Similarity* (Wang et al., 2004),
//! over all places that its window fits.

use serde::{Deserialize, Serialize};

use crate::sampling::mean_square;

/// Side and standard deviation of SSIM's Gaussian window, in pixels.
const WINDOW: usize = 11;
const SIGMA: f64 = 1.5;
/// Images lie between -1 and 1.
const RANGE: f64 = 2.0;
const C1: f64 = (0.01 * RANGE) * (0.01 * RANGE);
const C2: f64 = (0.03 * RANGE) * (0.03 * RANGE);
/// The most channels that are colours; more are latents, in which there is nothing to see.
pub(super) const COLOURS: usize = 3;

/// How far an image is from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Distance {
    /// Mean square of the difference.
    Mse,
    /// 1 - SSIM (DiP-GO, arXiv 2410.16942, section 3.3).
    Ssim,
}

/// A distance between images of one shape.
#[derive(Debug, Clone)]
pub(super) struct Loss {
    kind: Distance,
    /// Channels, height, width.
    shape: [usize; 3],
    window: Vec<f64>,
}

/// The structural similarity of two images `[channels, height, width]`, numbers from -1 to 1: 1 for
/// equal ones. None where its window of 11 pixels doesn't fit.
pub fn similarity(image: &[f32], other: &[f32], shape: [usize; 3]) -> Option<f64> {
    let loss = Loss::new(Some(Distance::Ssim), shape)?;
    Some(1.0 - loss.distance(image, other))
}

impl Loss {
    /// The kind that was asked for; else SSIM for pictures, and mean square for latents and for
    /// what is smaller than SSIM's window. None where the window that was asked for doesn't fit.
    pub fn new(asked: Option<Distance>, shape: [usize; 3]) -> Option<Self> {
        let [channels, height, width] = shape;
        let fits = height >= WINDOW && width >= WINDOW;
        let usual = if fits && channels <= COLOURS {
            Distance::Ssim
        } else {
            Distance::Mse
        };
        let centre = (WINDOW / 2) as f64;
        let bell: Vec<f64> = (0..WINDOW)
            .map(|i| (-((i as f64 - centre) / SIGMA).powi(2) / 2.0).exp())
            .collect();
        let sum: f64 = bell.iter().sum();
        let kind = asked.unwrap_or(usual);
        (fits || kind == Distance::Mse).then(|| Self {
            kind,
            shape,
            window: bell.into_iter().map(|x| x / sum).collect(),
        })
    }

    /// The name of what is minimised.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Distance::Mse => "mean square",
            Distance::Ssim => "1 - SSIM",
        }
    }

    /// How far `image` is from `full`.
    pub fn distance(&self, image: &[f32], full: &[f32]) -> f64 {
        match self.kind {
            Distance::Mse => mean_square(image, full),
            Distance::Ssim => self.dissimilarity(image, full, &mut |_, _| {}),
        }
    }

    /// [`distance`](Self::distance), and its gradient with respect to `image`.
    pub fn gradient(&self, image: &[f32], full: &[f32]) -> (f64, Vec<f32>) {
        match self.kind {
            Distance::Mse => {
                let n = image.len().max(1) as f32;
                (
                    self.distance(image, full),
                    image
                        .iter()
                        .zip(full)
                        .map(|(x, y)| 2.0 * (x - y) / n)
                        .collect(),
                )
            }
            Distance::Ssim => {
                let mut gradient = vec![0f32; image.len()];
                let distance = self.dissimilarity(image, full, &mut |from, slopes| {
                    gradient[from..]
                        .iter_mut()
                        .zip(slopes)
                        .for_each(|(g, s)| *g = *s as f32);
                });
                (distance, gradient)
            }
        }
    }

    /// 1 - SSIM; `back` is given the gradient of each channel, and where the channel starts.
    fn dissimilarity(
        &self,
        image: &[f32],
        full: &[f32],
        back: &mut dyn FnMut(usize, &[f64]),
    ) -> f64 {
        let [channels, height, width] = self.shape;
        let plane = height * width;
        let count = (channels * (height + 1 - WINDOW) * (width + 1 - WINDOW)) as f64;
        let mut sum = 0.0;
        for (channel, (image, full)) in image.chunks(plane).zip(full.chunks(plane)).enumerate() {
            let (x, y) = (doubles(image), doubles(full));
            let mean =
                |f: &dyn Fn(usize) -> f64| self.blur(&(0..plane).map(f).collect::<Vec<f64>>());
            let (mx, my) = (mean(&|i| x[i]), mean(&|i| y[i]));
            let (mxx, myy, mxy) = (
                mean(&|i| x[i] * x[i]),
                mean(&|i| y[i] * y[i]),
                mean(&|i| x[i] * y[i]),
            );
            // Slopes of the sum of similarities, to the means of x, x^2 and x y.
            let mut slopes = [
                vec![0.0; mx.len()],
                vec![0.0; mx.len()],
                vec![0.0; mx.len()],
            ];
            for i in 0..mx.len() {
                let (a1, a2) = (
                    2.0 * mx[i] * my[i] + C1,
                    2.0 * (mxy[i] - mx[i] * my[i]) + C2,
                );
                let (b1, b2) = (
                    mx[i].powi(2) + my[i].powi(2) + C1,
                    mxx[i] - mx[i].powi(2) + myy[i] - my[i].powi(2) + C2,
                );
                let similarity = a1 * a2 / (b1 * b2);
                sum += similarity;
                slopes[0][i] = 2.0 * my[i] * (a2 - a1) / (b1 * b2)
                    + similarity * 2.0 * mx[i] * (1.0 / b2 - 1.0 / b1);
                slopes[1][i] = -similarity / b2;
                slopes[2][i] = 2.0 * a1 / (b1 * b2);
            }
            let [first, second, mixed] = slopes.map(|s| self.spread(&s));
            let slope = |i: usize| -(first[i] + 2.0 * x[i] * second[i] + y[i] * mixed[i]) / count;
            back(
                channel * plane,
                &(0..plane).map(slope).collect::<Vec<f64>>(),
            );
        }
        1.0 - sum / count
    }

    /// Weighted means of a plane at all places of the window.
    fn blur(&self, plane: &[f64]) -> Vec<f64> {
        let [_, height, width] = self.shape;
        let (rows, columns) = (height + 1 - WINDOW, width + 1 - WINDOW);
        let along = |row: usize, column: usize| -> f64 {
            self.window
                .iter()
                .enumerate()
                .map(|(k, w)| w * plane[row * width + column + k])
                .sum()
        };
        let lines: Vec<f64> = places(height, columns)
            .map(|(row, column)| along(row, column))
            .collect();
        let down = |row: usize, column: usize| -> f64 {
            self.window
                .iter()
                .enumerate()
                .map(|(k, w)| w * lines[(row + k) * columns + column])
                .sum()
        };
        places(rows, columns)
            .map(|(row, column)| down(row, column))
            .collect()
    }

    /// The transpose of [`blur`](Self::blur).
    fn spread(&self, means: &[f64]) -> Vec<f64> {
        let [_, height, width] = self.shape;
        let (rows, columns) = (height + 1 - WINDOW, width + 1 - WINDOW);
        let mut lines = vec![0.0; height * columns];
        for (row, column) in places(rows, columns) {
            self.window.iter().enumerate().for_each(|(k, w)| {
                lines[(row + k) * columns + column] += w * means[row * columns + column];
            });
        }
        let mut plane = vec![0.0; height * width];
        for (row, column) in places(height, columns) {
            self.window.iter().enumerate().for_each(|(k, w)| {
                plane[row * width + column + k] += w * lines[row * columns + column];
            });
        }
        plane
    }
}

/// Every row and column, row by row.
fn places(rows: usize, columns: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).flat_map(move |row| (0..columns).map(move |column| (row, column)))
}

fn doubles(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().map(|x| f64::from(*x)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Case {
        shape: [usize; 3],
        image: Vec<f32>,
        other: Vec<f32>,
        ssim: f64,
    }

    fn cases() -> Vec<Case> {
        serde_json::from_str(include_str!("../../../fixtures/ssim.json"))
            .expect("recorded by fixtures/make_ssim.py")
    }

    #[test]
    fn similarity_is_scikit_images() {
        for case in cases() {
            let found = similarity(&case.image, &case.other, case.shape).expect("fits");
            assert!(
                (found - case.ssim).abs() < 1e-6,
                "{:?}: {found}, not {}",
                case.shape,
                case.ssim
            );
            let own = similarity(&case.image, &case.image, case.shape).expect("fits");
            assert!((own - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        for (case, kind) in cases()
            .iter()
            .flat_map(|case| [(case, Distance::Mse), (case, Distance::Ssim)])
        {
            let loss = Loss::new(Some(kind), case.shape).expect("fits");
            let (distance, gradient) = loss.gradient(&case.image, &case.other);
            assert!((distance - loss.distance(&case.image, &case.other)).abs() < 1e-12);
            let scale = gradient.iter().fold(0f32, |m, g| m.max(g.abs()));
            for at in (0..gradient.len()).step_by(7) {
                let moved = |by: f32| {
                    let mut image = case.image.clone();
                    image[at] += by;
                    loss.distance(&image, &case.other)
                };
                let slope = ((moved(1e-3) - moved(-1e-3)) / 2e-3) as f32;
                assert!(
                    (slope - gradient[at]).abs() <= 1e-2 * scale,
                    "{kind:?} {:?}[{at}]: {}, not {slope}",
                    case.shape,
                    gradient[at]
                );
            }
        }
    }

    #[test]
    fn pictures_are_compared_by_structure_and_latents_by_squares() {
        for (shape, asked, name) in [
            ([1, 11, 11], None, Some("1 - SSIM")),
            ([3, 64, 64], None, Some("1 - SSIM")),
            ([3, 64, 64], Some(Distance::Mse), Some("mean square")),
            ([4, 64, 64], None, Some("mean square")),
            ([4, 64, 64], Some(Distance::Ssim), Some("1 - SSIM")),
            ([1, 8, 8], None, Some("mean square")),
            ([1, 8, 8], Some(Distance::Ssim), None),
        ] {
            assert_eq!(
                Loss::new(asked, shape).map(|loss| loss.name()),
                name,
                "{shape:?} {asked:?}"
            );
        }
    }
}
