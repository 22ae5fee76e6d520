//! How far images are from those that they should be.

/// What counts as no distance, so that it has a logarithm.
const SMALLEST: f64 = 1e-300;

/// The mean square of the difference of two images of one shape.
pub(crate) fn mean_square(image: &[f32], other: &[f32]) -> f64 {
    let pairs = image.iter().zip(other);
    let squares = pairs.map(|(x, y)| f64::from(x - y).powi(2));
    squares.sum::<f64>() / image.len().max(1) as f64
}

/// The mean logarithm of distances: a few images that come out as something else altogether don't
/// decide.
pub(crate) fn mean_logarithm(distances: &[f64]) -> f64 {
    let logarithms = distances.iter().map(|x| x.max(SMALLEST).ln());
    logarithms.sum::<f64>() / distances.len().max(1) as f64
}
