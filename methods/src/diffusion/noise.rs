//! The noise that samplers start from, and that some draw at every step.

use std::f64::consts::TAU;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Two independent numbers from the standard normal distribution (Box and Muller, *A Note on the
/// Generation of Random Normal Deviates*, 1958).
pub fn normal_pair(random: &mut impl Rng) -> [f32; 2] {
    // In (0, 1], so that its logarithm is finite.
    let (radius, angle) = (1.0 - random.random::<f64>(), TAU * random.random::<f64>());
    let radius = (-2.0 * radius.ln()).sqrt();
    [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]
}

/// `n` draws from the standard normal distribution, the same ones for the same seed: `ChaCha8`, and
/// Box and Muller's transform in double precision.
pub fn noise(seed: u64, n: usize) -> Vec<f32> {
    draw(seed, 0, n)
}

/// The `n` draws of a sampler's step, from 0, for the image that [`noise`] with this seed begins:
/// a stream of the generator for each step, so that they depend on nothing else.
pub fn step_noise(seed: u64, step: usize, n: usize) -> Vec<f32> {
    draw(seed, step as u64 + 1, n)
}

fn draw(seed: u64, stream: u64, n: usize) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream);
    std::iter::repeat_with(|| normal_pair(&mut random))
        .flatten()
        .take(n)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{noise, step_noise};

    #[test]
    fn noise_is_standard_normal_and_follows_from_the_seed() {
        let n = 200_000;
        let draws = noise(5, n);
        let moment = |k: i32| draws.iter().map(|x| f64::from(*x).powi(k)).sum::<f64>() / n as f64;
        for (k, expected) in [(1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)] {
            assert!(
                (moment(k) - expected).abs() < 0.05,
                "moment {k}: {}",
                moment(k)
            );
        }
        assert_eq!(noise(5, 7), draws[..7]);
        assert_ne!(noise(6, 7), draws[..7]);
    }

    #[test]
    fn every_step_draws_noise_of_its_own() {
        let n = 50_000;
        let draws: Vec<Vec<f32>> = (0..3)
            .map(|step| step_noise(5, step, n))
            .chain([noise(5, n), step_noise(6, 0, n)])
            .collect();
        for (i, a) in draws.iter().enumerate() {
            for (j, b) in draws.iter().enumerate() {
                let products = a.iter().zip(b).map(|(a, b)| f64::from(a * b));
                let covariance = products.sum::<f64>() / n as f64;
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!(
                    (covariance - expected).abs() < 0.03,
                    "{i}, {j}: {covariance}"
                );
            }
        }
        assert_eq!(step_noise(5, 2, 7), draws[2][..7]);
    }
}
