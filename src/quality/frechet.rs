//! The Fréchet distance between two sets of vectors, taken as normal distributions (Heusel et al., *GANs
//! Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium*, equation 6).

use std::path::Path;

use dlc_runtime::{Result, RuntimeError, read_tensors};

/// The longest vectors whose distance is computed: the work grows with the third power.
const LONGEST: usize = 4096;

/// Mean and covariance of a set of vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    mean: Vec<f64>,
    /// Row-major, as many rows as numbers in the mean.
    covariance: Vec<f64>,
}

impl Statistics {
    /// Statistics of vectors of `width` numbers; of two or more, for the covariance is that of a
    /// sample, divided by one less than their count.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for fewer vectors, and for longer ones than can be worked with.
    pub fn of<'v>(vectors: impl Iterator<Item = &'v [f32]> + Clone, width: usize) -> Result<Self> {
        let count = vectors.clone().count();
        if count < 2 || !(1..=LONGEST).contains(&width) {
            return Err(RuntimeError::Input(format!(
                "{count} vectors of {width} numbers have no statistics: 2 vectors of 1 to {LONGEST} numbers do"
            )));
        }
        let mut mean = vec![0.0; width];
        for vector in vectors.clone() {
            mean.iter_mut()
                .zip(vector)
                .for_each(|(sum, x)| *sum += f64::from(*x) / count as f64);
        }
        let mut covariance = vec![0.0; width * width];
        for vector in vectors {
            let centred: Vec<f64> = vector
                .iter()
                .zip(&mean)
                .map(|(x, mean)| f64::from(*x) - mean)
                .collect();
            for (row, x) in covariance.chunks_exact_mut(width).zip(&centred) {
                row.iter_mut()
                    .zip(&centred)
                    .for_each(|(sum, y)| *sum += x * y / (count - 1) as f64);
            }
        }
        Ok(Self { mean, covariance })
    }

    /// Reads `mean [d]` and `covariance [d, d]` from a safetensors file.
    ///
    /// # Errors
    /// [`RuntimeError::File`] for a file that can't be read or holds none that are finite and fit.
    pub fn read(path: &Path) -> Result<Self> {
        let mut tensors = read_tensors(path)?;
        let (mean, covariance) = (tensors.remove("mean"), tensors.remove("covariance"));
        let fits = mean.zip(covariance).filter(|(mean, covariance)| {
            matches!(mean.shape[..], [d] if (1..=LONGEST).contains(&d) && covariance.shape == [d, d])
                && mean.data.iter().chain(&covariance.data).all(|x| x.is_finite())
        });
        let wide = |data: Vec<f32>| data.into_iter().map(f64::from).collect();
        let problem =
            format!("doesn't hold finite `mean [d]` and `covariance [d, d]`, d at most {LONGEST}");
        fits.map(|(mean, covariance)| Self {
            mean: wide(mean.data),
            covariance: wide(covariance.data),
        })
        .ok_or_else(|| RuntimeError::file(path, problem))
    }

    /// How many numbers a vector has.
    pub fn width(&self) -> usize {
        self.mean.len()
    }

    /// The squared distance `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)`; none of
    /// statistics of other widths.
    pub fn distance(&self, other: &Self) -> Option<f64> {
        let n = self.width();
        if other.width() != n {
            return None;
        }
        let means: f64 = self
            .mean
            .iter()
            .zip(&other.mean)
            .map(|(a, b)| (a - b).powi(2))
            .sum();
        let root = square_root(&self.covariance, n);
        let product = multiply(&multiply(&root, &other.covariance, n), &root, n);
        let mixed: f64 = eigen(&product, n)
            .0
            .iter()
            .map(|lambda| lambda.max(0.0).sqrt())
            .sum();
        Some(
            (means + trace(&self.covariance, n) + trace(&other.covariance, n) - 2.0 * mixed)
                .max(0.0),
        )
    }
}

fn trace(matrix: &[f64], n: usize) -> f64 {
    (0..n).map(|i| matrix[i * n + i]).sum()
}

fn multiply(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    let mut product = vec![0.0; n * n];
    for (row, out) in a.chunks_exact(n).zip(product.chunks_exact_mut(n)) {
        for (x, line) in row.iter().zip(b.chunks_exact(n)) {
            out.iter_mut().zip(line).for_each(|(sum, y)| *sum += x * y);
        }
    }
    product
}

/// The square root of a symmetric matrix; negative eigenvalues, which rounding leaves of zeros,
/// count as 0.
fn square_root(matrix: &[f64], n: usize) -> Vec<f64> {
    let (values, vectors) = eigen(matrix, n);
    let mut scaled = vec![0.0; n * n];
    let mut transposed = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..n {
            scaled[i * n + j] = vectors[i * n + j] * values[j].max(0.0).sqrt();
            transposed[j * n + i] = vectors[i * n + j];
        }
    }
    multiply(&scaled, &transposed, n)
}

/// Eigenvalues of a symmetric matrix, and its eigenvectors as columns: Jacobi's rotations, over all
/// pairs until nothing is left beside the diagonal (Golub and Van Loan, *Matrix Computations*,
/// section 8.5).
fn eigen(matrix: &[f64], n: usize) -> (Vec<f64>, Vec<f64>) {
    const SWEEPS: usize = 60;
    let mut a = matrix.to_vec();
    let mut vectors: Vec<f64> = (0..n * n)
        .map(|at| f64::from(u8::from(at / n == at % n)))
        .collect();
    let scale: f64 = a.iter().map(|x| x * x).sum();
    for _ in 0..SWEEPS {
        let beside: f64 = (0..n * n)
            .filter(|at| at / n != at % n)
            .map(|at| a[at] * a[at])
            .sum();
        if beside <= scale * 1e-28 {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut vectors, n, [p, q]);
            }
        }
    }
    ((0..n).map(|i| a[i * n + i]).collect(), vectors)
}

/// Rotates the plane of two axes so that nothing is left between them.
fn rotate(a: &mut [f64], vectors: &mut [f64], n: usize, [p, q]: [usize; 2]) {
    let between = a[p * n + q];
    if between == 0.0 {
        return;
    }
    let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * between);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    let turn = |x: f64, y: f64| (c * x - s * y, s * x + c * y);
    for k in 0..n {
        (a[p * n + k], a[q * n + k]) = turn(a[p * n + k], a[q * n + k]);
    }
    for row in 0..n {
        (a[row * n + p], a[row * n + q]) = turn(a[row * n + p], a[row * n + q]);
        (vectors[row * n + p], vectors[row * n + q]) =
            turn(vectors[row * n + p], vectors[row * n + q]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagonal(mean: &[f64], deviations: &[f64]) -> Statistics {
        let n = mean.len();
        let covariance = (0..n * n)
            .map(|at| {
                if at / n == at % n {
                    deviations[at / n].powi(2)
                } else {
                    0.0
                }
            })
            .collect();
        Statistics {
            mean: mean.to_vec(),
            covariance,
        }
    }

    #[test]
    fn distances_of_independent_numbers_are_those_of_means_and_deviations() {
        let (a, b) = (
            diagonal(&[1.0, 0.0, 2.0], &[1.0, 3.0, 0.0]),
            diagonal(&[0.0, 0.0, 4.0], &[2.0, 3.0, 0.5]),
        );
        // 1 + 4, and 1 + 0 + 0.25.
        assert!((a.distance(&b).unwrap() - 6.25).abs() < 1e-9);
        assert!(a.distance(&a).unwrap() < 1e-9);
        assert_eq!(a.distance(&diagonal(&[1.0], &[1.0])), None);
    }

    #[test]
    fn distances_do_not_depend_on_the_axes() {
        // Both turned by the same rotation, so that neither is diagonal.
        let (c, s) = (0.6, 0.8);
        let turned = |x: f64, y: f64| {
            vec![
                c * c * x + s * s * y,
                c * s * (x - y),
                c * s * (x - y),
                s * s * x + c * c * y,
            ]
        };
        let of = |x: f64, y: f64| Statistics {
            mean: vec![0.0; 2],
            covariance: turned(x, y),
        };
        // (1 - 2)^2 + (3 - 5)^2 of the deviations.
        assert!((of(1.0, 9.0).distance(&of(4.0, 25.0)).unwrap() - 5.0).abs() < 1e-9);
    }

    #[test]
    fn eigenvectors_take_a_matrix_apart() {
        let n = 24;
        let noise = dlc_methods::diffusion::noise(1, n * n);
        let matrix: Vec<f64> = (0..n * n)
            .map(|at| f64::from(noise[at] + noise[(at % n) * n + at / n]))
            .collect();
        let (values, vectors) = eigen(&matrix, n);
        let transposed: Vec<f64> = (0..n * n)
            .map(|at| vectors[(at % n) * n + at / n])
            .collect();
        let scaled: Vec<f64> = (0..n * n).map(|at| vectors[at] * values[at % n]).collect();
        let back = multiply(&scaled, &transposed, n);
        assert!(back.iter().zip(&matrix).all(|(a, b)| (a - b).abs() < 1e-9));
        let positive = multiply(&matrix, &matrix, n);
        let root = square_root(&positive, n);
        assert!(
            multiply(&root, &root, n)
                .iter()
                .zip(&positive)
                .all(|(a, b)| (a - b).abs() < 1e-8)
        );
    }

    #[test]
    fn statistics_are_those_of_the_sample() {
        let vectors = [[1.0f32, 0.0], [3.0, 2.0], [2.0, 4.0]];
        let found = Statistics::of(vectors.iter().map(<[f32; 2]>::as_slice), 2).unwrap();
        assert_eq!(
            found,
            Statistics {
                mean: vec![2.0, 2.0],
                covariance: vec![1.0, 1.0, 1.0, 4.0]
            }
        );
        assert!(Statistics::of(vectors[..1].iter().map(<[f32; 2]>::as_slice), 2).is_err());
    }
}
